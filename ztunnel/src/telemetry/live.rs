// SPDX-License-Identifier: Apache-2.0
//! The connections that are open now: the one registry that the page, the command line and `config_dump` read.
//!
//! A [`Registry`] per pod, in it a [`Shard`] per worker: a connection enters and leaves the book of its own worker, whose
//! lock nobody else wants but a reader of a few microseconds. While bytes flow it is not touched: a connection counts in
//! its own entry, and rates are the reader's difference of two looks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ztunnel_core::report::{Outcome, Reporter};

use super::connection::{Ends, turned_away};
use super::metrics::Metrics;
use super::refusals::Refusals;
use crate::fastpath::{Path, Place};

/// Ids of one shard begin this far from those of the next; all of them are exact in a JSON number.
const IDS: u64 = 1 << 40;

/// One pod's open connections.
#[derive(Debug)]
pub struct Registry {
    pod: Arc<str>,
    metrics: Metrics,
    refusals: Refusals,
    shards: Mutex<Vec<Arc<Shard>>>,
}

/// The open connections of one pod on one worker.
#[derive(Debug)]
pub struct Shard {
    /// The pod, as `namespace/name`.
    pub pod: Arc<str>,
    /// Where the connections are counted.
    pub metrics: Metrics,
    /// Where it is remembered who was turned away.
    pub refusals: Refusals,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    next: u64,
    open: BTreeMap<u64, Arc<Entry>>,
    past: Totals,
}

/// What a pod's connections have carried, the closed ones too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Connections that were opened.
    pub opened: u64,
    /// Bytes that the pod sent.
    pub sent: u64,
    /// Bytes that the pod was sent.
    pub received: u64,
}

impl Totals {
    fn add(&mut self, entry: &Entry) {
        let (sent, received) = entry.bytes();
        self.sent += sent;
        self.received += received;
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Entry {
    /// Unique in its pod, for as long as the process lives.
    pub id: u64,
    /// Who talks to whom.
    pub ends: Ends,
    /// When it was accepted.
    pub start: Instant,
    /// Bytes from downstream to upstream. Only its own task writes.
    up: AtomicU64,
    /// Bytes from upstream to downstream.
    down: AtomicU64,
    hop: OnceLock<Hop>,
}

/// How the hop between the application and us began.
#[derive(Debug, Clone, Copy)]
pub struct Hop {
    /// What the kernel said then.
    pub path: Path,
    /// Where to ask how it goes on; `None`: it stays on TCP.
    pub place: Option<Place>,
    /// From accept until bytes could flow: routing, tunnel, the application's own connect.
    pub opening: Duration,
}

impl Registry {
    /// Of a pod named `namespace/name`.
    pub fn new(pod: Arc<str>, metrics: Metrics, refusals: Refusals) -> Self {
        Self { pod, metrics, refusals, shards: Mutex::default() }
    }

    /// One more worker's share.
    pub fn shard(&self) -> Arc<Shard> {
        let mut shards = self.shards.lock();
        let book = Book { next: shards.len() as u64 * IDS, open: BTreeMap::new(), past: Totals::default() };
        let shard = Arc::new(Shard {
            pod: Arc::clone(&self.pod),
            metrics: self.metrics.clone(),
            refusals: self.refusals.clone(),
            book: Mutex::new(book),
        });
        shards.push(Arc::clone(&shard));
        shard
    }

    /// All connections that are open, by id: of one worker the oldest first.
    pub fn open(&self) -> Vec<Arc<Entry>> {
        let mut all = Vec::new();
        for shard in self.shards.lock().iter() {
            all.extend(shard.book.lock().open.values().map(Arc::clone));
        }
        all
    }

    /// What they and those before them have carried.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for shard in self.shards.lock().iter() {
            let book = shard.book.lock();
            totals.opened += book.past.opened;
            totals.sent += book.past.sent;
            totals.received += book.past.received;
            for entry in book.open.values() {
                totals.add(entry);
            }
        }
        totals
    }
}

impl Shard {
    /// Enters a connection.
    pub(super) fn enter(&self, ends: Ends, start: Instant) -> Arc<Entry> {
        let mut book = self.book.lock();
        let id = book.next;
        book.next += 1;
        book.past.opened += 1;
        let (up, down, hop) = (AtomicU64::new(0), AtomicU64::new(0), OnceLock::new());
        let entry = Arc::new(Entry { id, ends, start, up, down, hop });
        book.open.insert(id, Arc::clone(&entry));
        entry
    }

    /// It has ended.
    pub(super) fn leave(&self, entry: &Entry) {
        let mut book = self.book.lock();
        if book.open.remove(&entry.id).is_some() {
            book.past.add(entry);
        }
    }

    /// Logs and remembers a connection that was turned away before it counted.
    pub fn turned_away(
        &self,
        reporter: Reporter,
        source: SocketAddr,
        destination: SocketAddr,
        outcome: &Outcome,
    ) {
        turned_away(reporter, source, destination, outcome);
        self.refusals.early(&self.pod, reporter, (source, destination), outcome);
    }
}

impl Entry {
    /// Bytes went from downstream to upstream.
    pub(super) fn sent(&self, bytes: usize) {
        // There is one writer: no read-modify-write, which would cost a locked instruction.
        self.up.store(self.up.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
    }

    /// Bytes went from upstream to downstream.
    pub(super) fn received(&self, bytes: usize) {
        self.down.store(self.down.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that this side, the pod, sent and was sent: outbound it is the downstream, inbound the upstream.
    pub fn bytes(&self) -> (u64, u64) {
        let (up, down) = (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed));
        match self.ends.reporter {
            Reporter::Source => (up, down),
            Reporter::Destination => (down, up),
        }
    }

    /// The hop to the application stands. Only the first word counts.
    pub(super) fn begin_hop(&self, path: Path, place: Option<Place>) {
        self.hop.get_or_init(|| Hop { path, place, opening: self.start.elapsed() });
    }

    /// How the hop to the application began; `None`: it is not there yet.
    pub fn hop(&self) -> Option<&Hop> {
        self.hop.get()
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::Connection;
    use super::*;

    fn ends(reporter: Reporter) -> Ends {
        Ends::between(reporter, ([10, 0, 0, 1], 4000).into(), ([10, 0, 0, 2], 80).into())
    }

    #[test]
    fn open_connections_are_there_and_closed_ones_are_in_the_totals() {
        let registry = Registry::new("shop/web".into(), Metrics::default(), Refusals::default());
        let (first, second) = (registry.shard(), registry.shard());
        let outbound = Connection::open(&first, ends(Reporter::Source), Instant::now());
        let inbound = Connection::open(&second, ends(Reporter::Destination), Instant::now());
        {
            use crate::proxy::relay::Meter as _;
            outbound.sent(10);
            outbound.received(100);
            inbound.sent(1000);
            inbound.received(1);
        }
        let open = registry.open();
        assert_eq!(open.len(), 2);
        assert_ne!(open[0].id, open[1].id);
        assert_eq!((open[0].bytes(), open[1].bytes()), ((10, 100), (1, 1000)));
        let expected = Totals { opened: 2, sent: 11, received: 1100 };
        assert_eq!(registry.totals(), expected);
        outbound.finish(&Outcome::Complete);
        drop(inbound);
        assert!(registry.open().is_empty());
        assert_eq!(registry.totals(), expected);
    }
}
