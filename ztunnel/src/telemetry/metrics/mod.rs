// SPDX-License-Identifier: Apache-2.0
//! Counters and gauges. A connection resolves its label set once; while bytes flow it touches only atomics of its own
//! series, and a scrape holds no lock while it writes.
//!
//! * [`series`]: what is counted per label set of connections, for how many sets and how long.
//! * [`exposition`]: their text. [`families`]: every family there is.
//!
//! Source: data-plane contract, sections 6.1 to 6.3.

pub mod exposition;
pub mod series;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::labels::NAMES;
use ztunnel_core::report::{Facts, Labels, Reporter, families};

use super::dns::DnsMetrics;
use exposition::Exposition;
use series::{Counted, Limits, Store};

/// Types of responses that are counted apart.
const MAX_TYPES: usize = 8;
/// Sources and host names that are counted apart; names are the mesh's, but there may be ever new ones.
const MAX_RESOLVED: usize = 4096;

/// Everything that is counted.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    series: Store,
    sockets: [AtomicI64; 2],
    pods: Arc<PodCounts>,
    xds: XdsCounts,
    dns: DnsMetrics,
    /// Uses of host names, by the labels of `istio_on_demand_dns`.
    resolved: Mutex<BTreeMap<[String; families::RESOLVED.labels.len()], u64>>,
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

    fn expose(&self, out: &mut Exposition<impl Write>) -> io::Result<()> {
        // Copied: who reads the exposition may be slow.
        let (received, terminations) = {
            let totals = self.0.lock();
            (totals.received.clone(), totals.terminations.clone())
        };
        out.family(&families::XDS_ENDS, terminations.into_iter().map(|(reason, count)| ([reason], count)))?;
        out.named(&families::XDS_MESSAGES, received.iter().map(|(url, (messages, _))| ([url], *messages)))?;
        out.named(&families::XDS_BYTES, received.iter().map(|(url, (_, bytes))| ([url], *bytes)))
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

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Metrics {
    /// Nothing is counted yet.
    pub fn new(limits: Limits) -> Self {
        let (sockets, pods, xds, dns, resolved) = Default::default();
        Self(Arc::new(Inner { series: Store::new(limits), sockets, pods, xds, dns, resolved }))
    }

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
        let known = Labels::new(&Facts {
            source: Some(source),
            source_principal: Some(&identity),
            ..Facts::new(Reporter::Source)
        });
        let mut labels: [String; families::RESOLVED.labels.len()] = Default::default();
        for (name, label) in families::RESOLVED.labels.iter().zip(&mut labels) {
            let place = NAMES.iter().position(|known| known == name);
            *label = place.and_then(|place| known.values()[place]).unwrap_or(host).to_owned();
        }
        let mut all = self.0.resolved.lock();
        if all.len() >= MAX_RESOLVED && !all.contains_key(&labels) {
            labels.fill("overflow".to_owned());
        }
        *all.entry(labels).or_default() += 1;
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

    /// A connection with these labels, between these workloads, opened; it is counted in the result.
    pub fn opened(&self, labels: Labels, about: [Option<&Arc<Workload>>; 2]) -> Counted {
        self.0.series.open(labels, about)
    }

    /// Drops the series that nobody uses any more. To be called now and then.
    pub fn expire(&self) {
        self.0.series.expire();
    }

    /// Writes what is counted here as far as `istio_*` goes. Families without samples are left out.
    ///
    /// # Errors
    /// The reader is gone; so for all below.
    pub fn expose_istio(&self, out: &mut Exposition<impl Write>) -> io::Result<()> {
        out.connections(&self.0.series)?;
        let sockets = [Reporter::Source, Reporter::Destination]
            .map(|reporter| ([reporter.as_str()], self.sockets(reporter).load(Ordering::Relaxed)));
        out.family(&families::SOCKETS, sockets)?;
        self.0.dns.expose(out)?;
        // Copied: who reads the exposition may be slow.
        let resolved = self.0.resolved.lock().clone();
        out.named(&families::RESOLVED, resolved)?;
        self.0.xds.expose(out)
    }

    /// Writes `workload_manager_*`.
    ///
    /// # Errors
    /// As above.
    pub fn expose_pods(&self, out: &mut Exposition<impl Write>) -> io::Result<()> {
        let pods = &self.0.pods;
        out.value(&families::PODS_ACTIVE, pods.active.load(Ordering::Relaxed))?;
        out.value(&families::PODS_PENDING, pods.pending.load(Ordering::Relaxed))?;
        out.value(&families::PODS_STARTED, pods.started.load(Ordering::Relaxed))?;
        out.value(&families::PODS_STOPPED, pods.stopped.load(Ordering::Relaxed))
    }

    /// Writes what the metrics have to say about themselves.
    ///
    /// # Errors
    /// As above.
    pub fn expose_own(&self, out: &mut Exposition<impl Write>) -> io::Result<()> {
        let series = &self.0.series;
        out.value(&families::SERIES, series.len())?;
        out.value(&families::SERIES_OVERFLOW, series.overflows())?;
        out.value(&families::SERIES_EXPIRED, series.expired())
    }
}
