// SPDX-License-Identifier: Apache-2.0
//! Lists in every form, and what they do to a chain.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};

use super::*;

/// An authority with its certificate.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Ca {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn root() -> Self {
        let (params, key) = (Self::params("root"), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn intermediate(&self, serial: u64) -> Self {
        let (mut params, key) = (Self::params("intermediate"), KeyPair::generate().unwrap());
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn leaf(&self, serial: u64) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }

    fn revoke(&self, serial: u64) -> rcgen::CertificateRevocationList {
        // Long over: an old list is better than none.
        let then = SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
        let list = CertificateRevocationListParams {
            this_update: then.into(),
            next_update: (then + Duration::from_secs(60)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: then.into(),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap()
    }
}

fn check(lists: &[u8], root: &Ca, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate.clone()).unwrap();
    let lists = Lists::parse(lists).unwrap();
    let as_client = lists.check(chain, &roots, Usage::Client, UnixTime::now());
    assert_eq!(as_client, lists.check(chain, &roots, Usage::Server, UnixTime::now()));
    as_client
}

const REVOKED: Result<(), rustls::Error> = Err(rustls::Error::InvalidCertificate(CertificateError::Revoked));

#[test]
fn a_revoked_leaf_is_refused_and_others_are_not() {
    let ca = Ca::root();
    let list = ca.revoke(7);
    for bytes in [list.pem().unwrap().into_bytes(), list.der().to_vec()] {
        assert_eq!(check(&bytes, &ca, &[ca.leaf(7)]), REVOKED);
        assert_eq!(check(&bytes, &ca, &[ca.leaf(8)]), Ok(()));
    }
    assert_eq!(check(b"", &ca, &[ca.leaf(7)]), Ok(()));
}

#[test]
fn the_whole_chain_is_checked_and_an_unknown_status_is_allowed() {
    let root = Ca::root();
    let (good, bad) = (root.intermediate(1), root.intermediate(2));
    let lists = root.revoke(2).pem().unwrap();
    assert_eq!(check(lists.as_bytes(), &root, &[bad.leaf(7), bad.certificate.clone()]), REVOKED);
    // Nobody has said anything about the leaves of the good one.
    assert_eq!(check(lists.as_bytes(), &root, &[good.leaf(7), good.certificate.clone()]), Ok(()));
    let both = lists + &good.revoke(7).pem().unwrap();
    assert_eq!(check(both.as_bytes(), &root, &[good.leaf(7), good.certificate.clone()]), REVOKED);
}

#[test]
fn a_list_that_its_issuer_has_not_signed_does_not_pass_for_no_list() {
    let (ca, impostor) = (Ca::root(), Ca::root());
    let forged = impostor.revoke(99).pem().unwrap();
    let error = check(forged.as_bytes(), &ca, &[ca.leaf(7)]).unwrap_err();
    assert!(error.to_string().contains("cannot be checked for revocation"), "{error}");
}

#[test]
fn a_file_that_is_no_list_is_refused_whole() {
    let list = Ca::root().revoke(7).pem().unwrap();
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(Lists::parse((certificate.to_owned() + &list).as_bytes()).unwrap().0.len(), 1);
    assert_eq!(Lists::parse(certificate.as_bytes()).unwrap().0.len(), 0);
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for wrong in ["nonsense", broken, &(list + broken), "-----BEGIN X509 CRL-----\nAAAA"] {
        assert!(Lists::parse(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_changed_file_counts_and_a_broken_one_leaves_the_lists_in_force() {
    let ca = Ca::root();
    let path = std::env::temp_dir().join(format!("ztunnel-crl-{}", std::process::id()));
    let (revocations, mut follower) = Revocations::open(&path).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.clone()).unwrap();
    let chain = [ca.leaf(7)];
    let check = || revocations.check(&chain, &roots, Usage::Client, UnixTime::now());
    follower.look();
    assert_eq!(check(), Ok(()));
    fs::write(&path, ca.revoke(7).pem().unwrap()).unwrap();
    follower.look();
    assert_eq!(check(), REVOKED);
    fs::write(&path, "nonsense").unwrap();
    follower.look();
    assert_eq!(check(), REVOKED);
    assert!(revocations.status().error.unwrap().contains("not a revocation list"));
    assert!(Revocations::open(&path).unwrap_err().to_string().contains("CRL_PATH"));
    fs::remove_file(&path).unwrap();
    follower.look();
    assert_eq!((check(), revocations.status().lists), (REVOKED, 1));
    fs::write(&path, "").unwrap();
    follower.look();
    assert_eq!(check(), Ok(()));
    assert!(revocations.status().error.is_none());
    fs::remove_file(&path).unwrap();
}
