// SPDX-License-Identifier: Apache-2.0
//! The one shared view of the mesh. Readers get a closure, so no guard can cross an `.await`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use ztunnel_core::mesh::{Mesh, Workload};
use ztunnel_core::route::Refusal;

/// How long a connection waits for its own pod's workload to appear.
const LOCAL_WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// The mesh, shared by every worker.
#[derive(Debug, Clone)]
pub struct SharedMesh {
    mesh: Arc<RwLock<Mesh>>,
    /// Counts the changes, so that a task can wait for the next one.
    generation: Arc<watch::Sender<u64>>,
}

impl SharedMesh {
    /// Shares `mesh`.
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh: Arc::new(RwLock::new(mesh)), generation: Arc::new(watch::Sender::new(0)) }
    }

    /// Looks at the mesh; everything inside `f` sees one state of it.
    pub fn read<T>(&self, f: impl FnOnce(&Mesh) -> T) -> T {
        f(&self.mesh.read())
    }

    /// Changes the mesh and wakes whoever waits for a change.
    pub fn update<T>(&self, f: impl FnOnce(&mut Mesh) -> T) -> T {
        let result = f(&mut self.mesh.write());
        self.generation.send_modify(|generation| *generation += 1);
        result
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The workload of a local pod, if the control plane has described it.
    pub fn find_local(&self, pod: &LocalPod) -> Option<Arc<Workload>> {
        self.read(|mesh| {
            mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account, pod.node.as_deref())
                .map(Arc::clone)
        })
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
