// SPDX-License-Identifier: Apache-2.0
//! What this binary is.

use crate::fastpath;

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `ztunnel version` prints.
pub fn describe() -> String {
    let object = if fastpath::is_embedded() { "with eBPF object" } else { "built without eBPF object" };
    format!("ztunnel {VERSION} ({object})")
}
