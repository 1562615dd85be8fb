// SPDX-License-Identifier: Apache-2.0
//! Certificates of the node's workloads.
//!
//! Invariant: a certificate is reachable only through the [`PodCerts`] of its own workload.
//!
//! * [`local_ca`]: the authority inside the process, for local runs.

pub mod local_ca;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ztunnel_core::identity::Identity;

use crate::mesh::{LocalPod, SharedMesh};
use local_ca::LocalCa;

/// A workload's certificate, its key and the roots that it trusts.
pub struct Certificate {
    /// Whose it is.
    pub identity: Identity,
    /// Leaf first, then intermediates; the root is never sent.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Roots that peers' certificates must chain to.
    pub roots: Arc<rustls::RootCertStore>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Certificate {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Half of its life is over: time for the next one.
    fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        now >= self.not_before + life / 2
    }
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// No authority is configured.
    #[error("no certificate authority is configured (set FAKE_CA=true for a local run)")]
    NoAuthority,
    /// The control plane has not told us who the pod is.
    #[error("workload is unknown: {namespace}/{name}")]
    UnknownWorkload {
        /// Its Kubernetes namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// The authority refused or failed.
    #[error("failed to sign a certificate: {0}")]
    Signing(String),
}

/// Issues and keeps the certificates of this node's workloads. Renewal happens at half life.
#[derive(Debug, Clone)]
pub struct CertStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    authority: Option<LocalCa>,
    issued: Mutex<HashMap<Identity, Issued>>,
}

#[derive(Debug)]
struct Issued {
    certificate: Arc<Certificate>,
    /// [`PodCerts`] that use this identity; the certificate is forgotten with the last.
    users: usize,
}

impl CertStore {
    /// A store that asks `authority`; without one every fetch fails.
    pub fn new(authority: Option<LocalCa>) -> Self {
        Self(Arc::new(Inner { authority, issued: Mutex::new(HashMap::new()) }))
    }

    /// The door to one pod's certificates.
    pub fn pod(&self, mesh: SharedMesh, pod: LocalPod) -> PodCerts {
        PodCerts { store: self.clone(), mesh, pod, held: Mutex::new(None) }
    }

    /// Every certificate, for the admin dump.
    pub fn all(&self) -> Vec<Arc<Certificate>> {
        let mut all: Vec<_> =
            self.0.issued.lock().values().map(|issued| Arc::clone(&issued.certificate)).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The certificate of `identity`, counting a new user of it.
    fn fetch(&self, identity: &Identity, user: User, now: SystemTime) -> Result<Arc<Certificate>, CertError> {
        let mut all = self.0.issued.lock();
        if let Some(issued) = all.get_mut(identity).filter(|issued| !issued.certificate.is_due(now)) {
            issued.users += usize::from(user == User::New);
            return Ok(Arc::clone(&issued.certificate));
        }
        let authority = self.0.authority.as_ref().ok_or(CertError::NoAuthority)?;
        let certificate = Arc::new(authority.issue(identity, now)?);
        let issued = all
            .entry(identity.clone())
            .or_insert_with(|| Issued { certificate: Arc::clone(&certificate), users: 0 });
        issued.certificate = Arc::clone(&certificate);
        issued.users += usize::from(user == User::New);
        drop(all);
        Ok(certificate)
    }

    fn release(&self, identity: &Identity) {
        let mut all = self.0.issued.lock();
        if let Some(issued) = all.get_mut(identity) {
            issued.users -= 1;
            if issued.users == 0 {
                all.remove(identity);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    New,
    Known,
}

/// The door to one pod's certificate: the pod's identity is what the mesh says it is, now.
#[derive(Debug)]
pub struct PodCerts {
    store: CertStore,
    mesh: SharedMesh,
    pod: LocalPod,
    /// The identity whose certificate we keep alive.
    held: Mutex<Option<Identity>>,
}

impl PodCerts {
    /// The current certificate, renewed when due.
    ///
    /// # Errors
    /// The pod is not in the mesh, or the authority cannot issue the certificate.
    pub fn current(&self) -> Result<Arc<Certificate>, CertError> {
        let workload = self.mesh.find_local(&self.pod).ok_or_else(|| CertError::UnknownWorkload {
            namespace: Arc::clone(&self.pod.namespace),
            name: Arc::clone(&self.pod.name),
        })?;
        let identity = workload.identity();
        let mut held = self.held.lock();
        let user = if held.as_ref() == Some(&identity) { User::Known } else { User::New };
        let certificate = self.store.fetch(&identity, user, SystemTime::now())?;
        if user == User::New
            && let Some(old) = held.replace(identity)
        {
            self.store.release(&old);
        }
        drop(held);
        Ok(certificate)
    }
}

impl Drop for PodCerts {
    fn drop(&mut self) {
        if let Some(identity) = self.held.get_mut().take() {
            self.store.release(&identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use ztunnel_core::mesh::Mesh;

    use super::*;

    const MESH: &str = "
workloads:
- {uid: a, name: web-0, namespace: shop, serviceAccount: web, trustDomain: cluster.local, workloadIps: [10.0.0.1], services: {}}
";

    fn pod() -> LocalPod {
        let name = |text: &str| Arc::from(text);
        LocalPod { name: name("web-0"), namespace: name("shop"), service_account: name("web"), node: None }
    }

    fn mesh() -> SharedMesh {
        SharedMesh::new(ztunnel_core::mesh::local::parse(MESH).unwrap())
    }

    fn store(test: &str) -> CertStore {
        let directory = std::env::temp_dir().join(format!("ztunnel-certs-{test}-{}", std::process::id()));
        let store = CertStore::new(Some(LocalCa::open(&directory).unwrap()));
        std::fs::remove_dir_all(directory).unwrap();
        store
    }

    #[test]
    fn a_certificate_lives_as_long_as_a_pod_uses_it() {
        let store = store("life");
        let (first, second) = (store.pod(mesh(), pod()), store.pod(mesh(), pod()));
        assert!(Arc::ptr_eq(&first.current().unwrap(), &second.current().unwrap()));
        drop(first);
        assert_eq!(store.all().len(), 1);
        drop(second);
        assert!(store.all().is_empty());
    }

    #[test]
    fn a_certificate_is_renewed_at_half_life() {
        let store = store("renewal");
        let certs = store.pod(mesh(), pod());
        let first = certs.current().unwrap();
        let half = first.not_before + first.not_after.duration_since(first.not_before).unwrap() / 2;
        let second = Duration::from_secs(1);
        let fetch = |now| store.fetch(&first.identity, User::Known, now).unwrap();
        assert!(Arc::ptr_eq(&first, &fetch(half - second)));
        assert!(!Arc::ptr_eq(&first, &fetch(half + second)));
    }

    #[test]
    fn without_an_authority_the_error_says_what_to_do() {
        let error = CertStore::new(None).pod(mesh(), pod()).current().unwrap_err();
        assert!(error.to_string().contains("FAKE_CA"));
    }

    #[test]
    fn a_pod_that_is_not_in_the_mesh_has_no_certificate() {
        let certs = store("unknown").pod(SharedMesh::new(Mesh::default()), pod());
        assert!(matches!(certs.current(), Err(CertError::UnknownWorkload { .. })));
    }
}
