// SPDX-License-Identifier: Apache-2.0
//! The messages of `discovery.proto`, `workload.proto` and `authorization.proto`, and the names of their types.

/// Delta xDS (`envoy.service.discovery.v3`).
pub mod discovery {
    #![expect(missing_docs, reason = "generated from discovery.proto, which explains what needs it")]
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}

/// Workloads and services (`istio.workload`).
pub mod workload {
    #![expect(missing_docs, reason = "generated from workload.proto, which explains what needs it")]
    #![expect(clippy::large_enum_variant, reason = "generated, and gone as soon as it is understood")]
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

/// Authorization policies (`istio.security`).
pub mod security {
    #![expect(missing_docs, reason = "generated from authorization.proto, which explains what needs it")]
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}

/// The gRPC method of the delta stream.
pub const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Authorization policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
