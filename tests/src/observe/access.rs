// SPDX-License-Identifier: Apache-2.0
//! Access log lines, read back from the text form: tab-separated columns, then `key=value` fields.

use std::collections::BTreeMap;
use std::fmt;

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessEntry {
    /// `info`, `warn`, `error` or `debug`.
    pub level: String,
    /// `connection complete`, `connection failed` or `connection opened`.
    pub message: String,
    /// Fields by name, quotes removed.
    pub fields: BTreeMap<String, String>,
    /// Names in the order of the line.
    pub order: Vec<String>,
}

/// Fields that differ from run to run, or between the modes of the fast path.
const UNSTEADY: &[&str] = &["duration", "path", "path.reason"];

impl AccessEntry {
    /// Reads a line; `None` if it is not of the access log.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.splitn(5, '\t');
        let (_time, level, target) = (columns.next()?, columns.next()?, columns.next()?);
        if target != "access" {
            return None;
        }
        let message = columns.next()?.to_owned();
        let pairs = fields(columns.next().unwrap_or_default());
        let order = pairs.iter().map(|(name, _)| name.clone()).collect();
        Some(Self { level: level.to_owned(), message, fields: pairs.into_iter().collect(), order })
    }

    /// A field, empty when absent.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// A field as a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).trim_end_matches("ms").parse().ok()
    }

    /// True if every given field has the given value.
    #[must_use]
    pub fn is(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(name, value)| self.get(name) == *value)
    }

    /// The line without what differs from run to run: times, ephemeral ports, the path.
    #[must_use]
    pub fn steady(&self) -> String {
        let mut out = format!("{} {}", self.level, self.message);
        for name in self.order.iter().filter(|name| !UNSTEADY.contains(&name.as_str())) {
            let value = self.get(name);
            let value = if name == "src.addr" { without_port(value) } else { value };
            out.push_str(&format!(" {name}={value}"));
        }
        out
    }
}

impl fmt::Display for AccessEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.level, self.message)?;
        self.order.iter().try_for_each(|name| write!(f, " {name}={}", self.get(name)))
    }
}

fn without_port(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(ip, _)| ip)
}

/// `a=1 b="two words" c="a \"quote\""`.
fn fields(mut text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    while let Some((name, rest)) = text.trim_start().split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (value.to_owned(), rest)
            }
        };
        out.push((name.to_owned(), value));
        text = rest;
    }
    out
}

/// Reads up to the closing quote; gives the rest after it.
fn unquote(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (out, text.get(at + 1..).unwrap_or_default()),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2026-01-01T00:00:00.000001Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4711 \
                        src.workload=\"client\" dst.addr=10.0.0.2:15008 error=\"a \\\"b\\\" c\" bytes_sent=5 duration=\"3ms\" path=ebpf";

    #[test]
    fn a_line_is_read_field_by_field() {
        let entry = AccessEntry::parse(LINE).unwrap();
        assert_eq!(entry.message, "connection complete");
        assert_eq!(entry.get("src.workload"), "client");
        assert_eq!(entry.get("error"), "a \"b\" c");
        assert_eq!(entry.number("bytes_sent"), Some(5));
        assert_eq!(entry.number("duration"), Some(3));
        assert!(entry.is(&[("path", "ebpf")]));
        assert_eq!(AccessEntry::parse("2026\tinfo\tproxy\tstarted\t"), None);
    }

    #[test]
    fn the_steady_form_has_neither_times_nor_ephemeral_ports_nor_the_path() {
        let steady = AccessEntry::parse(LINE).unwrap().steady();
        assert!(steady.contains("src.addr=10.0.0.1 "), "{steady}");
        assert!(steady.contains("dst.addr=10.0.0.2:15008"), "{steady}");
        assert!(!steady.contains("duration") && !steady.contains("path"), "{steady}");
    }
}
