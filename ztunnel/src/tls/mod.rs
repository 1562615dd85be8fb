// SPDX-License-Identifier: Apache-2.0
//! TLS of the tunnels: TLS 1.3, both sides authenticated, ALPN `h2`, no resumption.
//!
//! Source: data-plane contract, section 1.1. The peer's identity is checked in [`verify`], whether it still counts in
//! [`revocation`].

pub mod revocation;
pub mod verify;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState, ServerConfig, SupportedProtocolVersion};
use tokio::sync::watch;
use ztunnel_core::identity::Identity;

use crate::certs::{Certificate, Roots};
use crate::config::TlsConfig;
use revocation::{Revocations, Usage};

/// AES-GCM suites in the contract's order, with the key exchanges of aws-lc.
pub(crate) fn provider(config: TlsConfig) -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite as suites;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suites::TLS13_AES_256_GCM_SHA384, suites::TLS13_AES_128_GCM_SHA256];
    if config.tls12 {
        provider.cipher_suites.extend([
            suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ]);
    }
    if config.post_quantum_only {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    }
    Arc::new(provider)
}

/// The protocol versions that are offered.
pub(crate) fn versions(config: TlsConfig) -> &'static [&'static SupportedProtocolVersion] {
    static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    if config.tls12 { rustls::ALL_VERSIONS } else { &TLS13 }
}

/// How every handshake with a peer is done.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// What is offered.
    pub config: TlsConfig,
    /// Whom not to believe any more; `None`: nobody has asked for that.
    pub revocations: Option<Revocations>,
}

impl Tls {
    /// What a pod presents to those who tunnel to it, and whom it lets in: anyone of its own trust domain.
    ///
    /// # Errors
    /// The settings and the roots do not go together.
    pub fn server_config(&self, certificate: &Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = provider(self.config);
        let verifier = verify::TrustDomainVerifier::new(
            Arc::clone(&certificate.roots.store),
            Arc::clone(&certificate.identity.trust_domain),
            &provider,
            self.revocations.clone(),
        )?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(self.config))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&certificate.key))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// What a pod presents when it tunnels out, and the identities of which the peer must have one.
    ///
    /// # Errors
    /// The settings do not go together.
    pub fn client_config(
        &self,
        certificate: &Certificate,
        expected: &[Identity],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = provider(self.config);
        let verifier = verify::IdentityVerifier::new(
            Arc::clone(&certificate.roots.store),
            expected,
            &provider,
            self.revocations.clone(),
        );
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(self.config))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&certificate.key))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// Tells the streams of a tunnel that its peer is no longer to be believed. They look at it whenever they wake, so
    /// there is nothing to look at where nothing can be revoked.
    pub fn revocation_watch(&self) -> (watch::Sender<bool>, Option<watch::Receiver<bool>>) {
        let (revoke, revoked) = watch::channel(false);
        (revoke, self.revocations.is_some().then_some(revoked))
    }

    /// What of a peer must be remembered while its connection is open.
    pub fn standing(&self, connection: &CommonState, certificate: &Certificate, usage: Usage) -> Standing {
        let checked = self.revocations.clone().map(|revocations| Checked {
            revocations,
            chain: connection.peer_certificates().unwrap_or_default().to_vec(),
            roots: Arc::clone(&certificate.roots),
            usage,
        });
        Standing(checked)
    }
}

/// Whether the peer of an open connection is still to be believed.
#[derive(Debug)]
pub struct Standing(Option<Checked>);

#[derive(Debug)]
struct Checked {
    revocations: Revocations,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<Roots>,
    usage: Usage,
}

impl Standing {
    /// Returns once the peer's certificate is revoked.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn revoked(&self) {
        match &self.0 {
            Some(checked) => {
                checked.revocations.revoked(&checked.chain, &checked.roots.store, checked.usage).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Ready once the peer of a tunnel is no longer to be believed. It is polled whenever a stream wakes, and every open
/// connection holds one: where nothing can be revoked it is nothing.
pub struct Revoked(Option<Pin<Box<dyn Future<Output = ()>>>>);

impl Revoked {
    /// Waits for the switch of [`Tls::revocation_watch`].
    pub(crate) fn new(switch: Option<&watch::Receiver<bool>>) -> Self {
        Self(switch.cloned().map(|mut switch| -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                if switch.wait_for(|revoked| *revoked).await.is_err() {
                    // The tunnel has ended otherwise.
                    std::future::pending::<()>().await;
                }
            })
        }))
    }
}

impl Future for Revoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(wait) => wait.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl std::fmt::Debug for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revoked").field("watched", &self.0.is_some()).finish()
    }
}
