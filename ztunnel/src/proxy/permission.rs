// SPDX-License-Identifier: Apache-2.0
//! A connection that loses its permission is closed: every inbound connection of a pod is judged again when policies,
//! or the pod's own description, may have changed the answer.
//!
//! One task per pod and worker does the judging. A connection only looks at a cell of its own, so that relaying a
//! message costs no lock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tracing::info;
use ztunnel_core::authz::{self, Facts};
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::Workload;

use super::{PodContext, Shared};

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
    revoked: Cell<bool>,
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
            Rc::new(Entry { source, target, identity, revoked: Cell::new(false), waker: RefCell::new(None) });
        self.all.borrow_mut().insert(id, Rc::clone(&entry));
        Permission { permissions: Rc::clone(self), id, entry }
    }

    /// Judges all connections again whenever the answer may be another. Never ends.
    pub(super) async fn keep_current(&self, context: &PodContext) {
        let shared = &context.shared;
        let mut changes = shared.mesh.authorization_changes();
        let mut last: Option<Arc<Workload>> = None;
        while changes.changed().await.is_ok() {
            if self.all.borrow().is_empty() {
                continue;
            }
            // A pod that is gone from the mesh is judged as it was last known.
            last = shared.mesh.find_local(&context.pod).or(last);
            if let Some(workload) = &last {
                self.judge(shared, workload);
            }
        }
        std::future::pending().await
    }

    fn judge(&self, shared: &Shared, workload: &Workload) {
        let all = self.all.borrow();
        for entry in all.values().filter(|entry| !entry.revoked.get()) {
            let facts = Facts {
                destination: workload,
                source_ip: entry.source.ip(),
                dst: entry.target,
                identity: entry.identity.as_ref(),
            };
            let verdict = shared.mesh.read(|mesh| authz::evaluate(mesh, &facts));
            if !verdict.allowed {
                info!(source = %entry.source, "closing an open connection: {}", verdict.because);
                entry.revoked.set(true);
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Permission {
    /// Waits until the permission is lost.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn lost(&self) {
        std::future::poll_fn(|context| {
            if self.entry.revoked.get() {
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
