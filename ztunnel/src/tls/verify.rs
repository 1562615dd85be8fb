// SPDX-License-Identifier: Apache-2.0
//! Who is the peer? Its certificate must chain to our roots, and name a SPIFFE identity that we accept.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use ztunnel_core::identity::Identity;

use super::revocation::{Revocations, Usage};

/// The peer's certificate is genuine, and does not name the identity that we need.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Towards a server: none of the expected identities.
    #[error("identity verification error: peer did not present the expected SAN ({expected}), got {got}")]
    UnexpectedIdentity {
        /// What would have been accepted, comma separated.
        expected: String,
        /// What the certificate names, comma separated.
        got: String,
    },
    /// From a client: an identity of another trust domain, or none.
    #[error(
        "identity verification error: peer did not present the expected trustdomain ({expected}), got {got}"
    )]
    UnexpectedTrustDomain {
        /// Our own trust domain.
        expected: String,
        /// What the certificate names, comma separated.
        got: String,
    },
}

/// The SPIFFE identities that a certificate names; names of other kinds are skipped.
pub fn identities(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.parse().ok(),
            _ => None,
        })
        .collect()
}

/// Accepts a server that has one of the expected identities.
#[derive(Debug)]
pub struct IdentityVerifier {
    roots: Arc<RootCertStore>,
    expected: Vec<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Option<Revocations>,
}

impl IdentityVerifier {
    /// An empty `expected` accepts nobody.
    pub fn new(
        roots: Arc<RootCertStore>,
        expected: &[Identity],
        provider: &CryptoProvider,
        revocations: Option<Revocations>,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { roots, expected: expected.to_vec(), algorithms, revocations }
    }
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if let Some(revocations) = &self.revocations {
            revocations.check(&chain(end_entity, intermediates), &self.roots, Usage::Server, now)?;
        }
        let got = identities(end_entity);
        if got.iter().any(|identity| self.expected.contains(identity)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refuse(IdentityError::UnexpectedIdentity { expected: list(&self.expected), got: list(&got) }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts a client that has an identity of our own trust domain.
#[derive(Debug)]
pub struct TrustDomainVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    trust_domain: Arc<str>,
    revocations: Option<Revocations>,
}

impl TrustDomainVerifier {
    /// Clients must present a certificate that chains to `roots`.
    ///
    /// # Errors
    /// `roots` is empty.
    pub fn new(
        roots: Arc<RootCertStore>,
        trust_domain: Arc<str>,
        provider: &Arc<CryptoProvider>,
        revocations: Option<Revocations>,
    ) -> Result<Self, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { chain, roots, trust_domain, revocations })
    }
}

impl ClientCertVerifier for TrustDomainVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(revocations) = &self.revocations {
            revocations.check(&chain(end_entity, intermediates), &self.roots, Usage::Client, now)?;
        }
        let got = identities(end_entity);
        if got.iter().any(|identity| identity.trust_domain == self.trust_domain) {
            return Ok(verified);
        }
        let expected = self.trust_domain.to_string();
        Err(refuse(IdentityError::UnexpectedTrustDomain { expected, got: list(&got) }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn chain<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity).chain(intermediates).cloned().collect()
}

fn refuse(error: IdentityError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn list(identities: &[Identity]) -> String {
    identities.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
