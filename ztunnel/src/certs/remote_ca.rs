// SPDX-License-Identifier: Apache-2.0
//! Asks istiod, or another authority that speaks its protocol, for certificates.
//!
//! Every request has a key of its own, which never leaves this process. Source: control-plane contract, sections 4.1
//! and 4.2.

use std::collections::BTreeMap;
use std::time::Duration;

use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tonic::metadata::MetadataMap;
use tonic_prost::ProstCodec;
use ztunnel_core::certs::proto::auth::{IstioCertificateRequest, IstioCertificateResponse};
use ztunnel_core::certs::proto::{IMPERSONATED_IDENTITY, METHOD};
use ztunnel_core::identity::Identity;

use super::answer::{self, RootsCache};
use super::{CertError, Certificate};
use crate::config::TlsConfig;
use crate::config::ca::RemoteCaConfig;
use crate::grpc::Server;

/// No request may take longer. The next one is a matter of backoff.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// For whom we ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A node proxy, which asks for the workloads of its node.
    Node,
    /// A workload, which asks for itself.
    Workload,
}

/// The authority.
#[derive(Debug)]
pub struct RemoteCa {
    server: Server,
    lifetime: Duration,
    caller: Caller,
    roots: Mutex<RootsCache>,
}

impl RemoteCa {
    /// Nothing is opened before the first request.
    pub fn new(config: RemoteCaConfig, tls: TlsConfig, caller: Caller) -> Self {
        let RemoteCaConfig { server, credentials, lifetime } = config;
        let server = Server::new(server, credentials, tls);
        Self { server, lifetime, caller, roots: Mutex::default() }
    }

    /// Obtains a certificate for `identity`.
    ///
    /// # Errors
    /// The authority was not reached in time, refused, or answered with something else than what it was asked for.
    pub async fn issue(&self, identity: &Identity) -> Result<Certificate, CertError> {
        let (key, csr) = signing_request(identity).map_err(|error| CertError::Request(error.to_string()))?;
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: (self.caller == Caller::Node).then(|| impersonate(identity)),
        };
        let call = async {
            let metadata = MetadataMap::from_headers(self.server.metadata()?);
            let channel = self.server.channel().await?;
            let mut client = tonic::client::Grpc::with_origin(channel, self.server.address().clone());
            let mut request = tonic::Request::new(message);
            *request.metadata_mut() = metadata;
            let broken =
                |error: hyper::Error| self.server.error(&tonic::Status::unavailable(error.to_string()));
            client.ready().await.map_err(broken)?;
            let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
            let answer = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.server.error(&status))
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, call).await;
        let answer = answer.map_err(|_elapsed| CertError::Slow(CALL_TIMEOUT.as_secs()))??;
        Ok(answer::accept(identity, &key, &answer.cert_chain, &mut self.roots.lock())?)
    }
}

/// A fresh key, and the request to certify it: P-256, no subject, one critical URI name.
fn signing_request(identity: &Identity) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

fn impersonate(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::*;

    use super::*;

    #[test]
    fn the_signing_request_names_nothing_but_the_identity() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let (_, pem) = signing_request(&identity).unwrap();
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        request.verify_signature().unwrap();
        let info = &request.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(request.signature_algorithm.algorithm, oid_registry::OID_SIG_ECDSA_WITH_SHA256);
        let extensions: Vec<_> = info
            .iter_attributes()
            .flat_map(|attribute| match attribute.parsed_attribute() {
                ParsedCriAttribute::ExtensionRequest(request) => request.extensions.clone(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(extensions.len(), 1, "{extensions:?}");
        assert!(extensions[0].critical);
        let ParsedExtension::SubjectAlternativeName(names) = extensions[0].parsed_extension() else {
            panic!("a subject alternative name")
        };
        assert_eq!(names.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    }

    #[test]
    fn every_request_has_a_key_of_its_own() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let keys = [signing_request(&identity), signing_request(&identity)].map(|made| made.unwrap().0);
        assert_ne!(keys[0].public_key_raw(), keys[1].public_key_raw());
    }
}
