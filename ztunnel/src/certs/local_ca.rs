// SPDX-License-Identifier: Apache-2.0
//! A certificate authority inside the process, for local runs and tests. **Not for production**: its root key lies in
//! a directory, and whoever can read it can be any workload.
//!
//! The root is made once; nodes that share the directory share the root. Leaf keys never leave memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use ztunnel_core::certs::Validity;
use ztunnel_core::identity::Identity;

use super::{CertError, Certificate, Roots};
use crate::config::TlsConfig;
use crate::tls;

/// Life of a workload's certificate.
const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates start this much in the past, for nodes whose clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// The root's files in the shared directory.
const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";

/// The authority: a root that signs every workload's certificate directly.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<Roots>,
}

impl std::fmt::Debug for LocalCa {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa").finish_non_exhaustive()
    }
}

impl LocalCa {
    /// Opens the root in `directory`, or makes one. Several processes may do this at once: one of them makes it.
    ///
    /// # Errors
    /// The directory cannot be written, or holds something that is not a root.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        must_be_ours(directory)?;
        let lock = File::create(directory.join(".lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_file, error)| error)?;
        let (certificate_path, key_path) = (directory.join(ROOT_CERTIFICATE), directory.join(ROOT_KEY));
        if !certificate_path.exists() {
            let (certificate, key) = make_root().map_err(io::Error::other)?;
            write_secret(&key_path, &key)?;
            fs::write(&certificate_path, certificate)?;
        }
        let wrong = |error: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", directory.display()))
        };
        let certificate = fs::read_to_string(&certificate_path)?;
        let key = KeyPair::from_pem(&fs::read_to_string(&key_path)?).map_err(|error| wrong(&error))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| wrong(&error))?;
        let mut store = rustls::RootCertStore::empty();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| wrong(&error))?;
        store.add(der.clone()).map_err(|error| wrong(&error))?;
        let roots = Roots { store: Arc::new(store), certificates: vec![der] };
        Ok(Self { issuer, roots: Arc::new(roots) })
    }

    /// Issues a certificate for `identity`, valid from `now`.
    ///
    /// # Errors
    /// The identity cannot be written as a URI name.
    pub fn issue(&self, identity: &Identity, now: SystemTime) -> Result<Certificate, CertError> {
        let signing = |error: rcgen::Error| CertError::Request(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(signing)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into().map_err(signing)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (not_before, not_after) = (now - CLOCK_SKEW, now + LEAF_LIFE);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let certificate = params.signed_by(&key, &self.issuer).map_err(signing)?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone()];
        let key = CertifiedKey::from_der(chain, secret, &tls::provider(TlsConfig::default()))
            .map_err(|error| CertError::Request(error.to_string()))?;
        Ok(Certificate {
            identity: identity.clone(),
            key: Arc::new(key),
            roots: Arc::clone(&self.roots),
            validity: Validity { not_before, not_after },
        })
    }
}

/// Whoever can write to the directory can be any workload, and could have planted the files that we are about to open.
fn must_be_ours(directory: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    let ours = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0;
    if ours {
        return Ok(());
    }
    let text =
        format!("{} must be a folder that only its owner, this user, can write to", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// A fresh root, as PEM: certificate and key.
fn make_root() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ztunnel local run, NOT FOR PRODUCTION");
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + 365 * LEAF_LIFE).into();
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Writes a file that only its owner can read.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = std::env::temp_dir().join(format!("ztunnel-open-ca-{}", std::process::id()));
        LocalCa::open(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let error = LocalCa::open(&directory).unwrap_err();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("only its owner"), "{error}");
    }
}
