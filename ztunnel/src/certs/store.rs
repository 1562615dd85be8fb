// SPDX-License-Identifier: Apache-2.0
//! Every certificate of this node, and the door to one pod's.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use ztunnel_core::certs::{Priority, Schedule, Tenure};
use ztunnel_core::identity::Identity;

use super::{CertError, Certificate};
use crate::mesh::{LocalPod, SharedMesh};
use crate::tls::Tls;

/// How long a handshake waits for its pod's first certificate.
pub const CERTIFICATE_WAIT: Duration = Duration::from_secs(10);

/// What there is of an identity.
#[derive(Debug, Clone)]
pub enum State {
    /// Nothing yet.
    Initializing,
    /// A certificate; while its renewal fails it is kept until it ends.
    Available(Arc<Certificate>),
    /// None, because the last attempt failed.
    Unavailable(CertError),
}

/// Every certificate of this node.
#[derive(Debug, Clone, Default)]
pub struct CertStore(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Held for as long as it takes to look something up: never during IO.
    book: Mutex<Book>,
    /// Wakes the keeper.
    changed: Notify,
    tls: Tls,
}

/// Who needs what, and what there is.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) schedule: Schedule,
    /// One for each identity in the schedule.
    pub(super) slots: BTreeMap<Identity, watch::Sender<State>>,
    /// Pods whose certificate nobody has asked for yet.
    pub(super) newcomers: Vec<Weak<PodCerts>>,
}

impl CertStore {
    /// An empty store, for handshakes done in this way.
    pub fn new(tls: Tls) -> Self {
        Self(Arc::new(Inner { tls, ..Inner::default() }))
    }

    /// How handshakes with peers are done.
    pub fn tls(&self) -> &Tls {
        &self.0.tls
    }

    /// The door to one pod's certificates. They are fetched as soon as the mesh knows the pod.
    pub fn pod(&self, mesh: SharedMesh, pod: LocalPod) -> Arc<PodCerts> {
        let certs = Arc::new(PodCerts { store: self.clone(), mesh, pod, held: Mutex::new(None) });
        self.0.book.lock().newcomers.push(Arc::downgrade(&certs));
        self.0.changed.notify_one();
        certs
    }

    /// What there is of every identity, sorted, for the admin dump.
    pub fn all(&self) -> Vec<(Identity, State)> {
        let book = self.0.book.lock();
        book.slots.iter().map(|(identity, slot)| (identity.clone(), slot.borrow().clone())).collect()
    }

    /// For the keeper, and for moments only.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Book) -> T) -> T {
        f(&mut self.0.book.lock())
    }

    /// Returns when there may be something to do.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn hold(&self, identity: &Identity) -> watch::Receiver<State> {
        let mut book = self.0.book.lock();
        book.schedule.hold(identity, Priority::Warmup, Instant::now());
        let slot =
            book.slots.entry(identity.clone()).or_insert_with(|| watch::Sender::new(State::Initializing));
        let state = slot.subscribe();
        drop(book);
        self.0.changed.notify_one();
        state
    }

    fn release(&self, identity: &Identity) {
        let mut book = self.0.book.lock();
        if book.schedule.release(identity) == Tenure::Unwanted {
            book.slots.remove(identity);
        }
    }

    /// Somebody waits for a certificate.
    pub(super) fn demand(&self, identity: &Identity) {
        let mut book = self.0.book.lock();
        // It may have come since the caller looked: then to demand it would fetch a second one.
        let open = book.slots.get(identity).is_some_and(|slot| usable(&slot.borrow()).is_none());
        if open {
            book.schedule.demand(identity, Instant::now());
        }
        drop(book);
        self.0.changed.notify_one();
    }
}

/// The door to one pod's certificate: the pod's identity is what the mesh says it is, now.
#[derive(Debug)]
pub struct PodCerts {
    store: CertStore,
    mesh: SharedMesh,
    pod: LocalPod,
    held: Mutex<Option<Held>>,
}

/// The identity whose certificate we keep alive.
#[derive(Debug)]
struct Held {
    identity: Identity,
    state: watch::Receiver<State>,
    store: CertStore,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.release(&self.identity);
    }
}

impl PodCerts {
    /// The current certificate. Waits a little for the pod's description and for its first certificate.
    ///
    /// # Errors
    /// The pod is not in the mesh, or the authority has not issued a certificate.
    ///
    /// # Cancel safety
    /// Nothing is lost: the certificate is still being fetched.
    pub async fn current(&self) -> Result<Arc<Certificate>, CertError> {
        let known = self.mesh.local_workload(&self.pod).await;
        let workload = known.map_err(|_refusal| CertError::UnknownWorkload {
            namespace: Arc::clone(&self.pod.namespace),
            name: Arc::clone(&self.pod.name),
        })?;
        let identity = workload.identity();
        let mut state = self.state(&identity);
        let known = usable(&state.borrow());
        if let Some(result) = known {
            return result;
        }
        self.store.demand(&identity);
        let decided = state.wait_for(|state| usable(state).is_some());
        match tokio::time::timeout(CERTIFICATE_WAIT, decided).await {
            Ok(Ok(state)) => usable(&state).unwrap_or_else(|| Err(waiting(&identity))),
            // The identity is no longer this pod's, or nobody will ever fetch it.
            Ok(Err(_)) | Err(_) => Err(waiting(&identity)),
        }
    }

    /// How handshakes with peers are done.
    pub fn tls(&self) -> &Tls {
        self.store.tls()
    }

    /// Has the certificate fetched, if the mesh knows the pod by now.
    pub(super) fn warm_up(&self) -> bool {
        match self.mesh.find_local(&self.pod) {
            Some(workload) => {
                drop(self.state(&workload.identity()));
                true
            }
            None => false,
        }
    }

    fn state(&self, identity: &Identity) -> watch::Receiver<State> {
        let mut held = self.held.lock();
        if let Some(held) = &*held
            && held.identity == *identity
        {
            return held.state.clone();
        }
        let state = self.store.hold(identity);
        let new = Held { identity: identity.clone(), state: state.clone(), store: self.store.clone() };
        let old = held.replace(new);
        drop(held);
        // What an earlier description said is released after the new one is held: the two may share a certificate.
        drop(old);
        state
    }
}

/// What to tell somebody who asks now; `None`: it is not decided yet.
fn usable(state: &State) -> Option<Result<Arc<Certificate>, CertError>> {
    match state {
        State::Available(certificate) if !certificate.validity.is_over(SystemTime::now()) => {
            Some(Ok(Arc::clone(certificate)))
        }
        State::Unavailable(error) => Some(Err(error.clone())),
        State::Initializing | State::Available(_) => None,
    }
}

fn waiting(identity: &Identity) -> CertError {
    CertError::Waiting { identity: identity.clone(), seconds: CERTIFICATE_WAIT.as_secs() }
}
