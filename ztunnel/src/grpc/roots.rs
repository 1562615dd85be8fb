// SPDX-License-Identifier: Apache-2.0
//! What the control plane's certificate must chain to: a file, the system's store, or text.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::config::control_plane::RootSource;

/// Roots of trust, and what they were read from.
#[derive(Debug, Clone)]
pub struct Roots {
    text: Arc<[u8]>,
    store: Arc<RootCertStore>,
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// There are no roots, so no server can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no roots of trust for the control plane in {place}: {error} (XDS_ROOT_CA, CA_ROOT_CA)")]
pub struct RootsError {
    /// Where they should be.
    pub place: String,
    /// Why they are not.
    pub error: String,
}

impl Roots {
    /// Reads the roots. Gives `known` again where nothing has changed.
    ///
    /// # Errors
    /// There is none, or they cannot be read.
    pub fn load(source: &RootSource, known: Option<&Self>) -> Result<Self, RootsError> {
        match (source, known) {
            (RootSource::File(path), known) => {
                let text = std::fs::read(path).map_err(|error| wrong(path, &error.to_string()))?;
                match known {
                    Some(known) if *known.text == *text => Ok(known.clone()),
                    _ => Self::parse(text).map_err(|error| wrong(path, &error)),
                }
            }
            // These do not change while the process runs.
            (RootSource::Inline(_) | RootSource::System, Some(known)) => Ok(known.clone()),
            (RootSource::Inline(text), None) => Self::parse(text.clone().into_bytes())
                .map_err(|error| RootsError { place: "the variable's text".to_owned(), error }),
            (RootSource::System, None) => Self::system(),
        }
    }

    fn parse(text: Vec<u8>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
            store.add(certificate).map_err(|error| format!("not a certificate: {error}"))?;
        }
        if store.is_empty() {
            return Err("there is no certificate in it".to_owned());
        }
        Ok(Self { text: text.into(), store: Arc::new(store) })
    }

    fn system() -> Result<Self, RootsError> {
        let loaded = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        // A store of the system may well hold certificates that are of no use to us.
        store.add_parsable_certificates(loaded.certs);
        if store.is_empty() {
            let error = loaded.errors.first().map_or_else(|| "it is empty".to_owned(), ToString::to_string);
            return Err(RootsError { place: "the system's store".to_owned(), error });
        }
        Ok(Self { text: Arc::from(&b"SYSTEM"[..]), store: Arc::new(store) })
    }

    /// The roots themselves.
    pub fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }
}

fn wrong(path: &Path, error: &str) -> RootsError {
    RootsError { place: path.display().to_string(), error: error.to_owned() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pem() -> String {
        CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_file_is_read_again_and_taken_whole_or_refused() {
        let path = std::env::temp_dir().join(format!("ztunnel-roots-{}", std::process::id()));
        let source = RootSource::File(path.clone());
        let error = Roots::load(&source, None).unwrap_err();
        assert!(
            error.to_string().contains("ztunnel-roots") && error.to_string().contains("CA_ROOT_CA"),
            "{error}"
        );
        std::fs::write(&path, pem() + &pem()).unwrap();
        let first = Roots::load(&source, None).unwrap();
        assert_eq!(first.store().len(), 2);
        assert!(Arc::ptr_eq(Roots::load(&source, Some(&first)).unwrap().store(), first.store()));
        std::fs::write(&path, pem()).unwrap();
        assert!(Roots::load(&source, Some(&first)).unwrap() != first);
        for wrong in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Roots::load(&source, Some(&first)).is_err(), "{wrong:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn text_is_taken_as_it_is() {
        let roots = Roots::load(&RootSource::Inline(pem()), None).unwrap();
        assert!(Roots::load(&RootSource::Inline(String::new()), Some(&roots)).unwrap() == roots);
    }
}
