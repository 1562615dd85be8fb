// SPDX-License-Identifier: Apache-2.0
//! The harness: a whole mesh in network namespaces of one machine, in a few lines.
//!
//! ```no_run
//! use ztunnel_tests::{Mesh, Mode, PodSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mesh = Mesh::builder()
//!     .mode(Mode::Full)
//!     .pod(PodSpec::mesh("client").on("n1"))
//!     .pod(PodSpec::mesh("server").on("n2"))
//!     .start()?;
//! let listener = mesh.pod("server").listen(8080)?;
//! let stream = mesh.pod("client").connect(mesh.pod("server").addr(8080))?;
//! # drop((listener, stream));
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order:
//!
//! * [`mesh`]: the builder, nodes and pods together. [`pod`], [`node`]: one of each.
//! * [`agent`]: the node agent that tells a ztunnel which pods it serves. [`redirect`]: the rules in a pod.
//! * [`istiod`]: the control plane, on a real socket, with faults that can be scripted.
//! * [`netns`], [`cgroup`], [`launch`]: where code and programs run. [`cleanup`]: nothing stays behind.
//! * [`traffic`]: servers and clients that know every byte. [`peer`]: a raw HBONE peer that misbehaves.
//! * [`resolver`]: a DNS server that misbehaves when asked to.
//! * [`envoy`]: a real Envoy in a pod, configured as Istio does.
//! * [`browser`]: what a person sees of a page.
//! * [`observe`]: access log, metrics and what crosses the wire. [`http`]: to ask a ztunnel.
//! * [`prometheus`]: a real Prometheus, and what `deploy/` gives it to do.
//! * [`modes`]: one scenario in every mode of the fast path. [`wait`]: conditions with deadlines.

pub mod agent;
pub mod browser;
pub mod cgroup;
pub mod cleanup;
pub mod envoy;
pub mod http;
pub mod istiod;
pub mod launch;
pub mod mesh;
pub mod modes;
pub mod netns;
pub mod node;
pub mod observe;
pub mod peer;
pub mod pod;
pub mod prometheus;
pub mod redirect;
pub mod resolver;
pub mod traffic;
pub mod wait;

pub use mesh::{Mesh, MeshBuilder};
pub use modes::{Mode, in_every_mode};
pub use netns::Netns;
pub use node::Node;
pub use pod::{Pod, PodSpec};

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The ztunnel under test: `ZTUNNEL_BIN`, or the release build of this workspace.
///
/// # Errors
/// There is none; the error says how to get it.
pub fn ztunnel_binary() -> Result<PathBuf> {
    let path = std::env::var_os("ZTUNNEL_BIN").map_or_else(built, PathBuf::from);
    if !path.is_file() {
        bail!("no ztunnel at {}: run `cargo build --release -p ztunnel`, or set ZTUNNEL_BIN", path.display());
    }
    Ok(path)
}

fn built() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace.join(target).join("release/ztunnel")
}

/// Says what this machine lacks for namespaces, if anything.
///
/// # Errors
/// Not root, no cgroup v2, or a tool is missing.
pub fn need_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run `cargo xtask test` as root");
    }
    cgroup::mount_point()?;
    for tool in ["ip", "iptables-restore", "ip6tables-restore"] {
        if !on_path(tool) {
            bail!("`{tool}` is missing: `cargo xtask test` installs it");
        }
    }
    Ok(())
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(standard).any(|folder| folder.join(tool).is_file())
}

/// A number that the environment may raise for a long run, such as `ZTUNNEL_TESTS_RUNS`.
#[must_use]
pub fn times(variable: &str, default: u64) -> u64 {
    std::env::var_os(variable).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(default)
}
