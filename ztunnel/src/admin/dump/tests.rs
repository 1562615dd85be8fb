// SPDX-License-Identifier: Apache-2.0
//! What istioctl and Kiali read of a dump is there, in the shape they read it in.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use ztunnel_core::mesh::{Everything, Mesh, local};

use super::{Dump, StaticConfig, settings};
use crate::config::Config;
use crate::version;

const MESH: &str = r"
workloads:
- uid: cluster1//Pod/shop/web-1
  name: web-1
  namespace: shop
  serviceAccount: web
  trustDomain: cluster.local
  workloadName: web
  workloadType: deployment
  canonicalName: web
  canonicalRevision: v1
  workloadIps: [10.0.0.2, 'fd00::2']
  protocol: HBONE
  node: n1
  clusterId: cluster1
  network: ''
  waypoint: {destination: shop/waypoint.shop.svc, hboneMtlsPort: 15008}
  authorizationPolicies: [shop/allow-front]
  services: {shop/web.shop.svc: {80: 8080}, shop/missing.shop.svc: {80: 8080}}
services:
- name: web
  namespace: shop
  hostname: web.shop.svc
  vips: [/10.96.0.1]
  ports: {80: 8080}
policies:
- name: allow-front
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/front}]}]]]
";

fn dump(variables: &[(&str, &str)]) -> Value {
    let mesh: Mesh = local::parse(MESH).unwrap();
    let Everything { workloads, services, policies, staged } = mesh.everything();
    let config = Config::from_env(&variables).unwrap();
    let pods = BTreeMap::new();
    let dump = Dump {
        certificates: &[],
        config: settings::shown(&config),
        policies: &policies,
        services: &services,
        staged_services: &staged,
        unknown_policies: BTreeMap::new(),
        static_config: StaticConfig { workloads: &workloads, policies: &policies, services: &services },
        version: version::build("1.29.0"),
        workload_state: Some(&pods),
        workloads: &workloads,
    };
    // Through the text, as a client sees it.
    serde_json::from_str(&serde_json::to_string_pretty(&dump).unwrap()).unwrap()
}

#[test]
fn what_istioctl_reads_of_the_mesh_is_golden() {
    let dump = dump(&[]);
    let keys: Vec<&String> = dump.as_object().unwrap().keys().collect();
    let expected = [
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "unknownPolicies",
        "version",
        "workloadState",
        "workloads",
    ];
    assert_eq!(keys, expected);
    let workload = json!({
        "workloadIps": ["10.0.0.2", "fd00::2"],
        "waypoint": { "destination": "shop/waypoint.shop.svc", "hboneMtlsPort": 15008 },
        "protocol": "HBONE",
        "networkMode": "Standard",
        "uid": "cluster1//Pod/shop/web-1",
        "name": "web-1",
        "namespace": "shop",
        "trustDomain": "cluster.local",
        "serviceAccount": "web",
        "workloadName": "web",
        "workloadType": "deployment",
        "canonicalName": "web",
        "canonicalRevision": "v1",
        "node": "n1",
        "authorizationPolicies": ["shop/allow-front"],
        "status": "Healthy",
        "clusterId": "cluster1",
        "services": ["shop/web.shop.svc", "shop/missing.shop.svc"],
        "capacity": 1,
    });
    assert_eq!(dump["workloads"], json!([workload]));
    let endpoint = json!({ "cluster1//Pod/shop/web-1": {
        "workloadUid": "cluster1//Pod/shop/web-1", "port": { "80": 8080 }, "status": "Healthy",
    }});
    let service = json!({
        "name": "web", "namespace": "shop", "hostname": "web.shop.svc", "vips": ["/10.96.0.1"],
        "ports": { "80": 8080 }, "endpoints": endpoint, "subjectAltNames": [], "canonical": false,
        "visibility": "Public",
    });
    assert_eq!(dump["services"], json!([service]));
    assert_eq!(dump["stagedServices"], json!({ "shop/missing.shop.svc": endpoint }));
    let policy = json!({
        "name": "allow-front", "namespace": "shop", "scope": "WorkloadSelector", "action": "Allow",
        "rules": [[[{ "principals": [{ "Exact": "cluster.local/ns/shop/sa/front" }] }]]], "dryRun": false,
    });
    assert_eq!(dump["policies"], json!([policy]));
    assert_eq!(dump["staticConfig"]["workloads"], dump["workloads"]);
    assert_eq!(dump["version"]["istioVersion"], "1.29.0");
}

#[test]
fn settings_have_the_types_that_kiali_expects() {
    let config = &dump(&[("NODE_NAME", "n1"), ("NETWORK", "net1")])["config"];
    assert_eq!(config["adminAddr"], json!({ "Localhost": [true, 15000] }));
    assert_eq!(config["statsAddr"], json!({ "SocketAddr": "[::]:15020" }));
    assert_eq!(config["outboundAddr"], json!({ "SocketAddr": "[::]:15001" }));
    assert_eq!(config["selfTerminationDeadline"], json!({ "secs": 5, "nanos": 0 }));
    assert_eq!(config["secretTtl"], json!({ "secs": 86_400, "nanos": 0 }));
    assert_eq!(config["proxyMode"], "Shared");
    assert_eq!(config["localNode"], "n1");
    assert_eq!(config["windowSize"], 4_194_304);
    assert_eq!(config["proxyMetadata"]["NODE_NAME"], "n1");
    for number in
        ["connectionWindowSize", "frameSize", "numWorkerThreads", "packetMark", "poolMaxStreamsPerConn"]
    {
        assert!(config[number].is_u64(), "{number}: {config}");
    }
}

#[test]
fn nothing_that_is_secret_is_shown() {
    let variables = [
        ("XDS_HEADER_AUTHORIZATION", "Bearer xds-secret"),
        ("CA_HEADER_X_KEY", "ca-secret"),
        ("AUTH_TOKEN", "token-secret"),
        ("XDS_ROOT_CA", "-----BEGIN CERTIFICATE-----\nroot-bytes\n-----END CERTIFICATE-----"),
    ];
    let dump = dump(&variables);
    let text = dump.to_string();
    assert!(!text.contains("-secret") && !text.contains("root-bytes"), "{text}");
    assert_eq!(dump["config"]["xdsHeaders"], json!([["authorization", "(not shown)"]]));
    assert_eq!(dump["config"]["xdsRootCert"], "Static");
}
