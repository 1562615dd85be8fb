// SPDX-License-Identifier: Apache-2.0
//! Who is let into a pod, and for how long: a connection that loses its permission is closed. Every inbound connection
//! of a pod is judged again when policies, or the pod's own description, may have changed the answer.
//!
//! One task per pod and worker does the judging. A connection only looks at a cell of its own, so that relaying a
//! message costs no lock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tracing::{debug, info};
use ztunnel_core::authz::{self, Because, Facts, Verdict};
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::Mesh;
use ztunnel_core::report::{Cut, Outcome};

use super::PodContext;

/// So many connections are judged in a row; then others have their turn.
const IN_A_ROW: usize = 256;

/// The permissions that are in use.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    all: RefCell<BTreeMap<u64, Rc<Entry>>>,
    next: Cell<u64>,
}

/// What was judged, and whether it still holds.
#[derive(Debug)]
struct Entry {
    source: SocketAddr,
    target: SocketAddr,
    identity: Option<Identity>,
    lost: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The permission of one connection, in use until it is dropped.
#[derive(Debug)]
pub(super) struct Permission {
    permissions: Rc<Permissions>,
    id: u64,
    entry: Rc<Entry>,
}

impl Permissions {
    /// Keeps an eye on a connection. Before its first judgment, so that no change falls between the two.
    pub(super) fn watch(
        self: &Rc<Self>,
        source: SocketAddr,
        target: SocketAddr,
        identity: Option<&Identity>,
    ) -> Permission {
        let id = self.next.get();
        self.next.set(id + 1);
        let identity = identity.cloned();
        let entry =
            Rc::new(Entry { source, target, identity, lost: Cell::new(false), waker: RefCell::new(None) });
        self.all.borrow_mut().insert(id, Rc::clone(&entry));
        Permission { permissions: Rc::clone(self), id, entry }
    }

    /// Judges all connections again whenever the answer may be another. Never ends.
    pub(super) async fn keep_current(&self, context: &PodContext) {
        let mesh = &context.shared.mesh;
        let mut changes = mesh.authorization_changes();
        let mut last = (*changes.borrow_and_update(), mesh.find_local(&context.pod));
        while changes.changed().await.is_ok() {
            let now = (*changes.borrow_and_update(), mesh.find_local(&context.pod));
            // The same policies, and the same description of the pod: it was about another one.
            let same = now.0 == last.0 && now.1.as_ref().map(Arc::as_ptr) == last.1.as_ref().map(Arc::as_ptr);
            last = now;
            if !same {
                self.judge(context).await;
            }
        }
        std::future::pending().await
    }

    /// Those that come meanwhile ask for themselves.
    async fn judge(&self, context: &PodContext) {
        let all: Vec<Rc<Entry>> = self.all.borrow().values().map(Rc::clone).collect();
        for some in all.chunks(IN_A_ROW) {
            for entry in some.iter().filter(|entry| !entry.lost.get()) {
                let verdict = context.shared.mesh.read(|mesh| entry.verdict(mesh, context));
                if !verdict.allowed {
                    info!(source = %entry.source, "closing an open connection: {}", verdict.because);
                    entry.lost.set(true);
                    if let Some(waker) = entry.waker.take() {
                        waker.wake();
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Entry {
    /// As of now: the pod may be described in another way than when the connection came.
    fn verdict(&self, mesh: &Mesh, context: &PodContext) -> Verdict {
        let Some(destination) = context.pod.find(mesh) else {
            let because = Because::NoWorkload;
            return Verdict { allowed: false, because, dry_run: Vec::new(), missing: Vec::new() };
        };
        let facts = Facts {
            destination,
            source_ip: self.source.ip(),
            dst: self.target,
            identity: self.identity.as_ref(),
        };
        authz::evaluate(mesh, &facts, context.shared.config.unknown_policies)
    }
}

impl Permission {
    /// Asks the policies, and logs what the operator wants to know of the verdict.
    ///
    /// # Errors
    /// The connection is denied.
    pub(super) fn ask(&self, context: &PodContext) -> Result<(), Outcome> {
        let (shared, source) = (&context.shared, self.entry.source);
        let verdict = shared.mesh.read(|mesh| self.entry.verdict(mesh, context));
        shared.unknown_policies.met(&context.pod, &verdict);
        let log = |policy: Option<&str>, event: &str| {
            if shared.config.log_policies {
                info!(policy, %source, "{event}");
            } else {
                debug!(policy, %source, "{event}");
            }
        };
        for dry_run in &verdict.dry_run {
            log(dry_run.policy().map(|name| &**name), dry_run.event());
        }
        log(verdict.because.policy().map(|name| &**name), verdict.because.event());
        if verdict.allowed { Ok(()) } else { Err(Outcome::Denied(verdict.because.to_string())) }
    }

    /// Goes on with `work` for as long as it is permitted.
    ///
    /// # Errors
    /// Those of `work`, or the permission is lost before it ends.
    ///
    /// # Cancel safety
    /// That of `work`.
    pub(super) async fn hold<T>(&self, work: impl Future<Output = Result<T, Outcome>>) -> Result<T, Outcome> {
        tokio::select! {
            biased;
            () = self.lost() => Err(Outcome::Cut(Cut::PolicyChange)),
            result = work => result,
        }
    }

    /// Waits until the permission is lost.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn lost(&self) {
        std::future::poll_fn(|context| {
            if self.entry.lost.get() {
                return Poll::Ready(());
            }
            let mut waker = self.entry.waker.borrow_mut();
            match &*waker {
                Some(known) if known.will_wake(context.waker()) => {}
                _ => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Permission {
    fn drop(&mut self) {
        self.permissions.all.borrow_mut().remove(&self.id);
    }
}
