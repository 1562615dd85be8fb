// SPDX-License-Identifier: Apache-2.0
//! What a local mesh file may say, and how its mistakes are reported.

use proptest::prelude::*;

use super::parse;
use crate::mesh::{Action, StringMatch};

const EXAMPLE: &str = "\
workloads:
- uid: c1//Pod/shop/web-0
  name: web-0
  namespace: shop
  serviceAccount: web
  trustDomain: cluster.local
  node: n1
  protocol: HBONE
  workloadIps: [\"10.9.0.5\"]
  authorizationPolicies: [\"shop/only-front\"]
  services:
    shop/web.shop.svc.cluster.local: {80: 8080}
services:
- name: web
  namespace: shop
  hostname: web.shop.svc.cluster.local
  vips: [\"/10.96.7.7\"]
  ports: {80: 8080}
policies:
- name: only-front
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact cluster.local/ns/shop/sa/front]
        destinationPorts: [8080]
";

#[test]
fn the_example_is_read_whole_and_dumped_in_the_admin_shape() {
    let mesh = parse(EXAMPLE).unwrap();
    let workload = mesh.workload_by_addr("", "10.9.0.5".parse().unwrap()).unwrap();
    assert_eq!(workload.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(
        serde_json::to_value(workload).unwrap(),
        serde_json::json!({
            "uid": "c1//Pod/shop/web-0", "name": "web-0", "namespace": "shop", "serviceAccount": "web",
            "trustDomain": "cluster.local", "node": "n1", "protocol": "HBONE", "networkMode": "Standard",
            "workloadIps": ["10.9.0.5"], "authorizationPolicies": ["shop/only-front"],
            "services": ["shop/web.shop.svc.cluster.local"], "status": "Healthy", "capacity": 1,
            "clusterId": "",
        })
    );
    let service = mesh.service_by_vip("", "10.96.7.7".parse().unwrap(), Some("other")).unwrap();
    assert_eq!(
        serde_json::to_value(service).unwrap(),
        serde_json::json!({
            "name": "web", "namespace": "shop", "hostname": "web.shop.svc.cluster.local",
            "vips": ["/10.96.7.7"], "ports": {"80": 8080}, "subjectAltNames": [], "canonical": false,
            "visibility": "Public",
            "endpoints": {"c1//Pod/shop/web-0": {
                "workloadUid": "c1//Pod/shop/web-0", "port": {"80": 8080}, "status": "Healthy"}},
        })
    );
    let policy = mesh.policy("shop/only-front").unwrap();
    assert_eq!(policy.action, Action::Allow);
    assert_eq!(
        serde_json::to_value(policy).unwrap(),
        serde_json::json!({
            "name": "only-front", "namespace": "shop", "scope": "WorkloadSelector", "action": "Allow",
            "dryRun": false,
            "rules": [[[{"principals": [{"Exact": "cluster.local/ns/shop/sa/front"}],
                         "destinationPorts": [8080]}]]],
        })
    );
}

#[test]
fn every_kind_of_string_match_is_a_tag() {
    let yaml = "policies: [{name: p, namespace: n, scope: Global, action: Deny, dryRun: true, rules: [[[\
        {namespaces: [!Exact a, !Prefix b, !Suffix c, !Presence []]}]]]}]";
    let mesh = parse(yaml).unwrap();
    let policy = mesh.policy("n/p").unwrap();
    assert_eq!(
        policy.rules[0].clauses[0].matches[0].namespaces,
        [
            StringMatch::Exact("a".into()),
            StringMatch::Prefix("b".into()),
            StringMatch::Suffix("c".into()),
            StringMatch::Presence(),
        ]
    );
}

#[test]
fn a_file_without_anything_is_an_empty_mesh() {
    for yaml in ["", "# nothing\n", "{}", "workloads: []"] {
        assert!(parse(yaml).unwrap().workloads().is_empty(), "{yaml:?}");
    }
}

/// A workload with these extra lines.
fn workload(extra: &str) -> String {
    format!("workloads:\n- uid: a\n  namespace: n\n  workloadIps: []\n  services: {{}}\n{extra}")
}

#[test]
fn a_mistake_is_reported_with_its_place_and_reason() {
    let cases: &[(&str, &str)] = &[
        ("workloads: [", "line 1, "),
        ("pods: []", "line 1, column 1: unknown"),
        (&workload("  colour: red"), "line 6, column 3: unknown"),
        (&workload("  protocol: QUIC"), "line 6, column 13: "),
        (&workload("  capacity: -1"), "line 6, column 13: "),
        (&workload("  capacity: 5000000000"), "line 6, column 13: "),
        (&workload("  nativeTunnel: yes"), "line 6, column 17: "),
        (&workload("  uid: b"), "line 6, column 3: "),
        (&workload("  authorizationPolicies: [p]"), "line 6, column 27: `p` is not `namespace/name`"),
        (
            &workload("  waypoint: {destination: nowhere, hboneMtlsPort: 15008}"),
            "line 6, column 27: `nowhere` is neither",
        ),
        (&workload("  waypoint: {destination: /10.0.0.1, hboneMtlsPort: 99999}"), "line 6, "),
        (&workload("  locality: {region: r, zone: z}"), "line 6, "),
        (&workload("  applicationTunnel: {protocol: HTTP}"), "line 6, column 33"),
        (&workload("- {uid: a, namespace: n, workloadIps: [], services: {}}"), "line 6, column 3: several"),
        ("workloads: [{namespace: n, workloadIps: []}]", "line 1, column 28: missing"),
        (
            "workloads: [{workloadIps: [1.2.3.4.5], namespace: n, services: {}}]",
            "line 1, column 28: `1.2.3.4.5` is not an IP",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: {web: {80: 80}}}]",
            "line 1, column 56: `web` is not `namespace/hostname`",
        ),
        (
            "workloads: [{workloadIps: [], namespace: n, services: {n/web: {0: 80}}}]",
            "line 1, column 63: 0 is not",
        ),
        ("workloads: [{workloadIps: [], namespace: n, services: {n/web: {80: x}}}]", "line 1, column 68: "),
        (
            "services: [{name: s, namespace: n, hostname: h, vips: [10.0.0.1], ports: {}}]",
            "line 1, column 56: `10.0.0.1` is not `network/ip`",
        ),
        ("services: [{name: s, namespace: n, hostname: h, ports: {}}]", "line 1, column 49: missing"),
        (
            "services:\n- &s {name: s, namespace: n, hostname: h, vips: [], ports: {}}\n- {name: t, namespace: n, hostname: h, vips: [], ports: {}}",
            "line 3, column 3: several services have the key `n/h`",
        ),
        (
            "services: [{name: s, namespace: n, hostname: h, vips: [], ports: {}, endpoints: {a: {workloadUid: b, port: {}, status: Healthy}}}]",
            "line 1, column 85: endpoint `a` is for another workload",
        ),
        (
            "policies: [{name: p, namespace: n, scope: Global, action: Audit, dryRun: false, rules: []}]",
            "line 1, column 59: ",
        ),
        (
            "policies: [{name: p, namespace: n, scope: Global, action: Deny, rules: []}]",
            "line 1, column 65: missing",
        ),
        (&policy("sourceIps: [10.0.0.1]"), "line 1, column 103: `10.0.0.1` is not an address range"),
        (&policy("principals: [!Like x]"), "line 1, column 110: tagged enum `Like`"),
        (&policy("principals: [x]"), "line 1, column 104: unknown"),
        (&policy("notPrincipal: [!Exact x]"), "line 1, column 91: unknown"),
        (&policy("destinationPorts: [65536]"), "line 1, column 110: "),
        ("workloads: []\n---\nworkloads: []", "line "),
    ];
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(yaml, expected)| {
            let said = parse(yaml).map_or_else(|error| error.to_string(), |_| "nothing".to_owned());
            (!said.starts_with(expected)).then(|| format!("{yaml}\n  said {said}\n  not  {expected}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A policy with one match.
fn policy(inside: &str) -> String {
    format!(
        "policies: [{{name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{{{inside}}}]]]}}]"
    )
}

#[test]
fn endpoints_wait_for_their_service_and_their_health() {
    let yaml = "
workloads:
- {uid: a, namespace: n, workloadIps: [], services: {n/h: {80: 81}}}
- {uid: b, namespace: n, workloadIps: [], services: {n/h: {80: 81}}, status: Unhealthy}
- {uid: c, namespace: n, workloadIps: [], services: {n/other: {80: 81}}}
services:
- {name: s, namespace: n, hostname: h, vips: [], ports: {80: 0}}
";
    let mut mesh = parse(yaml).unwrap();
    let held = |mesh: &crate::mesh::Mesh| {
        mesh.service_by_name("n", "h").unwrap().endpoints.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(held(&mesh), ["a"]);
    assert_eq!(mesh.staged().keys().map(ToString::to_string).collect::<Vec<_>>(), ["n/other"]);

    let service = mesh.remove_service("n", "h").unwrap();
    assert!(mesh.service_by_name("n", "h").is_none());
    assert_eq!(mesh.staged().len(), 2);
    let mut lenient = (*service).clone();
    lenient.load_balancer = Some(crate::mesh::LoadBalancer {
        routing_preferences: vec![],
        mode: crate::mesh::LoadBalancerMode::Standard,
        health_policy: crate::mesh::HealthPolicy::AllowAll,
    });
    mesh.insert_service(lenient);
    assert_eq!(held(&mesh), ["a", "b"]);

    mesh.remove_workload("a");
    assert_eq!(held(&mesh), ["b"]);
    mesh.insert_service((*service).clone());
    assert_eq!(held(&mesh), ["a"], "what the service itself declares counts");
}

proptest! {
    /// A file that was cut off, or had a few characters swapped: taken or refused with a place in it.
    #[test]
    fn a_damaged_file_is_refused_in_order(
        cut in 0..EXAMPLE.len(),
        swaps in prop::collection::vec((0..EXAMPLE.len(), any::<char>()), 0..4),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().take(cut).collect();
        for (at, with) in swaps {
            if let Some(place) = text.get_mut(at) {
                *place = with;
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert!(error.line >= 1 && error.column >= 1 && !error.reason.is_empty());
        }
    }
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "[".repeat(100_000);
    assert!(parse(&format!("policies: {deep}")).is_err());
    assert!(parse(&format!("pods: {deep}")).is_err());
    let block: String = (0..20_000).map(|depth| format!("{}a:\n", " ".repeat(depth % 3_000))).collect();
    assert!(parse(&block).is_err());
}
