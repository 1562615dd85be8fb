// SPDX-License-Identifier: Apache-2.0
//! One pod's DNS proxy: listens in the pod, answers from the mesh, forwards the rest from inside the pod.
//!
//! * [`listen`]: the sockets. [`udp`], [`tcp`]: how queries come.
//! * [`serve`]: one query: what the core answers ([`ztunnel_core::dns`]), or [`forward`].
//!
//! What the mesh knows is answered at once, whatever the resolvers do; what is forwarded is bounded per pod, and each query
//! waits for itself alone.

pub mod forward;
pub mod listen;
pub mod serve;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;

pub use listen::{Listeners, bind};

use crate::config::dns::DnsConfig;
use crate::proxy::PodContext;
use crate::proxy::phase::PhaseWatch;

/// Queries of one pod that may wait at a time. Each has a socket of its own.
pub const MAX_WAITING: usize = 512;
/// DNS connections of one pod that may be open at a time.
pub const MAX_CONNECTIONS: usize = 256;

/// What one pod's DNS proxy holds, shared by the workers.
#[derive(Debug)]
pub struct PodDns {
    config: Arc<DnsConfig>,
    search: Vec<String>,
    waiting: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    /// The resolver that answered last: it is asked first.
    preferred: AtomicUsize,
}

impl PodDns {
    /// For a pod of this namespace.
    pub fn new(config: &Arc<DnsConfig>, namespace: &str) -> Self {
        Self {
            config: Arc::clone(config),
            search: config.search(namespace),
            waiting: Arc::default(),
            connections: Arc::default(),
            preferred: AtomicUsize::new(0),
        }
    }
}

/// One of a bounded number; dropping it makes room.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    /// Takes one if there are fewer than `limit`.
    fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        // Dropping the place gives it back.
        (taken.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves the DNS listeners of one pod on this worker until it is drained or cut.
pub async fn run(context: &Arc<PodContext>, listeners: Listeners, phase: &PhaseWatch) {
    let mut all = JoinSet::new();
    for socket in listeners.udp {
        all.spawn_local(udp::run(Arc::clone(context), socket, phase.clone()));
    }
    for listener in listeners.tcp {
        all.spawn_local(tcp::run(Arc::clone(context), listener, phase.clone()));
    }
    while all.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_places_are_taken_than_there_are() {
        let taken = Arc::default();
        let first = Place::take(&taken, 2);
        let second = Place::take(&taken, 2);
        assert!(first.is_some() && second.is_some() && Place::take(&taken, 2).is_none());
        drop(first);
        assert!(Place::take(&taken, 2).is_some());
        drop(second);
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }
}
