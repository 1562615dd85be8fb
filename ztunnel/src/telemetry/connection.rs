// SPDX-License-Identifier: Apache-2.0
//! One connection in metrics and access log: opened once, closed once, also when its task is dropped.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ztunnel_core::addr::Authority;
use ztunnel_core::hbone::Baggage;
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::{Service, Workload};
use ztunnel_core::report::access::{Bytes, Datapath};
use ztunnel_core::report::{AccessEntry, Cut, Event, Facts, Labels, Outcome, Reporter, Security};

use super::log;
use super::metrics::{Metrics, Traffic};
use crate::fastpath::Path;
use crate::proxy::relay::Meter;

/// Who talks to whom.
#[derive(Debug, Clone)]
pub struct Ends {
    /// Which side we are.
    pub reporter: Reporter,
    /// The source, if the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// What the source says about itself.
    pub derived_source: Option<Baggage>,
    /// The source's identity, if mTLS proved it.
    pub source_principal: Option<Identity>,
    /// The destination, if the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// The service that the source addressed.
    pub service: Option<Arc<Service>>,
    /// Whether the mesh protects the connection.
    pub security: Security,
    /// The client's address.
    pub source_addr: SocketAddr,
    /// The next hop, our own HBONE address, or the original destination: see the access log's `dst.addr`.
    pub destination_addr: SocketAddr,
    /// The `:authority`, for HBONE.
    pub authority: Option<Authority>,
}

impl Ends {
    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source.as_deref(),
            derived_source: self.derived_source.as_ref(),
            source_principal: self.source_principal.as_ref(),
            destination: self.destination.as_deref(),
            service: self.service.as_deref(),
            security: self.security,
            ..Facts::new(self.reporter)
        }
    }

    fn entry(&self) -> AccessEntry<'_> {
        let mut entry = AccessEntry::opened(&self.facts(), self.source_addr, self.destination_addr);
        entry.hbone_addr = self.authority.as_ref();
        entry
    }
}

/// A connection that counts. Dropping it unfinished reports that it was cut.
#[derive(Debug)]
pub struct Connection {
    metrics: Metrics,
    ends: Ends,
    labels: Labels,
    traffic: Arc<Traffic>,
    start: Instant,
    /// Downstream to upstream.
    up: Cell<u64>,
    /// Upstream to downstream.
    down: Cell<u64>,
    path: RefCell<Option<Path>>,
    finished: Cell<bool>,
}

impl Connection {
    /// Counts and logs that the connection opened.
    pub fn open(metrics: &Metrics, ends: Ends, start: Instant) -> Self {
        let labels = Labels::new(&ends.facts());
        let traffic = metrics.opened(&labels);
        log::access(&ends.entry());
        Self {
            metrics: metrics.clone(),
            ends,
            labels,
            traffic,
            start,
            up: Cell::new(0),
            down: Cell::new(0),
            path: RefCell::new(None),
            finished: Cell::new(false),
        }
    }

    /// Which way the bytes between the application and us take.
    pub fn set_path(&self, path: Path) {
        self.path.replace(Some(path));
    }

    /// Counts and logs the end.
    pub fn finish(&self, outcome: &Outcome) {
        if self.finished.replace(true) {
            return;
        }
        self.metrics.closed(&self.labels, outcome.flag());
        // "Sent" is by this side: outbound what the application sent, inbound what it answered.
        let (sent, received) = match self.ends.reporter {
            Reporter::Source => (self.up.get(), self.down.get()),
            Reporter::Destination => (self.down.get(), self.up.get()),
        };
        let (error, path) = (outcome.error(), self.path.borrow());
        let mut entry = self.ends.entry();
        entry.event = Event::Complete;
        entry.bytes = Some(Bytes { sent, received });
        entry.duration = Some(self.start.elapsed());
        entry.error = error.as_deref();
        entry.path = path.as_ref().map(|path| match path.reason {
            _ if path.redirected => Datapath::Ebpf,
            reason => Datapath::Tcp(reason),
        });
        log::access(&entry);
    }
}

impl Meter for Connection {
    fn sent(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes as u64);
        self.traffic.received(bytes);
    }

    fn received(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes as u64);
        self.traffic.sent(bytes);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.finish(&Outcome::Cut(Cut::Drain));
    }
}

/// Logs a connection that was turned away before it counted.
pub fn turned_away(reporter: Reporter, source: SocketAddr, destination: SocketAddr, outcome: &Outcome) {
    let error = outcome.to_string();
    log::access(&AccessEntry::failed(reporter, source, destination, &error));
}
