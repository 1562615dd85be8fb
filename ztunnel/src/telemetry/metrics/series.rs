// SPDX-License-Identifier: Apache-2.0
//! The series of connections: one entry per label set, resolved once per connection.
//!
//! Their number is bounded: peers describe themselves in baggage, and could make up names for ever. What does not fit
//! is counted in sets that tell only our own side apart ([`Labels::overflow`]). What nobody uses any more goes:
//!
//! * no connection is open, and none was for as long as the setting says;
//! * or no connection is open, none was for [`GONE_AFTER`], and a workload that the set is about has left the mesh
//!   (or was described anew: the next connection brings the set back, from zero, as after a restart).
//!
//! Invariant: a set with an open connection stays; its count is raised under the lock that expiry takes.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::{Flag, LabelFilter, Labels};

/// Enough for a few scrapes to see the last values of a workload that is gone.
pub const GONE_AFTER: Duration = Duration::from_secs(300);
/// Locks, so that a scrape that looks at one part of the sets holds up few connections, and not for long.
const SHARDS: usize = 16;
/// Scrapes at a time that keep the label sets as text: 20 MB each with 20,000 sets, for as long as its reader takes.
const TEXTS: usize = 4;

/// How many series there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `METRICS_LABELS`: the labels that tell series apart.
    pub labels: LabelFilter,
    /// `METRICS_MAX_SERIES`: label sets, beside those that take what overflows.
    pub max: usize,
    /// `METRICS_IDLE_TIMEOUT`: how long a set without connections is kept.
    pub idle: Duration,
}

impl Limits {
    /// `METRICS_MAX_SERIES`, if it is not set: 20 peers each for 1,000 workloads, three times over.
    pub const MAX: usize = 65_536;
    /// `METRICS_IDLE_TIMEOUT`, if it is not set.
    pub const IDLE: Duration = Duration::from_secs(3600);
}

impl Default for Limits {
    fn default() -> Self {
        Self { labels: LabelFilter::ALL, max: Self::MAX, idle: Self::IDLE }
    }
}

/// What is counted for one label set.
#[derive(Debug)]
pub struct Series {
    labels: Labels,
    opened: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// By number of the flag.
    closed: [AtomicU64; Flag::ALL.len()],
    /// Connections that have begun and not ended.
    open: AtomicU64,
    /// When one last began or ended, in seconds of the store's clock.
    used: AtomicU32,
    /// The workloads that the set was last about; a weak reference says when the mesh has dropped them.
    about: Mutex<[Weak<Workload>; 2]>,
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            closed: Default::default(),
            open: AtomicU64::new(0),
            used: AtomicU32::new(0),
            about: Mutex::new([Weak::new(), Weak::new()]),
        }
    }

    /// Bytes from the upstream to the downstream (`istio_tcp_sent_bytes`).
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes from the downstream to the upstream (`istio_tcp_received_bytes`).
    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The labels, with the flag `-`.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Connections that began, bytes received and bytes sent.
    pub fn traffic(&self) -> [u64; 3] {
        [&self.opened, &self.received, &self.sent].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Connections that ended with `flag`.
    pub fn closed(&self, flag: Flag) -> u64 {
        self.closed[flag as usize].load(Ordering::Relaxed)
    }

    fn begin(&self, now: u32, about: [Option<&Arc<Workload>>; 2]) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.used.store(now, Ordering::Relaxed);
        let mut known = self.about.lock();
        for (known, workload) in known.iter_mut().zip(about) {
            let same = match workload {
                Some(workload) => std::ptr::eq(Arc::as_ptr(workload), known.as_ptr()),
                None => known.ptr_eq(&Weak::new()),
            };
            if !same {
                *known = workload.map(Arc::downgrade).unwrap_or_default();
            }
        }
    }

    fn is_over(&self, now: u32, limits: &Limits) -> bool {
        let unused = Duration::from_secs(now.saturating_sub(self.used.load(Ordering::Relaxed)).into());
        let is_gone =
            |workload: &Weak<Workload>| !workload.ptr_eq(&Weak::new()) && workload.strong_count() == 0;
        self.open.load(Ordering::Relaxed) == 0
            && (unused >= limits.idle || unused >= GONE_AFTER && self.about.lock().iter().any(is_gone))
    }
}

/// A connection in its series: opened when this is made, closed once.
#[derive(Debug)]
pub struct Counted {
    series: Arc<Series>,
    epoch: Instant,
}

impl Counted {
    /// The series.
    pub fn series(&self) -> &Arc<Series> {
        &self.series
    }

    /// The connection ended with `flag`.
    pub fn close(&self, flag: Flag) {
        self.series.closed[flag as usize].fetch_add(1, Ordering::Relaxed);
        self.series.used.store(seconds(self.epoch), Ordering::Relaxed);
        // Last: expiry looks at it first.
        self.series.open.fetch_sub(1, Ordering::Release);
    }
}

/// Found by its labels.
#[derive(Debug)]
struct Entry(Arc<Series>);

impl Borrow<Labels> for Entry {
    fn borrow(&self) -> &Labels {
        &self.0.labels
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.labels == other.0.labels
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.labels.hash(state);
    }
}

/// All series.
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    epoch: Instant,
    hasher: RandomState,
    shards: [Mutex<HashSet<Entry>>; SHARDS],
    count: AtomicUsize,
    overflows: AtomicU64,
    expired: AtomicU64,
    texts: Semaphore,
}

impl Store {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            epoch: Instant::now(),
            hasher: RandomState::new(),
            shards: Default::default(),
            count: AtomicUsize::new(0),
            overflows: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            texts: Semaphore::new(TEXTS),
        }
    }

    /// Leave for a scrape to keep all label sets as text until it is read, if few others do.
    pub fn room_for_text(&self) -> Option<SemaphorePermit<'_>> {
        self.texts.try_acquire().ok()
    }

    /// The labels that are shown.
    pub fn filter(&self) -> LabelFilter {
        self.limits.labels
    }

    /// How many label sets there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections that were counted in sets for what overflows.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Label sets that nobody used any more.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// A connection with these labels, between these workloads, opened.
    pub fn open(&self, labels: Labels, about: [Option<&Arc<Workload>>; 2]) -> Counted {
        let max = self.limits.max;
        let labels = labels.only(self.limits.labels);
        let series = self.find(&labels, about, max).unwrap_or_else(|| {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            let overflow = labels.overflow();
            self.find(&overflow, about, max.saturating_mul(2)).unwrap_or_else(|| {
                let last = labels.overflow_of_all();
                self.find(&last, [None; 2], usize::MAX).expect("there is always room for the last sets")
            })
        });
        Counted { series, epoch: self.epoch }
    }

    /// The series, made if there are fewer than `room` sets.
    fn find(&self, labels: &Labels, about: [Option<&Arc<Workload>>; 2], room: usize) -> Option<Arc<Series>> {
        let now = seconds(self.epoch);
        let mut shard = self.shard(labels).lock();
        let series = match shard.get(labels) {
            Some(entry) => Arc::clone(&entry.0),
            None if self.len() >= room => return None,
            None => {
                let series = Arc::new(Series::new(labels.clone()));
                shard.insert(Entry(Arc::clone(&series)));
                self.count.fetch_add(1, Ordering::Relaxed);
                series
            }
        };
        series.begin(now, about);
        Some(series)
    }

    #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
    fn shard(&self, labels: &Labels) -> &Mutex<HashSet<Entry>> {
        &self.shards[self.hasher.hash_one(labels) as usize % SHARDS]
    }

    /// Drops the sets that nobody uses any more. To be called now and then.
    pub fn expire(&self) {
        self.expire_at(seconds(self.epoch));
    }

    fn expire_at(&self, now: u32) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|entry| !entry.0.is_over(now, &self.limits));
            let gone = before - shard.len();
            if gone > 0 && shard.capacity() > 4 * shard.len() {
                shard.shrink_to_fit();
            }
            drop(shard);
            self.count.fetch_sub(gone, Ordering::Relaxed);
            self.expired.fetch_add(gone as u64, Ordering::Relaxed);
        }
    }

    /// References to all series, in the order of their memory: who reads them all waits less for it, and neighbours
    /// have much in common. No lock is held for longer than a part of them takes.
    pub fn all(&self) -> Vec<Arc<Series>> {
        let mut all = Vec::with_capacity(self.len() + SHARDS);
        for shard in &self.shards {
            all.extend(shard.lock().iter().map(|entry| Arc::clone(&entry.0)));
        }
        all.sort_unstable_by_key(Arc::as_ptr);
        all
    }
}

/// Seconds since `epoch`; the clock of a process that has run for more than a hundred years stands still.
fn seconds(epoch: Instant) -> u32 {
    u32::try_from(epoch.elapsed().as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use ztunnel_core::report::{Facts, Reporter};

    use super::*;

    fn workload(name: &str) -> Arc<Workload> {
        Arc::new(Workload { workload_name: name.into(), ..Workload::default() })
    }

    fn labels(source: &Workload, destination: &Workload) -> Labels {
        Labels::new(&Facts {
            source: Some(source),
            destination: Some(destination),
            ..Facts::new(Reporter::Destination)
        })
    }

    fn open(store: &Store, source: &Arc<Workload>, destination: &Arc<Workload>) -> Counted {
        store.open(labels(source, destination), [Some(source), Some(destination)])
    }

    #[test]
    fn equal_labels_are_one_series_and_every_end_is_counted_by_its_flag() {
        let store = Store::new(Limits::default());
        let (client, server) = (workload("client"), workload("server"));
        let (first, second) = (open(&store, &client, &server), open(&store, &client, &server));
        assert_eq!(store.len(), 1);
        first.series().sent(3);
        second.series().received(4);
        first.close(Flag::None);
        second.close(Flag::Deny);
        let all = store.all();
        assert_eq!(all[0].traffic(), [2, 4, 3]);
        assert_eq!(Flag::ALL.map(|flag| all[0].closed(flag)), [1, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn whatever_peers_call_themselves_the_number_of_series_is_bounded() {
        let store = Store::new(Limits { max: 10, ..Limits::default() });
        let server = workload("server");
        let open: Vec<Counted> =
            (0..1000).map(|peer| open(&store, &workload(&format!("peer-{peer}")), &server)).collect();
        assert_eq!((store.len(), store.overflows()), (11, 990));
        let total: u64 = store.all().iter().map(|series| series.traffic()[0]).sum();
        assert_eq!(total, 1000, "every connection is counted somewhere");
        for peer in 0..1000 {
            let server = workload(&format!("server-{peer}"));
            store.open(labels(&workload("x"), &server), [None; 2]).close(Flag::None);
        }
        assert_eq!(store.len(), 21, "not even our own side can go on for ever");
        drop(open);
    }

    #[test]
    fn a_series_goes_when_nobody_uses_it_and_sooner_if_its_workload_is_gone() {
        let store = Store::new(Limits { idle: Duration::from_secs(1000), ..Limits::default() });
        let (stays, server) = (workload("stays"), workload("server"));
        let long = open(&store, &workload("busy"), &server);
        open(&store, &stays, &server).close(Flag::None);
        open(&store, &workload("gone"), &server).close(Flag::None);
        assert_eq!(store.len(), 3);
        store.expire_at(200);
        assert_eq!(store.len(), 3, "the last values are there for a few scrapes");
        store.expire_at(400);
        assert_eq!((store.len(), store.expired()), (2, 1));
        store.expire_at(1100);
        assert_eq!(store.len(), 1, "an open connection keeps its series");
        long.close(Flag::None);
        store.expire_at(1100 + 1000);
        assert_eq!((store.len(), store.all().len(), store.expired()), (0, 0, 3));
    }
}
