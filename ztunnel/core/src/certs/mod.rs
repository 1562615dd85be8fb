// SPDX-License-Identifier: Apache-2.0
//! Which identity's certificate is fetched when.
//!
//! [`Schedule`] knows every identity that somebody on this node needs, and gives out what to fetch next: at most
//! [`MAX_IN_FLIGHT`] at once, one per identity, the most urgent first. The certificates themselves, and those who wait
//! for them, are the shell's. Source: control-plane contract, section 4.4.
//!
//! * [`life`]: from dates to times. * [`backoff`]: after a failure. * [`proto`]: the messages.

pub mod backoff;
pub mod life;
pub mod proto;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::identity::Identity;
use backoff::Backoff;
pub use life::{DateError, Life, Validity};

/// Requests that may be under way at once.
pub const MAX_IN_FLIGHT: usize = 8;

/// How urgent a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal: the current one still serves.
    Background,
    /// Nobody waits yet.
    Warmup,
    /// A handshake waits.
    RealTime,
}

/// What has become of a fetched certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// Somebody needs it.
    Kept,
    /// Nobody needs the identity any more: throw it away.
    Unwanted,
}

/// Every identity that is needed, and when each is fetched.
#[derive(Debug, Default)]
pub struct Schedule {
    /// At most a few hundred on a node: looking through all of them is cheap.
    entries: BTreeMap<Identity, Entry>,
    /// Whose request is under way; it may be nobody's any more.
    in_flight: BTreeSet<Identity>,
}

#[derive(Debug)]
struct Entry {
    /// How many need it.
    users: usize,
    /// When it is fetched next, unless a request is under way.
    at: Instant,
    priority: Priority,
    /// The end of the certificate that we have.
    ends_at: Option<Instant>,
    /// Since the last success.
    failing: Option<Backoff>,
}

impl Schedule {
    /// One more user of an identity. The first one has it fetched.
    pub fn hold(&mut self, identity: &Identity, priority: Priority, now: Instant) {
        let new = Entry { users: 0, at: now, priority, ends_at: None, failing: None };
        let entry = self.entries.entry(identity.clone()).or_insert(new);
        entry.users += 1;
    }

    /// One user less. The last one has it forgotten: what is under way will be [`Tenure::Unwanted`].
    pub fn release(&mut self, identity: &Identity) -> Tenure {
        let Some(entry) = self.entries.get_mut(identity) else { return Tenure::Unwanted };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return Tenure::Kept;
        }
        self.entries.remove(identity);
        Tenure::Unwanted
    }

    /// Somebody waits for the certificate, and there is no usable one. Raises its priority; what is being backed off
    /// from does not come any earlier.
    pub fn demand(&mut self, identity: &Identity, now: Instant) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.priority = Priority::RealTime;
            if entry.failing.is_none() {
                entry.at = entry.at.min(now);
            }
        }
    }

    /// The next request to send, if there is one now. Every one of them must end in [`fetched`](Self::fetched) or
    /// [`failed`](Self::failed).
    pub fn poll_fetch(&mut self, now: Instant) -> Option<Identity> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let due = self.waiting().filter(|(_, entry)| entry.at <= now);
        let (identity, _) =
            due.max_by(|(_, a), (_, b)| a.priority.cmp(&b.priority).then_with(|| b.at.cmp(&a.at)))?;
        let identity = identity.clone();
        self.in_flight.insert(identity.clone());
        Some(identity)
    }

    /// When [`poll_fetch`](Self::poll_fetch) may have something next. `None`: not before something else happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        self.waiting().map(|(_, entry)| entry.at).min()
    }

    fn waiting(&self) -> impl Iterator<Item = (&Identity, &Entry)> {
        self.entries.iter().filter(|(identity, _)| !self.in_flight.contains(*identity))
    }

    /// A request ended with a certificate. It will be renewed.
    pub fn fetched(&mut self, identity: &Identity, life: Life) -> Tenure {
        self.in_flight.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return Tenure::Unwanted };
        entry.at = life.renew_at;
        entry.priority = Priority::Background;
        entry.ends_at = Some(life.ends_at);
        entry.failing = None;
        Tenure::Kept
    }

    /// A request ended without one. Gives how long until the next, if anybody still needs it: no later than the moment
    /// at which the one that we have ends.
    pub fn failed(&mut self, identity: &Identity, now: Instant, entropy: u64) -> Option<Duration> {
        self.in_flight.remove(identity);
        let entry = self.entries.get_mut(identity)?;
        let wait = entry.failing.get_or_insert_with(|| Backoff::begin(now)).next_wait(now, entropy);
        let at = now + wait;
        entry.at = entry.ends_at.filter(|ends| *ends > now).map_or(at, |ends| ends.min(at));
        Some(entry.at.saturating_duration_since(now))
    }

    /// How many identities are needed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests;
