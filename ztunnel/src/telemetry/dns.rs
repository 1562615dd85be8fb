// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy's counters. Source: data-plane contract, section 5.5.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ztunnel_core::Name;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::families;

use super::metrics::exposition::{Exposition, Histogram};

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

    fn values(&self) -> [&str; 4] {
        fn name(name: &Option<Name>) -> &str {
            name.as_deref().unwrap_or("unknown")
        }
        [self.kind, self.transport.as_str(), name(&self.service), name(&self.revision)]
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
    ///
    /// # Errors
    /// The reader is gone.
    pub fn expose(&self, out: &mut Exposition<impl Write>) -> io::Result<()> {
        let all = self.0.lock().clone();
        type Read = fn(&Counts) -> u64;
        let families: [(_, Read); 3] = [
            (&families::DNS_REQUESTS, |counts| counts.requests),
            (&families::DNS_FORWARDED, |counts| counts.forwarded),
            (&families::DNS_FAILED, |counts| counts.failed),
        ];
        for (family, read) in families {
            let samples = all.iter().map(|(labels, counts)| (labels.values(), read(counts)));
            out.named(family, samples.filter(|(_, count)| *count > 0))?;
        }
        let durations = all.iter().filter(|(_, counts)| counts.answered > 0).map(|(labels, counts)| {
            let buckets = BUCKETS.map(|(_, bound)| bound).into_iter().zip(counts.buckets).collect();
            (labels.values(), Histogram { buckets, sum: counts.seconds, count: counts.answered })
        });
        out.histogram(&families::DNS_DURATION, durations)
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
        let mut out = Exposition::new(Vec::new());
        metrics.expose(&mut out).unwrap();
        let text = String::from_utf8(out.end().unwrap()).unwrap();
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
