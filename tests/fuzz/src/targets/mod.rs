// SPDX-License-Identifier: Apache-2.0
//! The targets, one module per speaker whom we do not trust.
//!
//! A target asserts more than the absence of a panic: what was accepted comes back as it was when it is printed, and
//! what was refused has a reason.

mod connect;
mod dns;
mod mesh_file;
mod names;
mod resources;
mod socks5;
mod xds_session;
mod zds;

/// One way in.
pub(crate) struct Target {
    /// The module's name.
    pub(crate) name: &'static str,
    /// Reads one input. A panic is a finding.
    pub(crate) run: fn(&[u8]),
    /// Inputs to begin with.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub(crate) const ALL: &[Target] = &[
    Target { name: "connect", run: connect::run, seeds: connect::seeds },
    Target { name: "dns", run: dns::run, seeds: dns::seeds },
    Target { name: "mesh_file", run: mesh_file::run, seeds: mesh_file::seeds },
    Target { name: "names", run: names::run, seeds: names::seeds },
    Target { name: "resources", run: resources::run, seeds: resources::seeds },
    Target { name: "socks5", run: socks5::run, seeds: socks5::seeds },
    Target { name: "xds_session", run: xds_session::run, seeds: xds_session::seeds },
    Target { name: "zds", run: zds::run, seeds: zds::seeds },
];
