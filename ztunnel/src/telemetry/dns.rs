// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy's counters. Source: data-plane contract, section 5.5.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ztunnel_core::Name;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::labels::escape;

use super::metrics::{family, line};

/// Upper bounds of the histogram, in seconds.
const BUCKETS: [(f64, &str); 6] =
    [(0.0005, "0.0005"), (0.001, "0.001"), (0.01, "0.01"), (0.1, "0.1"), (1.0, "1.0"), (5.0, "5.0")];

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The labels of one query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    kind: &'static str,
    transport: Transport,
    service: Option<Name>,
    revision: Option<Name>,
}

impl Labels {
    /// A query of this type from this workload, if it is known.
    pub fn new(kind: &'static str, transport: Transport, source: Option<&Workload>) -> Self {
        let known = |field: fn(&Workload) -> &Name| {
            source.map(field).filter(|name| !name.is_empty()).map(Name::clone)
        };
        Self {
            kind,
            transport,
            service: known(|workload| &workload.canonical_name),
            revision: known(|workload| &workload.canonical_revision),
        }
    }

    fn render(&self) -> String {
        let text = |name: &Option<Name>| escape(name.as_deref().unwrap_or("unknown")).into_owned();
        format!(
            "request_query_type=\"{}\",request_protocol=\"{}\",source_canonical_service=\"{}\",\
             source_canonical_revision=\"{}\"",
            self.kind,
            self.transport.as_str(),
            text(&self.service),
            text(&self.revision),
        )
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    requests: u64,
    forwarded: u64,
    failed: u64,
    /// Not cumulative; what takes longer than the last bound is only in `answered`.
    buckets: [u64; BUCKETS.len()],
    answered: u64,
    seconds: f64,
}

/// All counters of the DNS proxy.
#[derive(Debug, Clone, Default)]
pub struct DnsMetrics(Arc<Mutex<BTreeMap<Labels, Counts>>>);

impl DnsMetrics {
    /// A query came.
    pub fn requested(&self, labels: Labels) {
        self.0.lock().entry(labels).or_default().requests += 1;
    }

    /// A query was forwarded, and took this long; `failed`: without an answer that helps.
    pub fn forwarded(&self, labels: Labels, took: Duration, failed: bool) {
        let seconds = took.as_secs_f64();
        let mut all = self.0.lock();
        let counts = all.entry(labels).or_default();
        counts.forwarded += 1;
        counts.failed += u64::from(failed);
        counts.answered += 1;
        counts.seconds += seconds;
        let bucket = BUCKETS.iter().position(|(bound, _)| seconds <= *bound);
        if let Some(count) = bucket.and_then(|bucket| counts.buckets.get_mut(bucket)) {
            *count += 1;
        }
    }

    /// Writes every family that has samples.
    pub fn expose(&self, text: &mut String) {
        let all: Vec<(String, Counts)> =
            self.0.lock().iter().map(|(labels, counts)| (labels.render(), *counts)).collect();
        type Read = fn(&Counts) -> u64;
        let families: [(&str, &str, Read); 3] = [
            ("istio_dns_requests", "Total number of DNS requests (unstable).", |c| c.requests),
            (
                "istio_dns_upstream_requests",
                "Total number of DNS requests forwarded to upstream (unstable).",
                |c| c.forwarded,
            ),
            (
                "istio_dns_upstream_failures",
                "Total number of DNS requests forwarded to upstream that failed (unstable).",
                |c| c.failed,
            ),
        ];
        for (name, help, read) in families {
            let mut samples = all.iter().filter(|(_, counts)| read(counts) > 0).peekable();
            if samples.peek().is_some() {
                family(text, name, "counter", help);
            }
            for (labels, counts) in samples {
                line(text, format_args!("{name}_total{{{labels}}} {}", read(counts)));
            }
        }
        expose_durations(text, &all);
    }
}

fn expose_durations(text: &mut String, all: &[(String, Counts)]) {
    let name = "istio_dns_upstream_request_duration_seconds";
    let mut samples = all.iter().filter(|(_, counts)| counts.answered > 0).peekable();
    if samples.peek().is_none() {
        return;
    }
    family(text, name, "histogram", "Total time in seconds to forward a request to upstream (unstable).");
    line(text, format_args!("# UNIT {name} seconds"));
    for (labels, counts) in samples {
        line(text, format_args!("{name}_sum{{{labels}}} {}", counts.seconds));
        line(text, format_args!("{name}_count{{{labels}}} {}", counts.answered));
        let mut below = 0;
        for ((_, bound), count) in BUCKETS.iter().zip(counts.buckets) {
            below += count;
            line(text, format_args!("{name}_bucket{{le=\"{bound}\",{labels}}} {below}"));
        }
        line(text, format_args!("{name}_bucket{{le=\"+Inf\",{labels}}} {}", counts.answered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_counted_by_type_protocol_and_source() {
        let metrics = DnsMetrics::default();
        let labels = |kind| Labels::new(kind, Transport::Udp, None);
        metrics.requested(labels("a"));
        metrics.requested(labels("a"));
        metrics.requested(labels("srv"));
        metrics.forwarded(labels("srv"), Duration::from_millis(20), true);
        metrics.forwarded(labels("srv"), Duration::from_secs(9), false);
        let mut text = String::new();
        metrics.expose(&mut text);
        let rest = "request_protocol=\"udp\",source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\"";
        for expected in [
            format!("istio_dns_requests_total{{request_query_type=\"a\",{rest}}} 2\n"),
            format!("istio_dns_upstream_requests_total{{request_query_type=\"srv\",{rest}}} 2\n"),
            format!("istio_dns_upstream_failures_total{{request_query_type=\"srv\",{rest}}} 1\n"),
            format!("_seconds_bucket{{le=\"0.01\",request_query_type=\"srv\",{rest}}} 0\n"),
            format!("_seconds_bucket{{le=\"0.1\",request_query_type=\"srv\",{rest}}} 1\n"),
            format!("_seconds_bucket{{le=\"5.0\",request_query_type=\"srv\",{rest}}} 1\n"),
            format!("_seconds_bucket{{le=\"+Inf\",request_query_type=\"srv\",{rest}}} 2\n"),
        ] {
            assert!(text.contains(&expected), "{expected}\n{text}");
        }
        assert!(!text.contains("upstream_requests_total{request_query_type=\"a\""), "{text}");
    }
}
