// SPDX-License-Identifier: Apache-2.0
//! What is in `deploy/`, held against the product.
//!
//! * [`queries`]: dashboard and rules name only what exists. [`manifest`]: what a pod gets is enough.
//! * [`mesh`]: a real Prometheus on a mesh in trouble. [`families`]: what a node exposes.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod families;
mod manifest;
mod mesh;
mod queries;
