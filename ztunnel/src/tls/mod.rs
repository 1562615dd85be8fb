// SPDX-License-Identifier: Apache-2.0
//! TLS of the tunnels: TLS 1.3, both sides authenticated, ALPN `h2`, no resumption.
//!
//! Source: data-plane contract, section 1.1. The peer's identity is checked in [`verify`].

pub mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use ztunnel_core::identity::Identity;

use crate::certs::Certificate;

/// AES-GCM suites in the contract's order, with the key exchanges of aws-lc.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// What a pod presents to those who tunnel to it, and whom it lets in: anyone of its own trust domain.
///
/// # Errors
/// The certificate and its key cannot be used together.
pub fn server_config(certificate: &Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    let verifier = verify::TrustDomainVerifier::new(
        Arc::clone(&certificate.roots),
        Arc::clone(&certificate.identity.trust_domain),
        &provider,
    )?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a pod presents when it tunnels out, and the identities of which the peer must have one.
///
/// # Errors
/// The certificate and its key cannot be used together.
pub fn client_config(
    certificate: &Certificate,
    expected: &[Identity],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = provider();
    let verifier = verify::IdentityVerifier::new(Arc::clone(&certificate.roots), expected, &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(certificate.chain.clone(), certificate.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}
