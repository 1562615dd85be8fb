// SPDX-License-Identifier: Apache-2.0
//! The pool against callers who come, wait, fail and leave in any order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SETTINGS: Settings =
    Settings { max_streams_per_tunnel: 3, idle_release: Duration::from_secs(10), max_tunnels_per_key: 2 };

fn epoch() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a test needs a first instant")]
    Instant::now()
}

fn dial(pool: &mut Pool<u8>, key: u8) -> TunnelId {
    match pool.checkout(&key) {
        Checkout::Dial(id) => id,
        other @ (Checkout::Reuse(_) | Checkout::Wait(_)) => panic!("expected to dial, got {other:?}"),
    }
}

#[test]
fn one_dial_serves_all_who_fit() {
    let mut pool = Pool::new(SETTINGS);
    let id = dial(&mut pool, 1);
    assert_eq!(pool.checkout(&1), Checkout::Wait(id));
    assert_eq!(pool.checkout(&1), Checkout::Wait(id));
    let second = dial(&mut pool, 1);
    assert_ne!(second, id, "the fourth caller would not fit");
    assert!(matches!(pool.checkout(&2), Checkout::Dial(_)), "keys share nothing");
    pool.dialed(id, 100, epoch());
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id));
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id));
    assert_eq!(pool.checkout(&1), Checkout::Wait(second));
}

#[test]
fn the_peers_limit_counts_if_it_is_lower() {
    let mut pool = Pool::new(SETTINGS);
    let id = dial(&mut pool, 1);
    pool.dialed(id, 2, epoch());
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id));
    let second = dial(&mut pool, 1);
    pool.dialed(second, 100, epoch());
    pool.set_max_streams(id, 100);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id), "the oldest tunnel fills first");
    assert_eq!(pool.checkout(&1), Checkout::Reuse(second));
}

#[test]
fn a_tunnel_that_was_full_is_used_again() {
    let now = epoch();
    let mut pool = Pool::new(Settings { max_streams_per_tunnel: 1, ..SETTINGS });
    let id = dial(&mut pool, 1);
    pool.dialed(id, 1, epoch());
    assert!(matches!(pool.checkout(&1), Checkout::Dial(_)));
    assert_eq!(pool.stream_closed(id, now), Tenure::Kept);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id));
}

#[test]
fn a_busy_tunnel_is_avoided_while_another_is_allowed() {
    let mut pool = Pool::new(SETTINGS);
    let first = dial(&mut pool, 1);
    pool.dialed(first, 100, epoch());
    pool.set_busy(first, Load::Busy);
    let second = dial(&mut pool, 1);
    assert_eq!(pool.checkout(&1), Checkout::Wait(second));
    pool.dialed(second, 100, epoch());
    assert_eq!(pool.checkout(&1), Checkout::Reuse(second));
    pool.set_busy(second, Load::Busy);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(first), "both are busy: the emptier one");
    pool.set_busy(second, Load::Free);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(second));
}

#[test]
fn a_failed_surplus_dial_leaves_the_busy_tunnel_in_use() {
    let mut pool = Pool::new(SETTINGS);
    let first = dial(&mut pool, 1);
    pool.dialed(first, 100, epoch());
    pool.set_busy(first, Load::Busy);
    let second = dial(&mut pool, 1);
    pool.dial_failed(second);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(first));
}

#[test]
fn a_retired_tunnel_is_forgotten_with_its_last_stream() {
    let now = epoch();
    let mut pool = Pool::new(SETTINGS);
    let id = dial(&mut pool, 1);
    pool.dialed(id, 100, epoch());
    pool.checkout(&1);
    assert_eq!(pool.retire(id), Tenure::Kept);
    assert!(matches!(pool.checkout(&1), Checkout::Dial(_)));
    assert_eq!(pool.stream_closed(id, now), Tenure::Kept);
    assert_eq!(pool.stream_closed(id, now), Tenure::Forgotten);
    assert_eq!(pool.streams(id), None);
    assert_eq!(pool.stream_closed(id, now), Tenure::Forgotten, "once more changes nothing");
}

#[test]
fn idleness_begins_when_the_last_stream_ends() {
    let start = epoch();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut pool = Pool::new(SETTINGS);
    let id = dial(&mut pool, 1);
    pool.dialed(id, 100, epoch());
    assert_eq!(pool.next_expiry(), None, "a tunnel with streams does not expire");
    pool.stream_closed(id, at(5));
    assert_eq!(pool.next_expiry(), Some(at(15)));
    assert_eq!(pool.expired(at(14)), []);
    assert_eq!(pool.checkout(&1), Checkout::Reuse(id));
    assert_eq!(pool.expired(at(100)), []);
    pool.stream_closed(id, at(100));
    assert_eq!(pool.expired(at(110)), [id]);
    assert!(pool.is_empty());
}

#[test]
fn a_tunnel_whose_dialer_gave_up_is_idle_from_the_start() {
    let start = epoch();
    let mut pool = Pool::new(SETTINGS);
    let id = dial(&mut pool, 1);
    assert_eq!(pool.stream_closed(id, start), Tenure::Kept, "others may wait for it");
    pool.dialed(id, 100, start);
    assert_eq!(pool.expired(start + SETTINGS.idle_release), [id]);
}

#[test]
fn a_cleared_pool_takes_late_words_calmly() {
    let now = epoch();
    let mut pool = Pool::new(SETTINGS);
    let first = dial(&mut pool, 1);
    let second = dial(&mut pool, 2);
    assert_eq!(pool.clear(), [first, second]);
    pool.dialed(first, 100, epoch());
    pool.dial_failed(second);
    assert_eq!(pool.stream_closed(first, now), Tenure::Forgotten);
    assert_eq!(pool.retire(first), Tenure::Forgotten);
    assert!(pool.is_empty());
    assert_ne!(dial(&mut pool, 1), first, "names are never reused");
}

#[derive(Clone, Debug)]
enum Event {
    Arrive(u8),
    Dialed(usize, usize),
    DialFailed(usize),
    Leave(usize),
    Retire(usize),
    Busy(usize, bool),
    Limit(usize, usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0u8..3).prop_map(Event::Arrive),
        3 => (0usize..8, 1usize..5).prop_map(|(tunnel, limit)| Event::Dialed(tunnel, limit)),
        1 => (0usize..8).prop_map(Event::DialFailed),
        5 => (0usize..8).prop_map(Event::Leave),
        1 => (0usize..8).prop_map(Event::Retire),
        2 => (0usize..8, any::<bool>()).prop_map(|(tunnel, busy)| Event::Busy(tunnel, busy)),
        1 => (0usize..8, 0usize..5).prop_map(|(tunnel, limit)| Event::Limit(tunnel, limit)),
        2 => (0u64..12).prop_map(Event::Pass),
    ]
}

#[derive(Debug)]
struct Seen {
    key: u8,
    open: bool,
    retired: bool,
    busy: bool,
    streams: usize,
    limit: usize,
    waiters: usize,
}

impl Seen {
    fn has_room(&self) -> bool {
        self.streams + self.waiters < self.limit
    }
}

/// What a shell sees of its pool.
struct World {
    pool: Pool<u8>,
    now: Instant,
    tunnels: BTreeMap<TunnelId, Seen>,
    forgotten: BTreeSet<TunnelId>,
}

impl World {
    fn nth(&self, index: usize, wanted: impl Fn(&Seen) -> bool) -> Option<TunnelId> {
        let mut ids = self.tunnels.iter().filter(|(_, seen)| wanted(seen)).map(|(&id, _)| id);
        let count = ids.clone().count();
        ids.nth(index.checked_rem(count)?)
    }

    fn of(&self, key: u8) -> impl Iterator<Item = &Seen> {
        self.tunnels.values().filter(move |seen| seen.key == key && !seen.retired)
    }

    fn arrive(&mut self, key: u8) {
        let free = self.of(key).any(|seen| seen.open && !seen.busy && seen.has_room());
        let busy = self.of(key).any(|seen| seen.open && seen.busy && seen.has_room());
        let coming = self.of(key).any(|seen| !seen.open && seen.has_room());
        match self.pool.checkout(&key) {
            Checkout::Reuse(id) => {
                let seen = self.tunnels.get_mut(&id).expect("a tunnel that lives");
                assert!(seen.key == key && seen.open && !seen.retired, "{seen:?}");
                assert!(seen.streams < seen.limit, "more streams than the cap: {seen:?}");
                assert!(!seen.busy || !free && !coming, "a busy tunnel where a free one was to be had");
                seen.streams += 1;
            }
            Checkout::Wait(id) => {
                let seen = self.tunnels.get_mut(&id).expect("a tunnel that is dialed");
                assert!(seen.key == key && !seen.open && seen.has_room(), "{seen:?}");
                assert!(!free, "waiting where a tunnel was free");
                seen.waiters += 1;
            }
            Checkout::Dial(id) => {
                assert!(!free && !coming, "a dial beyond need");
                let tunnels = self.tunnels.values().filter(|seen| seen.key == key).count();
                assert!(!busy || tunnels < SETTINGS.max_tunnels_per_key, "too many surplus tunnels");
                let limit = SETTINGS.max_streams_per_tunnel;
                let seen =
                    Seen { key, open: false, retired: false, busy: false, streams: 1, limit, waiters: 0 };
                assert!(self.tunnels.insert(id, seen).is_none() && !self.forgotten.contains(&id));
            }
        }
    }

    /// A dial has settled: everyone who waited for it asks again.
    fn wake(&mut self, key: u8, waiters: usize) {
        for _ in 0..waiters {
            self.arrive(key);
        }
    }

    fn forget(&mut self, id: TunnelId) {
        self.tunnels.remove(&id);
        self.forgotten.insert(id);
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Arrive(key) => self.arrive(key),
            Event::Dialed(index, limit) => {
                let Some(id) = self.nth(index, |seen| !seen.open && !seen.retired) else { return };
                self.pool.dialed(id, limit, self.now);
                let seen = self.tunnels.get_mut(&id).unwrap();
                seen.open = true;
                seen.limit = limit.min(SETTINGS.max_streams_per_tunnel);
                let (key, waiters) = (seen.key, std::mem::take(&mut seen.waiters));
                self.wake(key, waiters);
            }
            Event::DialFailed(index) => {
                let Some(id) = self.nth(index, |seen| !seen.open && !seen.retired) else { return };
                self.pool.dial_failed(id);
                let Seen { key, waiters, .. } = self.tunnels[&id];
                self.forget(id);
                self.wake(key, waiters);
            }
            Event::Leave(index) => {
                let Some(id) = self.nth(index, |seen| seen.open && seen.streams > 0) else { return };
                let tenure = self.pool.stream_closed(id, self.now);
                let seen = self.tunnels.get_mut(&id).unwrap();
                seen.streams -= 1;
                let over = seen.retired && seen.streams == 0;
                assert_eq!(tenure == Tenure::Forgotten, over);
                if over {
                    self.forget(id);
                }
            }
            Event::Retire(index) => {
                let Some(id) = self.nth(index, |seen| seen.open) else { return };
                let tenure = self.pool.retire(id);
                let seen = self.tunnels.get_mut(&id).unwrap();
                seen.retired = true;
                let over = seen.streams == 0;
                assert_eq!(tenure == Tenure::Forgotten, over);
                if over {
                    self.forget(id);
                }
            }
            Event::Busy(index, busy) => {
                let Some(id) = self.nth(index, |seen| seen.open) else { return };
                self.pool.set_busy(id, if busy { Load::Busy } else { Load::Free });
                self.tunnels.get_mut(&id).unwrap().busy = busy;
            }
            Event::Limit(index, limit) => {
                let Some(id) = self.nth(index, |seen| seen.open) else { return };
                self.pool.set_max_streams(id, limit);
                self.tunnels.get_mut(&id).unwrap().limit = limit.min(SETTINGS.max_streams_per_tunnel);
            }
            Event::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                for id in self.pool.expired(self.now) {
                    let seen = &self.tunnels[&id];
                    assert!(seen.open && seen.streams == 0, "{seen:?}");
                    self.forget(id);
                }
                assert!(self.pool.next_expiry().is_none_or(|at| at > self.now));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_promises(events in proptest::collection::vec(event(), 0..120)) {
        let mut world = World {
            pool: Pool::new(SETTINGS),
            now: epoch(),
            tunnels: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        };
        for event in &events {
            world.apply(event);
            prop_assert_eq!(world.pool.len(), world.tunnels.len());
            let filed: usize = world.pool.buckets.values().map(|bucket| bucket.tunnels.len()).sum();
            prop_assert_eq!(filed, world.tunnels.len(), "a closed tunnel is forgotten everywhere");
            for (&id, seen) in &world.tunnels {
                prop_assert_eq!(world.pool.streams(id), Some(seen.streams));
            }
        }
        // Nobody waits for ever, and nothing stays when everybody has left.
        while world.nth(0, |seen| !seen.open).is_some() {
            world.apply(&Event::Dialed(0, 3));
        }
        while world.nth(0, |seen| seen.streams > 0).is_some() {
            world.apply(&Event::Leave(0));
        }
        world.apply(&Event::Pass(60));
        prop_assert!(world.pool.is_empty());
    }
}
