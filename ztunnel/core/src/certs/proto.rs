// SPDX-License-Identifier: Apache-2.0
//! The messages of `ca.proto`, and the names that go with them.

/// The certificate authority (`istio.v1.auth`).
pub mod auth {
    #![expect(missing_docs, reason = "generated from ca.proto, which explains what needs it")]
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

/// The gRPC method that issues a certificate.
pub const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The entry of a request's metadata that names for whom a node proxy asks.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
