// SPDX-License-Identifier: Apache-2.0
//! A metrics page, read back.

use std::collections::BTreeMap;

/// One value with its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the series.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// All values, in the order of the page.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text form; comments and lines that are no samples are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// Sum of the series `name` with all of the given labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.named(name)
            .filter(|sample| {
                labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
            })
            .map(|sample| sample.value)
            .sum()
    }

    /// All series of one name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The `istio_tcp_*` counters, one sorted line each: what must not depend on the path that bytes took. The gauge
    /// of open sockets is left out: idle tunnels are in it.
    #[must_use]
    pub fn tcp(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .samples
            .iter()
            .filter(|sample| sample.name.starts_with("istio_tcp_") && sample.name.ends_with("_total"))
            .map(|sample| {
                let labels: Vec<_> =
                    sample.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("{}{{{}}} {}", sample.name, labels.join(","), sample.value)
            })
            .collect();
        lines.sort();
        lines
    }

    /// Connections that have begun and not ended, as the metrics say it.
    #[must_use]
    pub fn open_connections(&self) -> f64 {
        self.sum("istio_tcp_connections_opened_total", &[])
            - self.sum("istio_tcp_connections_closed_total", &[])
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: series.to_owned(), labels, value })
}

/// `a="1",b="2"} 5`: the labels, and what follows the brace.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut out = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((out, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut end = None;
        let mut escaped = false;
        for (at, char) in rest.char_indices() {
            match char {
                '"' if !escaped => {
                    end = Some(at);
                    break;
                }
                _ => escaped = char == '\\' && !escaped,
            }
        }
        let end = end?;
        out.insert(name.to_owned(), rest.get(..end)?.replace("\\\"", "\"").replace("\\\\", "\\"));
        text = rest.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP x Y.\n\
        istio_tcp_connections_opened_total{reporter=\"source\",a=\"x,y\"} 3\n\
        istio_tcp_connections_opened_total{reporter=\"destination\",a=\"q\\\"\"} 4\n\
        istio_tcp_connections_closed_total{reporter=\"source\"} 2\n\
        up 1\n# EOF\n";

    #[test]
    fn values_are_summed_by_name_and_labels() {
        let metrics = Metrics::parse(PAGE);
        assert_eq!(metrics.samples.len(), 4);
        assert!((metrics.sum("istio_tcp_connections_opened_total", &[]) - 7.0).abs() < 1e-9);
        assert!((metrics.sum("istio_tcp_connections_opened_total", &[("a", "x,y")]) - 3.0).abs() < 1e-9);
        assert!((metrics.open_connections() - 5.0).abs() < 1e-9);
        assert_eq!(metrics.samples[1].labels["a"], "q\"");
        assert_eq!(metrics.tcp().len(), 3);
    }
}
