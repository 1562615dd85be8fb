// SPDX-License-Identifier: Apache-2.0
//! Decides which tunnel carries a new stream, when to dial another, and when to let one go.
//!
//! A *tunnel* is one mTLS HTTP/2 connection; a *stream* is one CONNECT in it. The pool knows tunnels by
//! [`TunnelId`] only: the shell keeps the sockets, tells the pool what happened to them, and asks
//! [`Pool::checkout`] where the next stream goes.
//!
//! Invariants: a tunnel is never given more streams than its peer allows; one dial serves everybody who
//! can share its tunnel; whoever waits can ask again as soon as the dial settles, however it settles; a
//! tunnel without streams is forgotten when it was retired or stayed idle for too long.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The pool's name for one tunnel; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(u64);

/// How a pool behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Streams per tunnel at most, however many the peer would take.
    pub max_streams_per_tunnel: usize,
    /// How long a tunnel without streams is kept.
    pub idle_release: Duration,
    /// How many tunnels to one key are opened because the existing ones are busy. A key whose tunnels
    /// are full gets another one in any case.
    pub max_tunnels_per_key: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_streams_per_tunnel: 100, idle_release: Duration::from_secs(300), max_tunnels_per_key: 4 }
    }
}

/// Where a new stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkout {
    /// Open the stream on this tunnel: one of its streams is reserved for the caller, who owes
    /// [`Pool::stream_closed`].
    Reuse(TunnelId),
    /// Dial, then say [`Pool::dialed`] or [`Pool::dial_failed`]. One stream is reserved for the caller.
    Dial(TunnelId),
    /// Somebody dials a tunnel with room for the caller. Nothing is reserved: ask again when that dial
    /// has settled.
    Wait(TunnelId),
}

/// What the pool knows about a tunnel after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// The tunnel lives on.
    Kept,
    /// The pool has forgotten the tunnel: the shell drops its handle.
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not established. `waiters` callers were sent to wait for it.
    Dialing { waiters: usize },
    /// Takes streams.
    Open,
    /// Takes no new streams; forgotten when the last one ends.
    Retired,
}

#[derive(Debug)]
struct Tunnel<K> {
    key: K,
    state: State,
    streams: usize,
    max_streams: usize,
    busy: bool,
    idle_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Oldest first: new streams fill the oldest tunnel, so that surplus ones fall idle and are released.
    tunnels: Vec<TunnelId>,
    /// A dial failed while others were alive: do not try for a surplus tunnel again until one of them ends.
    no_surplus: bool,
}

/// The tunnels of one pod, by destination.
#[derive(Debug)]
pub struct Pool<K> {
    settings: Settings,
    next_id: u64,
    tunnels: HashMap<TunnelId, Tunnel<K>>,
    buckets: HashMap<K, Bucket>,
    idle: BTreeSet<(Instant, TunnelId)>,
}

impl<K: Clone + Eq + Hash> Pool<K> {
    /// An empty pool.
    pub fn new(settings: Settings) -> Self {
        Self { settings, next_id: 0, tunnels: HashMap::new(), buckets: HashMap::new(), idle: BTreeSet::new() }
    }

    /// Where the next stream to `key` goes. A tunnel past its idle time is used as long as it is there.
    pub fn checkout(&mut self, key: &K) -> Checkout {
        let choice = self.buckets.get(key).map_or(Choice::Dial, |bucket| self.choose(bucket));
        match choice {
            Choice::Reuse(id) => {
                self.reserve(id);
                Checkout::Reuse(id)
            }
            Choice::Wait(id) => {
                if let Some(Tunnel { state: State::Dialing { waiters }, .. }) = self.tunnels.get_mut(&id) {
                    *waiters += 1;
                }
                Checkout::Wait(id)
            }
            Choice::Dial => Checkout::Dial(self.add(key)),
        }
    }

    /// The dial succeeded, and the peer takes `max_streams` streams. Waiters may ask again.
    pub fn dialed(&mut self, id: TunnelId, max_streams: usize, now: Instant) {
        let limit = self.settings.max_streams_per_tunnel;
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.max_streams = max_streams.min(limit);
        if matches!(tunnel.state, State::Dialing { .. }) {
            tunnel.state = State::Open;
            if tunnel.streams == 0 {
                // Who dialed has given up meanwhile.
                tunnel.idle_since = Some(now);
                self.idle.insert((now, id));
            }
        }
    }

    /// The dial failed or was given up: the tunnel never was. Waiters may ask again.
    pub fn dial_failed(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        if !matches!(tunnel.state, State::Dialing { .. }) {
            return;
        }
        let key = tunnel.key.clone();
        self.forget(id);
        if let Some(bucket) = self.buckets.get_mut(&key) {
            bucket.no_surplus = true;
        }
    }

    /// A stream that was reserved has ended, or was never opened.
    pub fn stream_closed(&mut self, id: TunnelId, now: Instant) -> Tenure {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return Tenure::Forgotten };
        tunnel.streams = tunnel.streams.saturating_sub(1);
        if tunnel.streams > 0 {
            return Tenure::Kept;
        }
        match tunnel.state {
            State::Retired => {
                self.forget(id);
                Tenure::Forgotten
            }
            State::Dialing { .. } => Tenure::Kept,
            State::Open => {
                if let Some(earlier) = tunnel.idle_since.replace(now) {
                    self.idle.remove(&(earlier, id));
                }
                self.idle.insert((now, id));
                Tenure::Kept
            }
        }
    }

    /// The peer changed how many streams it takes.
    pub fn set_max_streams(&mut self, id: TunnelId, max_streams: usize) {
        let limit = self.settings.max_streams_per_tunnel;
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.max_streams = max_streams.min(limit);
        }
    }

    /// A busy tunnel is avoided as long as its key may have another one.
    pub fn set_busy(&mut self, id: TunnelId, load: Load) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.busy = load == Load::Busy;
        }
    }

    /// The peer said goodbye, or the tunnel failed: no new streams. Streams that are open may finish.
    pub fn retire(&mut self, id: TunnelId) -> Tenure {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return Tenure::Forgotten };
        tunnel.state = State::Retired;
        if tunnel.streams > 0 {
            return Tenure::Kept;
        }
        self.forget(id);
        Tenure::Forgotten
    }

    /// Forgets the tunnels that have been idle for too long and names them, for the shell to close.
    pub fn expired(&mut self, now: Instant) -> Vec<TunnelId> {
        let mut expired = Vec::new();
        while let Some((since, id)) = self.idle.pop_first() {
            if now.saturating_duration_since(since) < self.settings.idle_release {
                self.idle.insert((since, id));
                break;
            }
            self.forget(id);
            expired.push(id);
        }
        expired
    }

    /// When [`expired`](Self::expired) will next have something to say.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.idle.first().and_then(|(since, _)| since.checked_add(self.settings.idle_release))
    }

    /// Forgets everything and names what there was: the pod is gone.
    pub fn clear(&mut self) -> Vec<TunnelId> {
        self.buckets.clear();
        self.idle.clear();
        let mut ids: Vec<TunnelId> = self.tunnels.drain().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// How many tunnels there are, those being dialed included.
    pub fn len(&self) -> usize {
        self.tunnels.len()
    }

    /// Whether there is no tunnel at all.
    pub fn is_empty(&self) -> bool {
        self.tunnels.is_empty()
    }

    /// How many streams a tunnel carries or has reserved; nothing for a forgotten one.
    pub fn streams(&self, id: TunnelId) -> Option<usize> {
        self.tunnels.get(&id).map(|tunnel| tunnel.streams)
    }

    fn choose(&self, bucket: &Bucket) -> Choice {
        let mut busy: Option<(usize, TunnelId)> = None;
        let mut dialing = None;
        for &id in &bucket.tunnels {
            let Some(tunnel) = self.tunnels.get(&id) else { continue };
            match tunnel.state {
                State::Dialing { waiters } => {
                    if tunnel.streams + waiters < tunnel.max_streams {
                        dialing.get_or_insert(id);
                    }
                }
                State::Open if tunnel.streams >= tunnel.max_streams => {}
                State::Open if !tunnel.busy => return Choice::Reuse(id),
                State::Open => {
                    if busy.is_none_or(|(streams, _)| tunnel.streams < streams) {
                        busy = Some((tunnel.streams, id));
                    }
                }
                State::Retired => {}
            }
        }
        let may_grow = !bucket.no_surplus && bucket.tunnels.len() < self.settings.max_tunnels_per_key;
        match (dialing, busy) {
            (Some(id), _) => Choice::Wait(id),
            (None, Some(_)) if may_grow => Choice::Dial,
            (None, Some((_, id))) => Choice::Reuse(id),
            (None, None) => Choice::Dial,
        }
    }

    fn add(&mut self, key: &K) -> TunnelId {
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        let tunnel = Tunnel {
            key: key.clone(),
            state: State::Dialing { waiters: 0 },
            streams: 1,
            max_streams: self.settings.max_streams_per_tunnel,
            busy: false,
            idle_since: None,
        };
        self.tunnels.insert(id, tunnel);
        self.buckets.entry(key.clone()).or_default().tunnels.push(id);
        id
    }

    fn reserve(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.streams += 1;
            if let Some(since) = tunnel.idle_since.take() {
                self.idle.remove(&(since, id));
            }
        }
    }

    fn forget(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.remove(&id) else { return };
        if let Some(since) = tunnel.idle_since {
            self.idle.remove(&(since, id));
        }
        if let Some(bucket) = self.buckets.get_mut(&tunnel.key) {
            bucket.tunnels.retain(|&other| other != id);
            bucket.no_surplus = false;
            if bucket.tunnels.is_empty() {
                self.buckets.remove(&tunnel.key);
            }
        }
    }
}

/// Whether a tunnel has bytes waiting that a new stream would queue behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// New streams are served at once.
    Free,
    /// New streams would wait behind others' bytes.
    Busy,
}

enum Choice {
    Reuse(TunnelId),
    Wait(TunnelId),
    Dial,
}

#[cfg(test)]
mod tests;
