// SPDX-License-Identifier: Apache-2.0
//! What the admin server shows: `/config_dump` for istioctl, `/status` for people and `ztunnel status`.

use serde_json::{Value, json};

use super::Doors;
use crate::version;

/// The mesh as this node knows it, in the schema that istioctl reads (data-plane contract, section 7.3).
pub fn config_dump(doors: &Doors) -> Value {
    let (workloads, services, policies) = doors
        .shared
        .mesh
        .read(|mesh| (json!(mesh.workloads()), json!(mesh.services()), json!(mesh.policies())));
    let certificates: Vec<Value> = doors
        .shared
        .certs
        .all()
        .iter()
        .map(|certificate| json!({ "identity": certificate.identity.to_string(), "state": "Available" }))
        .collect();
    let pods: serde_json::Map<String, Value> = doors
        .pods
        .status()
        .into_iter()
        .map(|pod| {
            let info = json!({
                "name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account,
            });
            (pod.uid, json!({ "state": "Up", "info": info }))
        })
        .collect();
    json!({
        "certificates": certificates,
        "policies": policies,
        "services": services,
        "version": { "version": version::VERSION },
        "workloadState": pods,
        "workloads": workloads,
    })
}

/// The node at a glance: the fast path first, then every pod.
pub fn status(doors: &Doors) -> Value {
    let fastpath = doors.shared.fastpath.status();
    json!({
        "version": version::VERSION,
        "pending": doors.readiness.pending(),
        "mode": fastpath.mode,
        "self_test": fastpath.self_test,
        "fastpath": fastpath.fastpath,
        "pods": doors.pods.status(),
    })
}
