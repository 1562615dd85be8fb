// SPDX-License-Identifier: Apache-2.0
//! Who was turned away lately, by whom and why: what answers "requests of this pod fail".
//!
//! Equal refusals are one with a count, so that a client that tries again and again hides nobody else's; the number of
//! different ones is bounded, and the one that was seen longest ago goes first.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::{Flag, Outcome, Reporter};

use super::connection::Ends;

/// Different refusals that are remembered.
const MAX: usize = 256;

/// The recent refusals of this node. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<HashMap<Key, Refusal>>>);

/// What makes two refusals the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: Arc<str>,
    outbound: bool,
    source: String,
    destination: String,
    error: String,
}

/// A refusal, and how often it was seen.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The pod of this node that was one of its ends, as `namespace/name`.
    pub pod: Arc<str>,
    /// Which end: outbound it is the source.
    pub reporter: Reporter,
    /// The source, if the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// What mutual TLS proved of the source.
    pub source_identity: Option<Identity>,
    /// The source's address, the last time.
    pub source_addr: SocketAddr,
    /// The destination, if the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// What was to be reached: the application's address, as far as it was known.
    pub target: SocketAddr,
    /// The hostname of the service that the source addressed.
    pub service: Option<String>,
    /// `response_flags`.
    pub flag: Flag,
    /// What the peer was answered, or answered.
    pub status: u16,
    /// As in the access log.
    pub error: String,
    /// How often.
    pub count: u64,
    /// For the first time.
    pub first: SystemTime,
    /// For the last time.
    pub last: SystemTime,
}

impl Refusals {
    /// A connection that counted came to nothing.
    pub(super) fn late(&self, pod: &Arc<str>, ends: &Ends, outcome: &Outcome) {
        if !outcome.is_refusal() {
            return;
        }
        let service = ends.service.as_ref().map(|service| service.hostname.to_string());
        self.remember(outcome, |error| Refusal {
            source: ends.source.clone(),
            source_identity: ends.source_principal.clone(),
            destination: ends.destination.clone(),
            service,
            ..Refusal::new(pod, ends.reporter, (ends.source_addr, ends.target), outcome, error)
        });
    }

    /// A connection was turned away before it counted.
    pub(super) fn early(
        &self,
        pod: &Arc<str>,
        reporter: Reporter,
        addresses: (SocketAddr, SocketAddr),
        outcome: &Outcome,
    ) {
        if outcome.is_refusal() {
            self.remember(outcome, |error| Refusal::new(pod, reporter, addresses, outcome, error));
        }
    }

    fn remember(&self, outcome: &Outcome, refusal: impl FnOnce(String) -> Refusal) {
        let refusal = refusal(outcome.to_string());
        let key = refusal.key();
        let mut all = self.0.lock();
        if let Some(known) = all.get_mut(&key) {
            let (first, count) = (known.first, known.count + 1);
            *known = Refusal { first, count, ..refusal };
            return;
        }
        if all.len() >= MAX {
            let oldest = all.iter().min_by_key(|(_, refusal)| refusal.last).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        all.insert(key, refusal);
    }

    /// All of them, the latest first.
    pub fn list(&self) -> Vec<Refusal> {
        let mut all: Vec<Refusal> = self.0.lock().values().cloned().collect();
        all.sort_by_key(|refusal| std::cmp::Reverse(refusal.last));
        all
    }
}

impl Refusal {
    fn new(
        pod: &Arc<str>,
        reporter: Reporter,
        (source_addr, target): (SocketAddr, SocketAddr),
        outcome: &Outcome,
        error: String,
    ) -> Self {
        let now = SystemTime::now();
        Self {
            pod: Arc::clone(pod),
            reporter,
            source: None,
            source_identity: None,
            source_addr,
            destination: None,
            target,
            service: None,
            flag: outcome.flag(),
            status: outcome.status(),
            error,
            count: 1,
            first: now,
            last: now,
        }
    }

    /// The source's ports change with every attempt, and do not make it another refusal.
    fn key(&self) -> Key {
        let source = match (&self.source_identity, &self.source) {
            (Some(identity), _) => identity.to_string(),
            (None, Some(workload)) => workload.uid.to_string(),
            (None, None) => self.source_addr.ip().to_string(),
        };
        Key {
            pod: Arc::clone(&self.pod),
            outbound: self.reporter == Reporter::Source,
            source,
            destination: self.target.to_string(),
            error: self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ztunnel_core::report::Cut;

    use super::*;

    fn addr(last: u8, port: u16) -> SocketAddr {
        ([10, 0, 0, last], port).into()
    }

    fn deny(refusals: &Refusals, from: SocketAddr, port: u16) {
        let ends = Ends::between(Reporter::Destination, from, addr(2, port));
        refusals.late(&"shop/db".into(), &ends, &Outcome::Denied("explicitly denied by: shop/nobody".into()));
    }

    #[test]
    fn attempts_of_one_client_are_one_refusal() {
        let refusals = Refusals::default();
        for port in 4000..4010 {
            deny(&refusals, addr(1, port), 80);
        }
        deny(&refusals, addr(3, 4000), 80);
        let found = refusals.list();
        assert_eq!(found.iter().map(|refusal| refusal.count).collect::<Vec<_>>(), [1, 10]);
        assert!(found[1].error.ends_with("explicitly denied by: shop/nobody"));
        assert_eq!((found[1].flag, found[1].status, found[1].source_addr), (Flag::Deny, 401, addr(1, 4009)));
    }

    #[test]
    fn the_number_of_refusals_is_bounded_and_the_latest_stay() {
        let refusals = Refusals::default();
        for port in 0..1000 {
            deny(&refusals, addr(1, 1), port);
        }
        let found = refusals.list();
        assert_eq!(found.len(), MAX);
        assert_eq!(found[0].target.port(), 999);
    }

    #[test]
    fn ordinary_ends_are_not_refusals() {
        let refusals = Refusals::default();
        let ends = Ends::between(Reporter::Source, addr(1, 1), addr(2, 2));
        for outcome in [Outcome::Complete, Outcome::Cut(Cut::Drain), Outcome::Io("reset".into())] {
            refusals.late(&"shop/web".into(), &ends, &outcome);
        }
        assert!(refusals.list().is_empty());
    }
}
