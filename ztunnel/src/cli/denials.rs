// SPDX-License-Identifier: Apache-2.0
//! `ztunnel denials`: who was turned away lately, and which policy did it.

use std::fmt::Write as _;

use serde_json::Value;

use super::form::{items, party, plain, span, word};

/// A paragraph for each: the names in it are long, and there are few.
pub(super) fn render(answer: &Value, pod: Option<&str>) -> String {
    let mut text = String::new();
    for denial in items(answer) {
        let ago = span(denial["seconds_ago"].as_i64().unwrap_or(0));
        let times = match denial["count"].as_u64() {
            Some(1) => "once".to_owned(),
            Some(count) => format!("{count} times"),
            None => "again and again".to_owned(),
        };
        let line = format!("{} -> {}", party(&denial["source"]), party(&denial["destination"]));
        writeln!(
            text,
            "{line}  ({} {}, {}, last {ago} ago)",
            word(&denial["direction"]),
            word(&denial["pod"]),
            times
        )
        .ok();
        writeln!(text, "  error:   {}", word(&denial["error"])).ok();
        if let Some(policy) = denial["policy"].as_str() {
            writeln!(text, "  policy:  {}", plain(policy)).ok();
        } else if denial["allow_policies"].is_array() {
            let names: Vec<String> = items(&denial["allow_policies"]).map(word).collect();
            writeln!(text, "  policy:  none of those that say who may: {}", names.join(", ")).ok();
        }
        if let Some(verdict) = denial["verdict"].as_str() {
            writeln!(text, "  verdict: {}", plain(verdict)).ok();
        }
        for end in ["source", "destination"] {
            let identity = denial[end]["identity"].as_str().map_or_else(|| "no identity".to_owned(), plain);
            writeln!(text, "  {end}: {} {identity}", word(&denial[end]["address"])).ok();
        }
    }
    if text.is_empty() {
        let of = pod.map(|pod| format!(" of {}, or to it,", plain(pod))).unwrap_or_default();
        return format!("no request{of} was turned away on this node since it started\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_policy_that_denied_is_named_with_both_identities() {
        let answer = json!([{
            "pod": "shop/db", "direction": "inbound", "count": 3, "seconds_ago": 61,
            "error": "connection closed due to policy rejection: explicitly denied by: shop/nobody",
            "policy": "shop/nobody", "verdict": "explicitly denied by: shop/nobody",
            "source": { "name": "shop/web", "address": "10.0.0.1:4000", "identity": "spiffe://cluster.local/ns/shop/sa/web" },
            "destination": { "name": "shop/db", "address": "10.0.0.2:5432", "identity": "spiffe://cluster.local/ns/shop/sa/db" },
        }]);
        let text = render(&answer, None);
        for part in [
            "shop/web -> shop/db  (inbound shop/db, 3 times, last 1m1s ago)",
            "policy:  shop/nobody",
            "/sa/web",
            "/sa/db",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(render(&json!([]), Some("shop/web")).contains("of shop/web"));
    }
}
