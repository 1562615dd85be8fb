// SPDX-License-Identifier: Apache-2.0
//! `ztunnel status`, `certs` and `accel show`: the node for people, problems first.

use std::fmt::Write as _;

use serde_json::Value;

use super::form::{bytes, items, plain, pod_name, span, table, word};

/// Everything, or one pod.
pub(super) fn render(status: &Value, only: Option<&str>) -> String {
    let mut text = String::new();
    for problem in items(&status["problems"]) {
        writeln!(text, "PROBLEM  {}\n         {}", word(&problem["what"]), word(&problem["fix"])).ok();
    }
    if text.is_empty() {
        text.push_str("no problems\n");
    }
    text.push('\n');
    text.push_str(&fastpath(status));
    let sessions = &status["sessions"];
    for (name, session) in [("control plane", &sessions["xds"]), ("node agent", &sessions["agent"])] {
        let since =
            session["since"].as_str().map(|since| format!(" since {}", plain(since))).unwrap_or_default();
        writeln!(text, "{:<15}{}{since}", format!("{name}:"), word(&session["state"])).ok();
    }
    let mesh = &status["mesh"];
    writeln!(
        text,
        "mesh:          {} workloads, {} services, {} policies",
        mesh["workloads"], mesh["services"], mesh["policies"]
    )
    .ok();
    text.push('\n');
    text.push_str(&pods(status, only));
    text
}

/// The fast path, and how far it carries each pod.
pub(super) fn render_accel(status: &Value, only: Option<&str>) -> String {
    format!("{}\n{}", fastpath(status), pods(status, only))
}

fn fastpath(status: &Value) -> String {
    let (mode, traffic) = (&status["mode"], &status["fastpath"]);
    let state = if mode["on"] == true { "on" } else { "off" };
    let mut text = format!(
        "fast path:     {state} (mode {}, configured {}: {})\n",
        word(&mode["effective"]),
        word(&mode["configured"]),
        word(&mode["reason"])
    );
    for check in items(&status["self_test"]).filter(|check| check["ok"] != true) {
        writeln!(text, "  self-test FAILED {}: {}", word(&check["name"]), word(&check["detail"])).ok();
    }
    let count = |name: &str| traffic[name].as_f64().unwrap_or(0.0);
    let (redirected, passed) = (count("redirected_bytes"), count("passed_bytes"));
    let ratio = if redirected + passed > 0.0 {
        format!(", hit ratio {:.1} %", 100.0 * redirected / (redirected + passed))
    } else {
        String::new()
    };
    writeln!(
        text,
        "               {} hops paired, {} not; {} redirected, {} by TCP{ratio}",
        traffic["paired"],
        traffic["unpaired"],
        bytes(redirected),
        bytes(passed)
    )
    .ok();
    for (title, reasons) in [("by TCP", &traffic["passed"]), ("not paired", &traffic["not_paired"])] {
        let reasons: Vec<String> = reasons
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(reason, count)| format!("{} {count}", plain(reason)))
            .collect();
        if !reasons.is_empty() {
            writeln!(text, "               {title}: {}", reasons.join(", ")).ok();
        }
    }
    text
}

fn pods(status: &Value, only: Option<&str>) -> String {
    let rows: Vec<Vec<String>> = items(&status["pods"])
        .filter(|pod| only.is_none_or(|only| only == pod_name(pod)))
        .map(|pod| {
            let certificate =
                items(&status["certificates"]).find(|certificate| certificate["identity"] == pod["identity"]);
            let paths = &pod["paths"];
            let level = if pod["on"] == true { word(&pod["level"]) } else { "off".to_owned() };
            vec![
                pod_name(pod),
                level,
                word(&pod["reason"]),
                word(&pod["connections"]),
                word(&paths["ebpf"]),
                word(&paths["tcp"]),
                bytes(pod["sent"].as_f64().unwrap_or(0.0)),
                bytes(pod["received"].as_f64().unwrap_or(0.0)),
                certificate.map_or_else(|| "-".to_owned(), life),
            ]
        })
        .collect();
    if let (true, Some(only)) = (rows.is_empty(), only) {
        return format!("no pod {} is served here\n", plain(only));
    }
    table(&["POD", "LEVEL", "REASON", "OPEN", "EBPF", "TCP", "SENT", "RECEIVED", "CERTIFICATE"], &rows)
}

/// The certificates.
pub(super) fn render_certificates(certificates: &Value) -> String {
    let rows: Vec<Vec<String>> = items(certificates)
        .map(|one| {
            let error = one["error"].as_str().map(plain).unwrap_or_default();
            vec![word(&one["identity"]), word(&one["state"]), life(one), word(&one["not_after"]), error]
        })
        .collect();
    table(&["IDENTITY", "STATE", "ENDS IN", "ENDS AT", "ERROR"], &rows)
}

fn life(certificate: &Value) -> String {
    certificate["remaining_seconds"].as_i64().map_or_else(|| word(&certificate["state"]), span)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "problems": [{ "what": "not ready: waiting for proxy", "fix": "wait" }],
            "mode": { "configured": "auto", "effective": "off", "reason": "no BTF", "on": false },
            "self_test": [{ "name": "load", "ok": false, "detail": "EPERM" }],
            "fastpath": { "paired": 0, "unpaired": 0, "redirected_bytes": 300, "passed_bytes": 100,
                "passed": { "credit": 2, "foreign": 0 }, "not_paired": {} },
            "sessions": { "xds": { "state": "connected", "since": "then" }, "agent": { "state": "idle" } },
            "mesh": { "workloads": 2, "services": 1, "policies": 0 },
            "certificates": [{ "identity": "spiffe://a", "state": "available", "remaining_seconds": 7200 }],
            "pods": [{ "name": "a", "namespace": "ns", "level": "full", "on": false, "reason": "kernel_unfit",
                "identity": "spiffe://a", "connections": 3, "paths": { "ebpf": 1, "tcp": 2 }, "sent": 0, "received": 2048 }],
        })
    }

    #[test]
    fn problems_come_first() {
        let text = render(&status(), None);
        assert!(text.starts_with("PROBLEM  not ready: waiting for proxy\n         wait\n"), "{text}");
        for part in
            ["self-test FAILED load: EPERM", "hit ratio 75.0 %", "by TCP: credit 2\n", "2h0m", "2.0 KiB"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn one_pod_can_be_asked_for() {
        assert!(render(&status(), Some("ns/a")).contains("ns/a"));
        let text = render(&status(), Some("ns/b"));
        assert!(text.contains("no pod ns/b is served here") && !text.contains("ns/a"), "{text}");
    }
}
