// SPDX-License-Identifier: Apache-2.0
//! What a certificate authority may answer: a certificate for the key and the identity that we asked for, valid now,
//! and the roots that go with it. Everything else is refused, with the reason.
//!
//! Source: control-plane contract, section 4.3.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tracing::warn;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use ztunnel_core::certs::{DateError, Validity};
use ztunnel_core::identity::Identity;

use super::{Certificate, Roots};
use crate::config::TlsConfig;
use crate::tls;

/// Why an authority's answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// There is nothing in it.
    #[error("chain returned from CA is empty for: {0}")]
    Empty(Identity),
    /// There is only a leaf.
    #[error("the CA returned a certificate for {0}, but no root to trust")]
    NoRoot(Identity),
    /// A part of it is not what it should be.
    #[error("the CA returned something else than a certificate as {part}: {error}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        error: String,
    },
    /// It is somebody else's.
    #[error("did not find expected SAN: {expected}, the certificate is for {got}")]
    WrongIdentity {
        /// Whose we asked for.
        expected: Identity,
        /// Whose it is.
        got: String,
    },
    /// It is for another key.
    #[error("the certificate that the CA returned for {identity} is not for our key: {error}")]
    WrongKey {
        /// Whose we asked for.
        identity: Identity,
        /// What the comparison says.
        error: String,
    },
    /// It is of no use now.
    #[error("the certificate that the CA returned for {identity} cannot be used: {error}")]
    Dates {
        /// Whose we asked for.
        identity: Identity,
        /// What is wrong with its dates.
        error: DateError,
    },
}

/// The last bundle of roots: all certificates of a node come with the same one.
#[derive(Debug, Default)]
pub(super) struct RootsCache(Option<(String, Arc<Roots>)>);

/// Checks the `chain` that an authority returned for `identity` and `key`.
pub(super) fn accept(
    identity: &Identity,
    key: &KeyPair,
    chain: &[String],
    roots: &mut RootsCache,
) -> Result<Certificate, AnswerError> {
    let (leaf, rest) = chain.split_first().ok_or_else(|| AnswerError::Empty(identity.clone()))?;
    let (anchors, intermediates) = rest.split_last().ok_or_else(|| AnswerError::NoRoot(identity.clone()))?;
    let leaf = one(leaf, "the leaf")?;
    let validity = check_leaf(identity, &leaf)?;
    let mut certificates = vec![leaf];
    for intermediate in intermediates {
        certificates.push(one(intermediate, "an intermediate")?);
    }
    let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = CertifiedKey::from_der(certificates, secret, &tls::provider(TlsConfig::default()))
        .map_err(|error| AnswerError::WrongKey { identity: identity.clone(), error: error.to_string() })?;
    let roots = roots.of(anchors)?;
    Ok(Certificate { identity: identity.clone(), key: Arc::new(key), roots, validity })
}

/// The first certificate of a PEM text.
fn one(pem: &str, part: &'static str) -> Result<CertificateDer<'static>, AnswerError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| AnswerError::Malformed { part, error: error.to_string() })
}

/// The leaf must be for `identity`, and valid now.
fn check_leaf(identity: &Identity, leaf: &CertificateDer<'_>) -> Result<Validity, AnswerError> {
    let malformed = |error: String| AnswerError::Malformed { part: "the leaf", error };
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| malformed(error.to_string()))?;
    let names = leaf.subject_alternative_name().map_err(|error| malformed(error.to_string()))?;
    let first = names.into_iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    if first.and_then(|uri| uri.parse::<Identity>().ok()).as_ref() != Some(identity) {
        let got = first.map_or_else(|| "nobody".to_owned(), |uri| uri.escape_default().take(256).collect());
        return Err(AnswerError::WrongIdentity { expected: identity.clone(), got });
    }
    let date = |seconds: i64| {
        let seconds = u64::try_from(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let dates = leaf.validity();
    let (Some(not_before), Some(not_after)) =
        (date(dates.not_before.timestamp()), date(dates.not_after.timestamp()))
    else {
        return Err(malformed("its dates are out of range".to_owned()));
    };
    let validity = Validity { not_before, not_after };
    match validity.life(SystemTime::now(), Instant::now()) {
        Ok(_) => Ok(validity),
        Err(error) => Err(AnswerError::Dates { identity: identity.clone(), error }),
    }
}

impl RootsCache {
    fn of(&mut self, bundle: &str) -> Result<Arc<Roots>, AnswerError> {
        if let Some((known, roots)) = &self.0
            && known == bundle
        {
            return Ok(Arc::clone(roots));
        }
        let roots = Arc::new(parse_roots(bundle)?);
        self.0 = Some((bundle.to_owned(), Arc::clone(&roots)));
        Ok(roots)
    }
}

fn parse_roots(bundle: &str) -> Result<Roots, AnswerError> {
    let malformed = |error: String| AnswerError::Malformed { part: "the roots", error };
    let (mut store, mut certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
        match store.add(certificate.clone()) {
            Ok(()) => certificates.push(certificate),
            // One that we do not understand must not cost those that we do.
            Err(error) => warn!(%error, "skipping a root that cannot be used"),
        }
    }
    if store.is_empty() {
        return Err(malformed("there is none that can be used".to_owned()));
    }
    Ok(Roots { store: Arc::new(store), certificates })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, SanType};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Ca {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        fn sign(&self, uri: &str, key: &KeyPair, until: SystemTime) -> String {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            params.not_before = (SystemTime::now() - 2 * HOUR).into();
            params.not_after = until.into();
            params.signed_by(key, &self.issuer).unwrap().pem()
        }
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn accept_chain(key: &KeyPair, chain: &[String]) -> Result<Certificate, AnswerError> {
        accept(&WEB.parse().unwrap(), key, chain, &mut RootsCache::default())
    }

    #[test]
    fn what_was_asked_for_is_accepted_with_intermediates_and_all_roots() {
        let (ca, other) = (Ca::new(), Ca::new());
        let key = KeyPair::generate().unwrap();
        let leaf = ca.sign(WEB, &key, SystemTime::now() + HOUR);
        let chain = [leaf, ca.pem.clone(), format!("{}{}", ca.pem, other.pem)];
        let certificate = accept_chain(&key, &chain).unwrap();
        assert_eq!(certificate.identity.to_string(), WEB);
        assert_eq!((certificate.key.cert.len(), certificate.roots.certificates.len()), (2, 2));
        assert!(!format!("{certificate:?}").contains("key"));
        let mut roots = RootsCache::default();
        let one = accept(&certificate.identity, &key, &chain, &mut roots).unwrap();
        let two = accept(&certificate.identity, &key, &chain, &mut roots).unwrap();
        assert!(Arc::ptr_eq(&one.roots, &two.roots));
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        let (ca, key, now) = (Ca::new(), KeyPair::generate().unwrap(), SystemTime::now());
        let good = ca.sign(WEB, &key, now + HOUR);
        let stranger = ca.sign("spiffe://cluster.local/ns/shop/sa/other", &key, now + HOUR);
        let nobody = ca.sign("https://example.com", &key, now + HOUR);
        let old = ca.sign(WEB, &key, now - HOUR);
        let others = ca.sign(WEB, &KeyPair::generate().unwrap(), now + HOUR);
        let root = || ca.pem.clone();
        let garbage = || "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
        for (chain, reason) in [
            (vec![], "chain returned from CA is empty"),
            (vec![good.clone()], "no root to trust"),
            (vec!["nonsense".to_owned(), root()], "as the leaf"),
            (vec![garbage(), root()], "as the leaf"),
            (vec![good.clone(), "nonsense".to_owned(), root()], "as an intermediate"),
            (vec![good.clone(), "nonsense".to_owned()], "as the roots"),
            (vec![good, garbage()], "as the roots"),
            (vec![stranger, root()], "did not find expected SAN"),
            (vec![nobody, root()], "did not find expected SAN"),
            (vec![old, root()], "expired"),
            (vec![others, root()], "not for our key"),
        ] {
            let error = accept_chain(&key, &chain).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
