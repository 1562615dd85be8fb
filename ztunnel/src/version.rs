// SPDX-License-Identifier: Apache-2.0
//! What this binary is.

use serde::Serialize;

use crate::fastpath;

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `ztunnel version` prints.
pub fn describe() -> String {
    let object = if fastpath::is_embedded() { "with eBPF object" } else { "built without eBPF object" };
    format!("ztunnel {VERSION} ({object})")
}

/// How it was built, as `config_dump` says it.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build<'a> {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    istio_version: &'a str,
    crypto_provider: &'static str,
    ebpf_object: bool,
}

/// How it was built, and for which Istio: `ISTIO_META_ISTIO_VERSION`.
pub fn build(istio_version: &str) -> Build<'_> {
    Build {
        version: VERSION,
        git_revision: env!("ZTUNNEL_REVISION"),
        rust_version: env!("ZTUNNEL_RUST_VERSION"),
        build_profile: env!("ZTUNNEL_BUILD_PROFILE"),
        build_status: env!("ZTUNNEL_BUILD_STATUS"),
        istio_version,
        crypto_provider: "aws-lc-rs",
        ebpf_object: fastpath::is_embedded(),
    }
}
