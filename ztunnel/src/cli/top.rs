// SPDX-License-Identifier: Apache-2.0
//! `ztunnel top`: what each pod does and costs, as the difference of two looks at counters that exist anyway.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::door::Door;
use super::form::{Output, bytes, items, pod_name, say, table, word};

/// Open connections from which the median of the opening times is taken.
const SAMPLE: &str = "/connections?limit=2000";
/// Clears the terminal, and goes home.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// One look.
struct Look {
    at: Instant,
    status: Value,
    live: Value,
}

impl Look {
    fn take(door: &Door) -> io::Result<Self> {
        Ok(Self { at: Instant::now(), status: door.json("/status")?, live: door.json(SAMPLE)? })
    }
}

/// Prints again and again, or once.
pub(super) fn run(door: &Door, interval: Duration, once: bool, output: Output) -> io::Result<()> {
    let mut before = Look::take(door)?;
    loop {
        thread::sleep(interval);
        let now = Look::take(door)?;
        let rates = rates(&before, &now);
        if !once && output == Output::Table && io::stdout().is_terminal() {
            say(CLEAR);
        }
        output.print(&rates, render)?;
        if once {
            return Ok(());
        }
        before = now;
    }
}

/// Per pod and second, the busiest first.
fn rates(before: &Look, now: &Look) -> Value {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let known: HashMap<&str, &Value> =
        items(&before.status["pods"]).filter_map(|pod| Some((pod["uid"].as_str()?, pod))).collect();
    let mut rows: Vec<(f64, Value)> = items(&now.status["pods"])
        .map(|pod| {
            // A pod that was not there has begun from nothing.
            let old = pod["uid"].as_str().and_then(|uid| known.get(uid));
            let rate = |name: &str| {
                let then = old.map_or(0.0, |old| old[name].as_f64().unwrap_or(0.0));
                (pod[name].as_f64().unwrap_or(0.0) - then).max(0.0) / seconds
            };
            let (opened, sent, received) = (rate("opened"), rate("sent"), rate("received"));
            let name = pod_name(pod);
            let row = json!({
                "pod": name,
                "open": pod["connections"],
                "ebpf": pod["paths"]["ebpf"],
                "tcp": pod["paths"]["tcp"],
                "opened_per_second": opened,
                "sent_per_second": sent,
                "received_per_second": received,
                "opening_median_us": median(&now.live, &name),
            });
            (sent + received + opened, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The median of the times that a pod's open connections took to open, in microseconds.
fn median(live: &Value, pod: &str) -> Option<u64> {
    let mut all: Vec<u64> = items(&live["connections"])
        .filter(|row| row["pod"] == pod)
        .filter_map(|row| row["opening_us"].as_u64())
        .collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

fn render(rates: &Value) -> String {
    let rows: Vec<Vec<String>> = items(rates)
        .map(|row| {
            let rate = |name: &str| format!("{}/s", bytes(row[name].as_f64().unwrap_or(0.0)));
            let opening =
                row["opening_median_us"].as_u64().map_or_else(|| "-".to_owned(), |us| format!("{us} µs"));
            vec![
                word(&row["pod"]),
                word(&row["open"]),
                word(&row["ebpf"]),
                word(&row["tcp"]),
                format!("{:.1}/s", row["opened_per_second"].as_f64().unwrap_or(0.0)),
                rate("sent_per_second"),
                rate("received_per_second"),
                opening,
            ]
        })
        .collect();
    table(&["POD", "OPEN", "EBPF", "TCP", "OPENED", "SENT", "RECEIVED", "TO OPEN"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_the_busiest_comes_first() {
        let pod = |uid: &str, sent: u64| {
            json!({ "uid": uid, "name": uid, "namespace": "ns", "sent": sent, "received": 0, "opened": sent / 100,
                "connections": 1, "paths": { "ebpf": 0, "tcp": 1 } })
        };
        let live = json!({ "connections": [
            { "pod": "ns/b", "opening_us": 30 }, { "pod": "ns/b", "opening_us": 10 }, { "pod": "ns/b", "opening_us": 20 },
        ] });
        let at = Instant::now();
        let before =
            Look { at, status: json!({ "pods": [pod("a", 100), pod("b", 100)] }), live: live.clone() };
        let status = json!({ "pods": [pod("a", 100), pod("b", 2100)] });
        let rates = rates(&before, &Look { at: at + Duration::from_secs(2), status, live });
        assert_eq!(rates[0]["pod"], "ns/b");
        assert_eq!(rates[0]["sent_per_second"], 1000.0);
        assert_eq!(rates[0]["opening_median_us"], 20);
        assert_eq!(
            (&rates[1]["sent_per_second"], &rates[1]["opening_median_us"]),
            (&json!(0.0), &Value::Null)
        );
        assert!(render(&rates).contains("1000 B/s"), "{}", render(&rates));
    }
}
