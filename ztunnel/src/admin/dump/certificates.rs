// SPDX-License-Identifier: Apache-2.0
//! `certificates` of the dump: what istioctl shows of every identity. Never a key.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};
use ztunnel_core::identity::Identity;
use ztunnel_core::report::access::Timestamp;

use crate::certs::store::State;

/// One identity's entry, as istioctl reads it. The key is not part of it.
pub(super) fn certificate(identity: &Identity, state: &State) -> Value {
    let (state, chain, roots) = match state {
        State::Initializing => ("Initializing".to_owned(), &[][..], &[][..]),
        State::Unavailable(error) => (format!("Unavailable: {error}"), &[][..], &[][..]),
        State::Available(certificate) => {
            ("Available".to_owned(), &certificate.key.cert[..], &certificate.roots.certificates[..])
        }
    };
    let list = |all: &[CertificateDer<'_>]| all.iter().filter_map(described).collect::<Vec<_>>();
    json!({ "identity": identity, "state": state, "certChain": list(chain), "rootCerts": list(roots) })
}

fn described(certificate: &CertificateDer<'_>) -> Option<Value> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let body = BASE64_STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let date = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).ok()?;
        let time = Timestamp(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?).to_string();
        // Whole seconds, as Kubernetes writes them.
        Some(format!("{}Z", time.split_once('.')?.0))
    };
    Some(json!({
        "pem": BASE64_STANDARD.encode(pem),
        // istioctl reads it as a decimal number.
        "serialNumber": parsed.tbs_certificate.serial.to_string(),
        "validFrom": date(parsed.validity().not_before)?,
        "expirationTime": date(parsed.validity().not_after)?,
    }))
}
