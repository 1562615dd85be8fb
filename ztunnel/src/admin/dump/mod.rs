// SPDX-License-Identifier: Apache-2.0
//! `/config_dump`: what this node knows, in the schema that istioctl and Kiali read.
//!
//! The dump of a mesh of 100,000 workloads is some hundred megabytes: it is written while the client reads it, from
//! references that were collected under the lock. Source: data-plane contract, section 7.3.
//!
//! * [`settings`]: `config`. * [`certificates`]: `certificates`. * [`pods`]: `workloadState`.

mod certificates;
mod pods;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use http::Response;
use serde::Serialize;
use serde_json::{Value, json};
use ztunnel_core::mesh::{Everything, Mesh, Policy, Service, ServiceKey, StagedEndpoints, Workload};

use super::Doors;
use super::http::{Body, streamed};
use crate::config::{MeshSource, ProxyMode};
use crate::version;
use pods::PodState;

/// Keys in the order of the alphabet, as upstream has them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    certificates: &'a [Value],
    config: Value,
    policies: &'a [Arc<Policy>],
    services: &'a [Arc<Service>],
    staged_services: &'a BTreeMap<ServiceKey, StagedEndpoints>,
    static_config: StaticConfig<'a>,
    /// Ours: policies that pods name and that have not arrived, by pod.
    unknown_policies: BTreeMap<String, Value>,
    version: version::Build<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_state: Option<&'a BTreeMap<String, PodState>>,
    workloads: &'a [Arc<Workload>],
}

/// What came from a file, not from the control plane.
#[derive(Default, Serialize)]
struct StaticConfig<'a> {
    workloads: &'a [Arc<Workload>],
    policies: &'a [Arc<Policy>],
    services: &'a [Arc<Service>],
}

/// The answer to `/config_dump`.
pub(super) fn config_dump(doors: Doors) -> Response<Body> {
    streamed("application/json", move |mut chunks| {
        write(&doors, &mut chunks)?;
        chunks.write_all(b"\n")?;
        chunks.flush()
    })
}

fn write(doors: &Doors, out: impl Write) -> io::Result<()> {
    // Only collected under the lock: to write them takes a while.
    let Everything { mut workloads, mut services, mut policies, staged } =
        doors.shared.mesh.read(Mesh::everything);
    workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    services.sort_unstable_by(|a, b| (&a.hostname, &a.namespace).cmp(&(&b.hostname, &b.namespace)));
    policies.sort_unstable_by_key(|policy| policy.key());
    let mut identities = doors.shared.certs.all();
    identities.sort_by_cached_key(|(identity, _)| identity.to_string());
    let certificates: Vec<Value> =
        identities.iter().map(|(identity, state)| certificates::certificate(identity, state)).collect();
    let config = &doors.shared.config;
    let pods = (config.mode == ProxyMode::Shared).then(|| pods::all(&doors.pods));
    let from_a_file = config.mesh != MeshSource::Empty && config.xds.is_none();
    let static_config = if from_a_file {
        StaticConfig { workloads: &workloads, policies: &policies, services: &services }
    } else {
        StaticConfig::default()
    };
    let dump = Dump {
        certificates: &certificates,
        config: settings::shown(config),
        policies: &policies,
        services: &services,
        staged_services: &staged,
        static_config,
        unknown_policies: doors
            .pods
            .contexts()
            .iter()
            .map(|context| (context.pod.to_string(), context.unknown_policies()))
            .filter(|(_, unknown)| !unknown.is_empty())
            .map(|(pod, unknown)| (pod, json!(unknown)))
            .collect(),
        version: version::build(&doors.tag),
        workload_state: pods.as_ref(),
        workloads: &workloads,
    };
    serde_json::to_writer_pretty(out, &dump).map_err(io::Error::from)
}
