// SPDX-License-Identifier: Apache-2.0
//! How answers are printed: as a table for people, as JSON or YAML for programs.
//!
//! What is in a table was named by others: control characters are shown, never sent to the terminal.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use serde_json::Value;

/// The form of an output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    #[value(alias = "text")]
    Table,
    /// For programs.
    Json,
    /// For programs, and for people who read that.
    Yaml,
}

impl Output {
    /// Prints an answer, as `table` makes one of it if that is the form.
    ///
    /// # Errors
    /// It cannot be written as YAML.
    pub(super) fn print(self, answer: &Value, table: impl FnOnce(&Value) -> String) -> io::Result<()> {
        say(&match self {
            Self::Table => table(answer),
            Self::Json => format!("{answer:#}\n"),
            Self::Yaml => serde_saphyr::to_string(answer).map_err(io::Error::other)?,
        });
        Ok(())
    }
}

/// Prints; whoever reads us may stop reading, which is no failure.
pub(super) fn say(text: &str) {
    io::stdout().write_all(text.as_bytes()).ok();
}

/// A text that somebody else wrote, fit for a terminal.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.chars().any(char::is_control) { text.chars().map(shown).collect() } else { text.to_owned() }
}

/// A value as a cell.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => plain(&value.to_string()),
    }
}

/// The elements of an array, or nothing.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// One end of a connection: its name if it has one.
pub(super) fn party(value: &Value) -> String {
    if value["name"].is_string() { word(&value["name"]) } else { word(&value["address"]) }
}

/// A pod's `namespace/name`.
pub(super) fn pod_name(pod: &Value) -> String {
    format!("{}/{}", word(&pod["namespace"]), word(&pod["name"]))
}

/// Columns as wide as what is in them; the last one is not filled up.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            write!(line, "{cell:<width$}  ").ok();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A number of bytes.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = UNITS.iter().enumerate().rev().find(|(power, _)| count >= (1_u64 << (10 * power)) as f64);
    match unit {
        None | Some((0, _)) => format!("{count:.0} B"),
        Some((power, unit)) => format!("{:.1} {unit}", count / (1_u64 << (10 * power)) as f64),
    }
}

/// A time span.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        i64::MIN..0 => format!("ended {} ago", span(seconds.saturating_neg())),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        86_400.. => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_names_cannot_move_the_cursor() {
        let rows = vec![vec![word(&json!("a\u{1b}[2Jb")), "1".to_owned()], vec!["x".into(), "22".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME         N\na\\u{1b}[2Jb  1\nx            22\n");
    }

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1023.0), "1023 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
        assert_eq!((span(59), span(61), span(86_400)), ("59s".into(), "1m1s".into(), "1d0h".into()));
        assert_eq!((span(-5), span(7200)), ("ended 5s ago".into(), "2h0m".into()));
    }

    #[test]
    fn yaml_keeps_what_json_says() {
        let value = json!({ "a": [1, "two: 2"], "b": null });
        let text = serde_saphyr::to_string(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value);
    }
}
