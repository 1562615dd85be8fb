// SPDX-License-Identifier: Apache-2.0
//! The delta xDS session: what the control plane says about the mesh, and what it is answered.
//!
//! * [`proto`]: the messages.

pub mod proto;
