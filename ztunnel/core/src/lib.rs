// SPDX-License-Identifier: Apache-2.0
//! Every decision that ztunnel takes, and nothing else.
//!
//! The promise: no IO, no clock, no randomness of its own, no logging, no waiting. What a decision needs
//! comes in as an argument, the answer goes out as a value, and a refusal is a value as well. The IO shell
//! (the `ztunnel` crate) asks and acts.
//!
//! In reading order:
//!
//! * [`addr`], [`identity`]: the small vocabulary.
//! * [`mesh`]: what the control plane told us.
//! * [`route`], [`lb`]: where a connection goes. [`resolve`]: what host names are known to stand for.
//! * [`authz`]: whether it may.
//! * [`dns`]: what a pod's questions are answered with. [`socks5`]: how a pod says where it wants to go.
//! * [`hbone`]: how it travels between proxies.
//! * [`zds`]: which pods are served. [`xds`]: how the mesh becomes known.
//! * [`certs`]: which certificate is fetched when.
//! * [`pool`]: which tunnel carries it.
//! * [`report`]: what is said about it.
//! * [`fastpath`]: whether the kernel may carry its bytes.
//! * [`profile`]: how profiles of this process are written.

#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

// Reading order: the empty lines keep rustfmt from sorting it away.
pub mod addr;
pub mod identity;
pub mod mesh;
pub mod route;

pub mod lb;

pub mod resolve;

pub mod authz;
pub mod certs;
pub mod dns;
pub mod hbone;
pub mod socks5;
pub mod xds;
pub mod zds;

pub mod pool;
pub mod report;

pub mod fastpath;

pub mod profile;

/// A name from the control plane, shared by everybody who holds it.
pub type Name = std::sync::Arc<str>;
