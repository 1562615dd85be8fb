// SPDX-License-Identifier: Apache-2.0
//! The connections that are open now: the one registry that the page, the command line and `config_dump` read.
//!
//! A [`Registry`] per pod, in it a [`Shard`] per worker: a connection enters and leaves the book of its own worker, whose
//! lock nobody else wants but a reader, for some microseconds at a time. While bytes flow it is not touched: they are counted in
//! numbers that only this worker writes, and rates are the reader's difference of two looks.

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

/// Entries that a reader takes before it lets the worker have its lock again.
const AT_A_TIME: usize = 256;
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
    opened: Count,
    sent: Count,
    received: Count,
}

/// A number that one thread counts up, and others may read.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, more: u64) {
        // There is one writer: no read-modify-write, which would cost a locked instruction.
        self.0.store(self.get() + more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Book {
    next: u64,
    open: BTreeMap<u64, Arc<Entry>>,
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

/// One open connection.
#[derive(Debug)]
pub struct Entry {
    /// Unique in its pod, for as long as the process lives.
    pub id: u64,
    /// Who talks to whom.
    pub ends: Ends,
    /// When it was accepted.
    pub start: Instant,
    /// Bytes that the pod sent, and was sent.
    sent: Count,
    received: Count,
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
        let book = Book { next: shards.len() as u64 * IDS, open: BTreeMap::new() };
        let shard = Arc::new(Shard {
            pod: Arc::clone(&self.pod),
            metrics: self.metrics.clone(),
            refusals: self.refusals.clone(),
            book: Mutex::new(book),
            opened: Count::default(),
            sent: Count::default(),
            received: Count::default(),
        });
        shards.push(Arc::clone(&shard));
        shard
    }

    /// All connections that are open, by id: of one worker the oldest first.
    pub fn open(&self) -> Vec<Arc<Entry>> {
        let mut all = Vec::new();
        for shard in self.shards.lock().iter() {
            shard.list(&mut all);
        }
        all
    }

    /// What they and those before them have carried.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for shard in self.shards.lock().iter() {
            totals.opened += shard.opened.get();
            totals.sent += shard.sent.get();
            totals.received += shard.received.get();
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
        let (sent, received, hop) = (Count::default(), Count::default(), OnceLock::new());
        let entry = Arc::new(Entry { id, ends, start, sent, received, hop });
        book.open.insert(id, Arc::clone(&entry));
        drop(book);
        self.opened.add(1);
        entry
    }

    /// It has ended.
    pub(super) fn leave(&self, entry: &Entry) {
        self.book.lock().open.remove(&entry.id);
    }

    /// Bytes went from downstream to upstream.
    pub(super) fn up(&self, entry: &Entry, bytes: usize) {
        match entry.ends.reporter {
            Reporter::Source => self.sent(entry, bytes),
            Reporter::Destination => self.received(entry, bytes),
        }
    }

    /// Bytes went from upstream to downstream.
    pub(super) fn down(&self, entry: &Entry, bytes: usize) {
        match entry.ends.reporter {
            Reporter::Source => self.received(entry, bytes),
            Reporter::Destination => self.sent(entry, bytes),
        }
    }

    fn sent(&self, entry: &Entry, bytes: usize) {
        entry.sent.add(bytes as u64);
        self.sent.add(bytes as u64);
    }

    fn received(&self, entry: &Entry, bytes: usize) {
        entry.received.add(bytes as u64);
        self.received.add(bytes as u64);
    }

    fn list(&self, all: &mut Vec<Arc<Entry>>) {
        let mut next = 0;
        loop {
            let before = all.len();
            let book = self.book.lock();
            all.extend(book.open.range(next..).take(AT_A_TIME).map(|(_, entry)| Arc::clone(entry)));
            drop(book);
            match all.last() {
                Some(last) if all.len() == before + AT_A_TIME => next = last.id + 1,
                Some(_) | None => return,
            }
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
    /// Bytes that this side, the pod, sent and was sent.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.get(), self.received.get())
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

    #[test]
    fn more_connections_than_a_reader_takes_at_a_time_are_all_there_once() {
        let registry = Registry::new("shop/web".into(), Metrics::default(), Refusals::default());
        let shard = registry.shard();
        let open = || Connection::open(&shard, ends(Reporter::Source), Instant::now());
        for count in [AT_A_TIME, 1, 2 * AT_A_TIME] {
            let all: Vec<_> = (0..count).map(|_| open()).collect();
            let ids: std::collections::BTreeSet<u64> = registry.open().iter().map(|entry| entry.id).collect();
            assert_eq!((ids.len(), registry.open().len()), (count, count));
            drop(all);
        }
    }
}
