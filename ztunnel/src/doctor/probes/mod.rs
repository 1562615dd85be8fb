// SPDX-License-Identifier: Apache-2.0
//! Tries things. Each probe is a few lines of IO without an opinion.

mod bpf;
mod control_plane;
mod host;
mod sockets;

use std::fs;

use ztunnel_core::mesh::local;

use super::facts::{Facts, Failure, Outcome};
use crate::config::env::Env;
use crate::config::{Config, MeshSource};

/// Tries everything.
pub(super) fn collect(env: &impl Env) -> Facts {
    let (settings, config) = match Config::from_env(env) {
        Ok(config) => (Ok("every variable can be used".to_owned()), config),
        Err(error) => (Err(Failure::because(error.to_string())), Config::defaults()),
    };
    let mounts = host::mounts();
    Facts {
        kernel: read("/proc/sys/kernel/osrelease")
            .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()),
        capabilities: host::capabilities(),
        settings,
        mesh: mesh(&config.mesh),
        sockets: sockets::probe(config.sockets.mark),
        bpf: bpf::probe(&config.fastpath, &mounts),
        control_plane: control_plane::probe(&config),
        host: host::probe(&config.inpod_uds, mounts),
        config,
    }
}

fn mesh(source: &MeshSource) -> Option<Outcome> {
    let (name, text) = match source {
        MeshSource::Empty => return None,
        MeshSource::Inline(text) => ("LOCAL_XDS".to_owned(), Ok(text.clone())),
        MeshSource::File(path) => (path.display().to_string(), fs::read_to_string(path)),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => return Some(Err(Failure::because(format!("{name}: {error}")))),
    };
    Some(match local::parse(&text) {
        Ok(mesh) => Ok(format!(
            "{name}: {} workloads, {} services, {} policies",
            mesh.workloads().len(),
            mesh.services().len(),
            mesh.policies().len()
        )),
        Err(error) => Err(Failure::because(format!("{name}: {error}"))),
    })
}

/// A small file, if it can be read.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}
