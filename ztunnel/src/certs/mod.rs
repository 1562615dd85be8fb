// SPDX-License-Identifier: Apache-2.0
//! Certificates of the node's workloads.
//!
//! The threads that carry traffic never wait for a lock that is held during IO: they look at a value that the keeper
//! replaces, and where there is none yet they wait for it, with a deadline. The keys never leave memory.
//!
//! Invariant: a certificate is reachable only through the [`PodCerts`] of its own workload.
//!
//! * [`store`]: every certificate, and the door to one pod's. * [`keeper`]: fetches and renews them, when
//!   [`ztunnel_core::certs`] says so.
//! * [`remote_ca`]: asks istiod. [`answer`]: what it may answer. * [`local_ca`]: the authority inside the process.

pub mod answer;
pub mod keeper;
pub mod local_ca;
pub mod remote_ca;
pub mod store;

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use ztunnel_core::certs::Validity;
use ztunnel_core::identity::Identity;

use crate::grpc::CallError;
use local_ca::LocalCa;
use remote_ca::RemoteCa;
pub use store::{CertStore, PodCerts};

/// A workload's certificate, its key and the roots that it trusts.
pub struct Certificate {
    /// Whose it is.
    pub identity: Identity,
    /// The private key, and the chain: leaf first, then intermediates; the root is never sent.
    pub key: Arc<CertifiedKey>,
    /// Who may have signed a peer's certificate.
    pub roots: Arc<Roots>,
    /// When it is valid.
    pub validity: Validity,
}

/// The roots that came with a certificate.
#[derive(Debug)]
pub struct Roots {
    /// As the verifiers want them.
    pub store: Arc<RootCertStore>,
    /// As they came.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Certificate {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("not_after", &self.validity.not_after)
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// The control plane has not told us who the pod is.
    #[error("workload is unknown: {namespace}/{name}")]
    UnknownWorkload {
        /// Its Kubernetes namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// Its signature request cannot be made.
    #[error("failed to create CSR: {0}")]
    Request(String),
    /// The authority was not reached, or refused.
    #[error("signing gRPC error ({0})")]
    Call(#[from] CallError),
    /// The authority has not answered in time.
    #[error("signing gRPC error (DeadlineExceeded): the certificate authority has not answered within {0} s")]
    Slow(u64),
    /// The authority's answer cannot be used.
    #[error(transparent)]
    Answer(#[from] answer::AnswerError),
    /// Nothing has come of it so far.
    #[error("no certificate for {identity} within {seconds} s: its request has not ended yet")]
    Waiting {
        /// Whose.
        identity: Identity,
        /// How long somebody has waited.
        seconds: u64,
    },
}

/// Where certificates come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Source {
    /// The authority inside the process, for local runs.
    Local(LocalCa),
    /// istiod.
    Remote(RemoteCa),
}

impl Source {
    /// Obtains a certificate for `identity`.
    ///
    /// # Errors
    /// The authority refused, was not reached, or answered nonsense.
    ///
    /// # Cancel safety
    /// Nothing is left behind here.
    pub async fn issue(&self, identity: &Identity) -> Result<Certificate, CertError> {
        match self {
            Self::Local(authority) => authority.issue(identity, SystemTime::now()),
            Self::Remote(authority) => authority.issue(identity).await,
        }
    }
}

#[cfg(test)]
mod tests;
