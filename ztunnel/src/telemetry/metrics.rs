// SPDX-License-Identifier: Apache-2.0
//! Counters and gauges, and their exposition as OpenMetrics text.
//!
//! A connection resolves its label set once; while bytes flow it touches only atomics of its own series.
//! Source: data-plane contract, sections 6.1 to 6.3.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::labels::escape;
use ztunnel_core::report::{Facts, Flag, Labels, Reporter};

use super::dns::DnsMetrics;

/// Types of responses that are counted apart.
const MAX_TYPES: usize = 8;

/// The labels of `istio_on_demand_dns`, beside the host.
const OF_RESOLVING: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

/// What is counted per label set while connections live.
#[derive(Debug, Default)]
pub struct Traffic {
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Bytes from the upstream to the downstream (`istio_tcp_sent_bytes`).
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes from the downstream to the upstream (`istio_tcp_received_bytes`).
    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Everything that is counted.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    traffic: Mutex<HashMap<Labels, Arc<Traffic>>>,
    /// Closed connections by final labels, the flag among them.
    closed: Mutex<HashMap<Labels, u64>>,
    sockets: [AtomicI64; 2],
    pods: Arc<PodCounts>,
    xds: XdsCounts,
    dns: DnsMetrics,
    /// Uses of a host name, by the labels of the source and the host.
    resolved: Mutex<BTreeMap<String, u64>>,
}

/// Messages and streams of the control plane, as `istio_xds_*` counts them.
#[derive(Debug, Clone, Default)]
pub struct XdsCounts(Arc<Mutex<XdsTotals>>);

#[derive(Debug, Default)]
struct XdsTotals {
    /// Messages and bytes by type.
    received: BTreeMap<String, (u64, u64)>,
    terminations: BTreeMap<&'static str, u64>,
}

impl XdsCounts {
    /// A response of this type came.
    pub fn received(&self, type_url: &str, bytes: usize) {
        let mut totals = self.0.lock();
        // Types are few; what a confused server makes up is not kept apart.
        let known = totals.received.contains_key(type_url) || totals.received.len() < MAX_TYPES;
        let type_url = if known { type_url } else { "other" };
        let (messages, total) = totals.received.entry(type_url.to_owned()).or_default();
        *messages += 1;
        *total += bytes as u64;
    }

    /// A stream, or an attempt at one, ended for this reason.
    pub fn terminated(&self, reason: &'static str) {
        *self.0.lock().terminations.entry(reason).or_default() += 1;
    }

    fn expose(&self, text: &mut String) {
        let totals = self.0.lock();
        if !totals.terminations.is_empty() {
            let name = "istio_xds_connection_terminations";
            family(
                text,
                name,
                "counter",
                "The total number of completed connections to xds server (unstable).",
            );
            for (reason, count) in &totals.terminations {
                line(text, format_args!("{name}_total{{reason=\"{reason}\"}} {count}"));
            }
        }
        type Read = fn(&(u64, u64)) -> u64;
        let families: [(&str, &str, Read); 2] = [
            ("istio_xds_message", "Total number of messages received (unstable).", |(messages, _)| *messages),
            ("istio_xds_message_bytes", "Total number of bytes received (unstable).", |(_, bytes)| *bytes),
        ];
        for (name, help, read) in families.into_iter().filter(|_| !totals.received.is_empty()) {
            family(text, name, "counter", help);
            for (url, counts) in &totals.received {
                line(text, format_args!("{name}_total{{url=\"{}\"}} {}", escape(url), read(counts)));
            }
        }
    }
}

#[derive(Debug, Default)]
struct PodCounts {
    active: AtomicUsize,
    pending: AtomicUsize,
    started: AtomicU64,
    stopped: AtomicU64,
}

/// The pods of this node, as `workload_manager_*` counts them.
#[derive(Debug, Clone)]
pub struct PodGauges(Arc<PodCounts>);

impl PodGauges {
    /// A pod's proxy runs.
    pub fn started(&self) {
        self.0.started.fetch_add(1, Ordering::Relaxed);
    }

    /// A pod's proxy ended.
    pub fn stopped(&self) {
        self.0.stopped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many run now.
    pub fn active(&self, count: usize) {
        self.0.active.store(count, Ordering::Relaxed);
    }

    /// How many could not be started yet.
    pub fn pending(&self, count: usize) {
        self.0.pending.store(count, Ordering::Relaxed);
    }
}

/// Counts one accepted socket for as long as it lives (`istio_tcp_sockets_open`).
#[derive(Debug)]
pub struct OpenSocket(Metrics, Reporter);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.sockets(self.1).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// The counters of the xDS client.
    pub fn xds(&self) -> XdsCounts {
        self.0.xds.clone()
    }

    /// The counters of the DNS proxy.
    pub fn dns(&self) -> &DnsMetrics {
        &self.0.dns
    }

    /// A connection of this source needs the addresses of a host, known already or not.
    pub fn resolved(&self, source: &Workload, host: &str) {
        let identity = source.identity();
        let labels = Labels::new(&Facts {
            source: Some(source),
            source_principal: Some(&identity),
            ..Facts::new(Reporter::Source)
        });
        let mut text = String::with_capacity(256);
        for (name, value) in labels.iter().filter(|(name, _)| OF_RESOLVING.contains(name)) {
            write!(text, "{name}=\"{}\",", escape(value)).ok();
        }
        write!(text, "hostname=\"{}\"", escape(host)).ok();
        *self.0.resolved.lock().entry(text).or_default() += 1;
    }

    fn expose_resolved(&self, text: &mut String) {
        let all = self.0.resolved.lock();
        if !all.is_empty() {
            let name = "istio_on_demand_dns";
            family(text, name, "counter", "The total number of on-demand DNS requests (unstable).");
            for (labels, count) in &*all {
                line(text, format_args!("{name}_total{{{labels}}} {count}"));
            }
        }
    }

    /// The pods' gauges.
    pub fn pods(&self) -> PodGauges {
        PodGauges(Arc::clone(&self.0.pods))
    }

    /// Counts an accepted socket until the result is dropped.
    pub fn open_socket(&self, reporter: Reporter) -> OpenSocket {
        self.sockets(reporter).fetch_add(1, Ordering::Relaxed);
        OpenSocket(self.clone(), reporter)
    }

    fn sockets(&self, reporter: Reporter) -> &AtomicI64 {
        &self.0.sockets[usize::from(reporter == Reporter::Destination)]
    }

    /// A connection with these labels opened; its bytes are counted in the result.
    pub fn opened(&self, labels: &Labels) -> Arc<Traffic> {
        let mut all = self.0.traffic.lock();
        let traffic = match all.get(labels) {
            Some(traffic) => Arc::clone(traffic),
            None => Arc::clone(all.entry(labels.clone()).or_default()),
        };
        drop(all);
        traffic.opened.fetch_add(1, Ordering::Relaxed);
        traffic
    }

    /// The connection ended with `flag`.
    pub fn closed(&self, labels: &Labels, flag: Flag) {
        *self.0.closed.lock().entry(labels.with_flag(flag)).or_default() += 1;
    }

    /// Writes every family as OpenMetrics text. Families without samples are left out. `extra` comes before the end.
    pub fn expose(&self, tag: &str, extra: &str) -> String {
        let mut text = String::with_capacity(16 << 10);
        family(&mut text, "istio_build", "gauge", "Istio component build info.");
        line(&mut text, format_args!("istio_build{{component=\"ztunnel\",tag=\"{}\"}} 1", escape(tag)));
        self.expose_traffic(&mut text);
        self.expose_closed(&mut text);
        let sockets = [(Reporter::Source, 0), (Reporter::Destination, 1)];
        family(
            &mut text,
            "istio_tcp_sockets_open",
            "gauge",
            "The number of accepted sockets that are open (unstable).",
        );
        for (reporter, index) in sockets {
            let open = self.0.sockets[index].load(Ordering::Relaxed);
            let reporter = reporter.as_str();
            line(&mut text, format_args!("istio_tcp_sockets_open{{reporter=\"{reporter}\"}} {open}"));
        }
        self.expose_pods(&mut text);
        self.0.xds.expose(&mut text);
        self.0.dns.expose(&mut text);
        self.expose_resolved(&mut text);
        text.push_str(extra);
        text.push_str("# EOF\n");
        text
    }

    fn expose_traffic(&self, text: &mut String) {
        let mut series: Vec<(String, Arc<Traffic>)> = {
            let all = self.0.traffic.lock();
            all.iter().map(|(labels, traffic)| (render(labels), Arc::clone(traffic))).collect()
        };
        series.sort_by(|a, b| a.0.cmp(&b.0));
        type Read = fn(&Traffic) -> &AtomicU64;
        let families: [(&str, &str, Read); 3] = [
            ("istio_tcp_connections_opened", "The total number of TCP connections opened.", |t| &t.opened),
            ("istio_tcp_received_bytes", "The size of total bytes received during request.", |t| &t.received),
            ("istio_tcp_sent_bytes", "The size of total bytes sent during response.", |t| &t.sent),
        ];
        for (name, help, read) in families.into_iter().filter(|_| !series.is_empty()) {
            family(text, name, "counter", help);
            for (labels, traffic) in &series {
                let value = read(traffic).load(Ordering::Relaxed);
                line(text, format_args!("{name}_total{{{labels}}} {value}"));
            }
        }
    }

    fn expose_closed(&self, text: &mut String) {
        let mut series: Vec<(String, bool, u64)> = {
            let all = self.0.closed.lock();
            all.iter().map(|(labels, count)| (render(labels), labels.flag() != Flag::None, *count)).collect()
        };
        series.sort();
        let families = [
            ("istio_tcp_connections_closed", "The total number of TCP connections closed.", false),
            (
                "istio_tcp_connections_failed",
                "The total number of TCP connections that failed (unstable).",
                true,
            ),
        ];
        for (name, help, only_failed) in families {
            let mut samples = series.iter().filter(|(_, failed, _)| *failed || !only_failed).peekable();
            if samples.peek().is_some() {
                family(text, name, "counter", help);
            }
            for (labels, _, count) in samples {
                line(text, format_args!("{name}_total{{{labels}}} {count}"));
            }
        }
    }

    fn expose_pods(&self, text: &mut String) {
        let pods = &self.0.pods;
        let gauges = [
            ("workload_manager_active_proxy_count", pods.active.load(Ordering::Relaxed), "active"),
            ("workload_manager_pending_proxy_count", pods.pending.load(Ordering::Relaxed), "pending"),
        ];
        for (name, value, what) in gauges {
            family(text, name, "gauge", &format!("The total number of {what} pod proxies (unstable)."));
            line(text, format_args!("{name} {value}"));
        }
        let counters = [
            ("workload_manager_proxies_started", pods.started.load(Ordering::Relaxed), "started"),
            ("workload_manager_proxies_stopped", pods.stopped.load(Ordering::Relaxed), "stopped"),
        ];
        for (name, value, what) in counters {
            family(text, name, "counter", &format!("The total number of pod proxies {what} (unstable)."));
            line(text, format_args!("{name}_total {value}"));
        }
    }
}

/// The head of a family.
pub fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} {kind}"));
}

/// One line; writing to a string cannot fail.
pub fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).ok();
    text.push('\n');
}

fn render(labels: &Labels) -> String {
    let mut text = String::with_capacity(1024);
    for (name, value) in labels.iter() {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{name}=\"{}\"", escape(value)).ok();
    }
    text
}
