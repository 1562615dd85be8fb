// SPDX-License-Identifier: Apache-2.0
//! `ztunnel connections`: what is open now.

use serde_json::Value;

use super::form::{bytes, items, party, span, table, word};

/// As a table.
pub(super) fn render(answer: &Value) -> String {
    let rows: Vec<Vec<String>> = items(&answer["connections"])
        .map(|row| {
            let age = row["age_ms"].as_i64().unwrap_or(0) / 1000;
            let count = |name: &str| bytes(row[name].as_f64().unwrap_or(0.0));
            vec![
                word(&row["pod"]),
                word(&row["direction"]),
                party(&row["source"]),
                party(&row["destination"]),
                word(&row["protocol"]),
                word(&row["path"]),
                word(&row["reason"]),
                count("sent"),
                count("received"),
                span(age),
            ]
        })
        .collect();
    let head = ["POD", "DIRECTION", "FROM", "TO", "PROTOCOL", "PATH", "REASON", "SENT", "RECEIVED", "AGE"];
    let total = answer["total"].as_u64().unwrap_or(0);
    let mut text = table(&head, &rows);
    if total > rows.len() as u64 {
        text.push_str(&format!("{} of {total}; those that carried most come first\n", rows.len()));
    }
    text
}
