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

use super::live::{Entry, Shard};
use super::log;
use super::metrics::series::Counted;
use crate::fastpath::{Path, Place};
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
    /// What the destination says about itself; instead of what the mesh says.
    pub derived_destination: Option<Baggage>,
    /// The destination's identity where it is not the destination workload's own.
    pub destination_principal: Option<Identity>,
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
    /// Where the source wanted to go: outbound the original destination, inbound the host that was forwarded, if any.
    pub original: Option<Authority>,
    /// The application's address, as far as we know it.
    pub target: SocketAddr,
}

impl Ends {
    /// Two addresses of which nothing else is known.
    pub fn between(reporter: Reporter, source: SocketAddr, target: SocketAddr) -> Self {
        Self {
            reporter,
            source: None,
            derived_source: None,
            source_principal: None,
            destination: None,
            derived_destination: None,
            destination_principal: None,
            service: None,
            security: Security::Unknown,
            source_addr: source,
            destination_addr: target,
            authority: None,
            original: None,
            target,
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source.as_deref(),
            derived_source: self.derived_source.as_ref(),
            source_principal: self.source_principal.as_ref(),
            destination: self.destination.as_deref(),
            derived_destination: self.derived_destination.as_ref(),
            destination_principal: self.destination_principal.as_ref(),
            service: self.service.as_deref(),
            security: self.security,
            ..Facts::new(self.reporter)
        }
    }

    fn entry(&self) -> AccessEntry<'_> {
        let mut entry = AccessEntry::opened(&self.facts(), self.source_addr, self.destination_addr);
        entry.hbone_addr = self.authority.as_ref();
        entry.opening = log::opening();
        entry
    }
}

/// A connection that counts. Dropping it unfinished reports that it was cut.
#[derive(Debug)]
pub struct Connection {
    shard: Arc<Shard>,
    entry: Arc<Entry>,
    counted: Counted,
    path: RefCell<Option<Path>>,
    finished: Cell<bool>,
}

impl Connection {
    /// Counts, registers and logs that the connection opened.
    pub fn open(shard: &Arc<Shard>, ends: Ends, start: Instant) -> Self {
        let about = [ends.source.as_ref(), ends.destination.as_ref()];
        let counted = shard.metrics.opened(Labels::new(&ends.facts()), about);
        log::access(&ends.entry());
        Self {
            shard: Arc::clone(shard),
            entry: shard.enter(ends, start),
            counted,
            path: RefCell::new(None),
            finished: Cell::new(false),
        }
    }

    /// Which way the bytes between the application and us take.
    pub fn set_path(&self, path: Path) {
        self.path.replace(Some(path));
    }

    /// The hop to the application stands, and this is what the kernel made of it; `place`: where to ask later.
    pub fn begin_hop(&self, path: Path, place: Option<Place>) {
        self.entry.begin_hop(path, place);
        self.set_path(path);
    }

    /// Counts and logs the end.
    pub fn finish(&self, outcome: &Outcome) {
        if self.finished.replace(true) {
            return;
        }
        self.counted.close(outcome.flag());
        self.shard.leave(&self.entry);
        let Entry { ends, start, .. } = &*self.entry;
        self.shard.refusals.late(&self.shard.pod, ends, outcome);
        // "Sent" is by this side: outbound what the application sent, inbound what it answered.
        let (sent, received) = self.entry.bytes();
        let (error, path) = (outcome.error(), self.path.borrow());
        let mut entry = ends.entry();
        entry.event = Event::Complete;
        entry.bytes = Some(Bytes { sent, received });
        entry.duration = Some(start.elapsed());
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
        self.shard.up(&self.entry, bytes);
        self.counted.series().received(bytes);
    }

    fn received(&self, bytes: usize) {
        self.shard.down(&self.entry, bytes);
        self.counted.series().sent(bytes);
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
