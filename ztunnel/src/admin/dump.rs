// SPDX-License-Identifier: Apache-2.0
//! `/config_dump`, which istioctl reads.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::{Everything, Mesh};
use ztunnel_core::report::access::Timestamp;

use super::Doors;
use crate::certs::store::State;
use crate::config::ProxyMode;
use crate::version;

/// The mesh as this node knows it, in the schema that istioctl reads (data-plane contract, section 7.3).
pub fn config_dump(doors: &Doors) -> Value {
    // Only collected under the lock: to write them takes a while.
    let Everything { mut workloads, mut services, mut policies } = doors.shared.mesh.read(Mesh::everything);
    workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    services.sort_unstable_by(|a, b| (&a.hostname, &a.namespace).cmp(&(&b.hostname, &b.namespace)));
    policies.sort_unstable_by_key(|policy| policy.key());
    let certificates: Vec<Value> =
        doors.shared.certs.all().iter().map(|(identity, state)| certificate(identity, state)).collect();
    let pods = doors.pods.contexts();
    // Ours: istioctl leaves it alone.
    let unknown: serde_json::Map<String, Value> = pods
        .iter()
        .map(|context| (context.pod.to_string(), context.unknown_policies()))
        .filter(|(_, unknown)| !unknown.is_empty())
        .map(|(pod, unknown)| (pod, json!(unknown)))
        .collect();
    let pods: serde_json::Map<String, Value> = pods
        .into_iter()
        .map(|context| {
            let pod = &context.pod;
            let info = json!({
                "name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account,
            });
            (context.uid.to_string(), json!({ "state": "Up", "info": info }))
        })
        .collect();
    let mut dump = json!({
        "certificates": certificates,
        "policies": policies,
        "services": services,
        "unknownPolicies": unknown,
        "version": { "version": version::VERSION },
        "workloads": workloads,
    });
    if doors.shared.config.mode == ProxyMode::Shared {
        dump["workloadState"] = pods.into();
    }
    dump
}

/// One identity's entry, as istioctl reads it. The key is not part of it.
fn certificate(identity: &Identity, state: &State) -> Value {
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
