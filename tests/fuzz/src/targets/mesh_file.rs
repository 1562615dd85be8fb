// SPDX-License-Identifier: Apache-2.0
//! The mesh as a file that an operator writes.

use ztunnel_core::mesh::{Mesh, local};

pub(super) fn run(data: &[u8]) {
    let Ok(yaml) = str::from_utf8(data) else { return };
    match local::parse(yaml) {
        Ok(mesh) => dumped(&mesh),
        Err(error) => {
            assert!(!error.reason.is_empty());
            let lines = u64::try_from(yaml.split(['\n', '\r']).count()).expect("a small file");
            // A file that ends too early is wrong one line further on.
            assert!((1..=lines + 1).contains(&error.line), "line {} of {lines}", error.line);
        }
    }
}

/// Whatever is in the mesh can be shown to the operator.
pub(super) fn dumped(mesh: &Mesh) {
    for workload in mesh.workloads() {
        serde_json::to_string(workload).expect("a workload can be dumped");
        let applied = mesh.policies_for(workload);
        assert!(applied.missing.iter().all(|key| mesh.policy(key).is_none()));
        mesh.services_of(workload).for_each(drop);
    }
    for service in mesh.services() {
        serde_json::to_string(service).expect("a service can be dumped");
    }
    for policy in mesh.policies() {
        serde_json::to_string(policy).expect("a policy can be dumped");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let whole = "\
workloads:
- uid: c1//Pod/shop/web-0
  name: web-0
  namespace: shop
  serviceAccount: web
  trustDomain: cluster.local
  node: n1
  network: n
  protocol: HBONE
  workloadIps: [\"10.9.0.5\", \"fd00::5\"]
  authorizationPolicies: [\"shop/only-front\"]
  waypoint: {destination: \"/10.9.0.9\", hboneMtlsPort: 15008}
  locality: {region: r, zone: z, subzone: s}
  status: Healthy
  services:
    shop/web.shop.svc.cluster.local: {80: 8080}
services:
- name: web
  namespace: shop
  hostname: web.shop.svc.cluster.local
  vips: [\"/10.96.7.7\"]
  ports: {80: 8080}
  subjectAltNames: [\"spiffe://cluster.local/ns/shop/sa/web\"]
  loadBalancer: {mode: Failover, routingPreferences: [Network, Region]}
policies:
- name: only-front
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact cluster.local/ns/shop/sa/front, !Prefix a, !Suffix b, Presence]
        notNamespaces: [!Exact x]
        sourceIps: [10.0.0.0/8]
        destinationPorts: [8080]
";
    let parts = ["workloads", "services", "policies"].map(|part| {
        let from = whole.find(&format!("{part}:")).expect("a part of it");
        let rest = &whole[from..];
        let to = rest
            .match_indices('\n')
            .find(|&(at, _)| rest[at + 1..].starts_with(|c: char| c.is_ascii_lowercase()));
        rest[..to.map_or(rest.len(), |(at, _)| at + 1)].as_bytes().to_vec()
    });
    [whole.as_bytes().to_vec(), b"{}".to_vec(), b"workloads: &a [*a]".to_vec()]
        .into_iter()
        .chain(parts)
        .collect()
}
