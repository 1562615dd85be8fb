// SPDX-License-Identifier: Apache-2.0
//! The one shared view of the mesh. Readers get a closure, so no guard can cross an `.await`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use ztunnel_core::Name;
use ztunnel_core::mesh::{Change, Effect, Mesh, Workload};
use ztunnel_core::route::Refusal;

use crate::xds::demand::{Answer, Demands};

/// How long a connection waits for its own pod's workload to appear.
const LOCAL_WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// The mesh, shared by every worker.
#[derive(Debug, Clone)]
pub struct SharedMesh {
    mesh: Arc<RwLock<Mesh>>,
    /// Counts the changes, so that a task can wait for the next one.
    generation: Arc<watch::Sender<u64>>,
    /// Wakes after changes with which an open connection may no longer be allowed; counts those of policies.
    authorizations: Arc<watch::Sender<u64>>,
    /// Where to ask for what is not in it; `None`: it is whole.
    demands: Option<Demands>,
    /// Whose pods we serve; `None`: those of any node.
    node: Option<Name>,
}

impl SharedMesh {
    /// Shares `mesh`, which is whole.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh: Arc::new(RwLock::new(mesh)),
            generation: Arc::new(watch::Sender::new(0)),
            authorizations: Arc::new(watch::Sender::new(0)),
            demands: None,
            node: None,
        }
    }

    /// The same, where only this node's pods have connections of ours.
    #[must_use]
    pub fn on_node(self, node: Option<&str>) -> Self {
        Self { node: node.map(Name::from), ..self }
    }

    /// The same, where somebody has to be asked for what is not in it.
    #[must_use]
    pub fn on_demand(self, demands: Demands) -> Self {
        Self { demands: Some(demands), ..self }
    }

    /// Looks at the mesh; everything inside `f` sees one state of it.
    pub fn read<T>(&self, f: impl FnOnce(&Mesh) -> T) -> T {
        f(&self.mesh.read())
    }

    /// Applies changes at once, and wakes whoever waits for one.
    pub fn apply(&self, changes: Vec<Change>) {
        let mut effect = Effect::default();
        let mut mesh = self.mesh.write();
        for change in changes {
            let is_elsewhere = self.is_elsewhere(&mesh, &change);
            effect = match mesh.apply(change) {
                // A large push is about other nodes' pods; it must not wake everybody here, batch after batch.
                Effect::Workloads if is_elsewhere => effect,
                other => effect.max(other),
            };
        }
        drop(mesh);
        self.generation.send_modify(|generation| *generation += 1);
        if effect != Effect::None {
            self.authorizations.send_modify(|policies| *policies += u64::from(effect == Effect::Policies));
        }
    }

    /// Whether the workload that goes, or is described anew, was another node's.
    fn is_elsewhere(&self, mesh: &Mesh, change: &Change) -> bool {
        let uid = match change {
            Change::Workload(workload) => &workload.uid,
            Change::RemoveAddress(name) => name,
            Change::Service(_) | Change::Policy(..) | Change::RemovePolicy(_) => return false,
        };
        let Some(node) = &self.node else { return false };
        mesh.workload_by_uid(uid).is_some_and(|known| known.node != *node)
    }

    /// Makes room for a large number of workloads, so that no later change has to.
    pub fn make_room(&self, workloads: usize) {
        let known = self.read(Mesh::size);
        if workloads > known {
            self.mesh.write().reserve(workloads);
        }
    }

    /// Changes after which an open connection may no longer be allowed. The value is another one if that concerns all
    /// connections; else it concerns those to a workload that [`SharedMesh::find_local`] describes in another way.
    pub fn authorization_changes(&self) -> watch::Receiver<u64> {
        self.authorizations.subscribe()
    }

    /// Whether what is not in it may exist all the same.
    pub fn is_on_demand(&self) -> bool {
        self.demands.is_some()
    }

    /// Asks the control plane what this name is.
    ///
    /// # Errors
    /// [`Refusal::NoAnswer`]: to go on without knowing could mean to go on in the clear.
    pub async fn ask(&self, name: &Name) -> Result<(), Refusal> {
        let Some(demands) = &self.demands else { return Ok(()) };
        match demands.ask(Name::clone(name)).await {
            Answer::Known => Ok(()),
            Answer::Refused | Answer::Timeout => Err(Refusal::NoAnswer(Name::clone(name))),
        }
    }

    /// Asks the control plane for all that `missing` finds missing, until it finds nothing that was not asked for.
    ///
    /// # Errors
    /// [`Refusal::NoAnswer`]: to go on without knowing could mean to go on in the clear.
    pub async fn complete(&self, missing: impl Fn(&Mesh) -> Vec<Name>) -> Result<(), Refusal> {
        if !self.is_on_demand() {
            return Ok(());
        }
        let mut asked: Vec<Name> = Vec::new();
        loop {
            let next = self.read(&missing).into_iter().find(|name| !asked.contains(name));
            let Some(name) = next else { return Ok(()) };
            self.ask(&name).await?;
            asked.push(name);
        }
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The workload of a local pod, if the control plane has described it.
    pub fn find_local(&self, pod: &LocalPod) -> Option<Arc<Workload>> {
        self.read(|mesh| pod.find(mesh).map(Arc::clone))
    }

    /// The workload of a local pod. Waits a little, since the node agent may be faster than the control plane.
    ///
    /// # Errors
    /// [`Refusal::LocalWorkloadUnknown`] after 5 s.
    pub async fn local_workload(&self, pod: &LocalPod) -> Result<Arc<Workload>, Refusal> {
        if let Some(workload) = self.find_local(pod) {
            return Ok(workload);
        }
        let mut generation = self.generation.subscribe();
        let appeared = async {
            loop {
                if let Some(workload) = self.find_local(pod) {
                    return workload;
                }
                if generation.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(LOCAL_WORKLOAD_WAIT, appeared).await.map_err(|_elapsed| pod.unknown())
    }
}

/// A pod of this node, by the names that tie the node agent's message to the control plane's workload.
#[derive(Debug, Clone)]
pub struct LocalPod {
    /// Pod name.
    pub name: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Only workloads of this node count; `None`: of any.
    pub node: Option<Arc<str>>,
}

impl LocalPod {
    /// Its workload, if the mesh knows it.
    pub fn find<'m>(&self, mesh: &'m Mesh) -> Option<&'m Arc<Workload>> {
        mesh.local_workload(&self.name, &self.namespace, &self.service_account, self.node.as_deref())
    }

    fn unknown(&self) -> Refusal {
        Refusal::LocalWorkloadUnknown {
            name: Arc::clone(&self.name),
            namespace: Arc::clone(&self.namespace),
            service_account: Arc::clone(&self.service_account),
        }
    }
}

impl std::fmt::Display for LocalPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
