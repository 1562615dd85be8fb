// SPDX-License-Identifier: Apache-2.0
//! Which workload, service and policy a lookup finds, and what is left after a removal.

use std::sync::Arc;

use super::local::parse;
use super::{Change, Effect, Mesh, Workload};

#[track_caller]
fn vip(mesh: &Mesh, ip: &str, client_namespace: Option<&str>) -> Option<String> {
    let found = mesh.service_by_vip("", ip.parse().unwrap(), client_namespace);
    found.map(|service| service.key().to_string())
}

/// Services `namespace/hostname` with one address and these extra keys.
fn services(all: &[(&str, &str)]) -> Mesh {
    let yaml: String = all
        .iter()
        .map(|(key, extra)| {
            let (namespace, hostname) = key.split_once('/').unwrap();
            format!(
                "- {{name: s, namespace: {namespace}, hostname: {hostname}, vips: [/10.96.0.1], ports: {{}}{extra}}}\n"
            )
        })
        .collect();
    parse(&format!("services:\n{yaml}")).unwrap()
}

#[test]
fn own_namespace_then_last_canonical_then_first() {
    let plain = services(&[("a/h", ""), ("b/h", ""), ("c/h", "")]);
    assert_eq!(vip(&plain, "10.96.0.1", Some("b")).as_deref(), Some("b/h"));
    assert_eq!(vip(&plain, "10.96.0.1", Some("x")).as_deref(), Some("a/h"));
    assert_eq!(vip(&plain, "10.96.0.1", None).as_deref(), Some("a/h"));
    assert_eq!(vip(&plain, "::ffff:10.96.0.1", None).as_deref(), Some("a/h"));
    assert_eq!(vip(&plain, "10.96.0.2", None), None);
    let canonical = services(&[("a/h", ""), ("b/h", ", canonical: true"), ("c/h", ", canonical: true")]);
    assert_eq!(vip(&canonical, "10.96.0.1", Some("a")).as_deref(), Some("a/h"));
    assert_eq!(vip(&canonical, "10.96.0.1", Some("x")).as_deref(), Some("c/h"));
    let host = |namespace| canonical.service_by_hostname("h", namespace).map(|s| s.key().to_string());
    assert_eq!(host(Some("b")).as_deref(), Some("b/h"));
    assert_eq!(host(None).as_deref(), Some("c/h"));
}

#[test]
fn a_hidden_service_is_found_from_its_own_namespace() {
    let mesh = services(&[("a/h", ", visibility: Namespace"), ("b/i", ", visibility: Namespace")]);
    assert_eq!(vip(&mesh, "10.96.0.1", Some("b")).as_deref(), Some("b/i"));
    assert_eq!(vip(&mesh, "10.96.0.1", Some("x")), None);
    assert_eq!(vip(&mesh, "10.96.0.1", None).as_deref(), Some("a/h"));
}

#[test]
fn a_range_is_consulted_if_no_address_fits() {
    let range = |cidr: &str, extra: &str| format!(", cidrVips: [{{network: '', cidr: {cidr}}}]{extra}");
    let mesh = services(&[
        ("a/wide", &range("10.0.0.0/8", "")),
        ("b/narrow", &range("10.7.0.0/16", "")),
        ("c/canonical", &range("10.7.0.0/16", ", canonical: true")),
    ]);
    assert_eq!(vip(&mesh, "10.96.0.1", Some("b")).as_deref(), Some("b/narrow"), "an exact address");
    assert_eq!(vip(&mesh, "10.7.0.1", Some("x")).as_deref(), Some("c/canonical"));
    assert_eq!(vip(&mesh, "10.7.0.1", Some("b")).as_deref(), Some("b/narrow"));
    assert_eq!(vip(&mesh, "10.7.0.1", Some("a")).as_deref(), Some("a/wide"));
    assert_eq!(vip(&mesh, "10.8.0.1", Some("x")).as_deref(), Some("a/wide"));
    assert_eq!(vip(&mesh, "192.0.2.1", Some("x")), None);
}

#[test]
fn a_removed_service_leaves_nothing_behind() {
    let range = ", cidrVips: [{network: '', cidr: 10.7.0.0/16}]";
    let mut mesh = services(&[("a/h", range), ("b/h", range)]);
    mesh.remove_service("a", "h").unwrap();
    assert!(mesh.remove_service("a", "h").is_none());
    assert_eq!(vip(&mesh, "10.96.0.1", Some("a")).as_deref(), Some("b/h"));
    assert_eq!(vip(&mesh, "10.7.0.1", Some("a")).as_deref(), Some("b/h"));
    mesh.remove_service("b", "h").unwrap();
    assert_eq!(vip(&mesh, "10.96.0.1", None), None);
    assert_eq!(vip(&mesh, "10.7.0.1", None), None);
    assert!(mesh.service_by_hostname("h", None).is_none());
    assert!(mesh.services().is_empty());
}

#[test]
fn a_replaced_service_gives_up_its_old_addresses() {
    let mut mesh = services(&[("a/h", ""), ("b/h", "")]);
    let mut moved = (**mesh.service_by_name("a", "h").unwrap()).clone();
    moved.vips[0].ip = "10.96.0.2".parse().unwrap();
    mesh.insert_service(moved);
    assert_eq!(vip(&mesh, "10.96.0.1", Some("a")).as_deref(), Some("b/h"));
    assert_eq!(vip(&mesh, "10.96.0.2", None).as_deref(), Some("a/h"));
    assert_eq!(mesh.services().len(), 2);
}

#[test]
fn an_address_belongs_to_the_workload_with_the_best_claim() {
    let workload = |uid: &str, protocol: &str| {
        format!(
            "- {{uid: {uid}, namespace: n, workloadIps: [10.0.0.1], services: {{}}, protocol: {protocol}}}\n"
        )
    };
    let found = |all: &[&String]| {
        let all: String = all.iter().map(|one| one.as_str()).collect();
        let mesh = parse(&format!("workloads:\n{all}")).unwrap();
        mesh.workload_by_addr("", "10.0.0.1".parse().unwrap()).unwrap().uid.to_string()
    };
    let pod_hbone = &workload("c//Pod/n/a", "HBONE");
    let pod = &workload("c//Pod/n/b", "TCP");
    let vm_hbone = &workload("vm1", "HBONE");
    let vm = &workload("vm2", "TCP");
    assert_eq!(found(&[pod_hbone, pod, vm_hbone, vm]), "c//Pod/n/a");
    assert_eq!(found(&[vm, vm_hbone, pod]), "c//Pod/n/b");
    assert_eq!(found(&[vm_hbone, vm]), "vm1");
    assert_eq!(found(&[vm, &workload("vm3", "TCP")]), "vm3", "of equal claims the last");
}

#[test]
fn workloads_are_found_in_their_own_network_and_never_by_their_nodes_address() {
    let mut mesh = parse(
        "workloads:
- {uid: a, namespace: n, network: net1, workloadIps: [10.0.0.1], services: {}}
- {uid: b, namespace: n, network: net2, workloadIps: [10.0.0.1], services: {}}
- {uid: c, namespace: n, network: net1, workloadIps: [10.0.0.2], services: {}, networkMode: HostNetwork}",
    )
    .unwrap();
    let uid = |mesh: &Mesh, network: &str, ip: &str| {
        mesh.workload_by_addr(network, ip.parse().unwrap()).map(|workload| workload.uid.to_string())
    };
    assert_eq!(uid(&mesh, "net1", "10.0.0.1").as_deref(), Some("a"));
    assert_eq!(uid(&mesh, "net2", "10.0.0.1").as_deref(), Some("b"));
    assert_eq!(uid(&mesh, "", "10.0.0.1"), None);
    assert_eq!(uid(&mesh, "net1", "10.0.0.2"), None);
    let moved = Workload {
        uid: "a".into(),
        network: "net1".into(),
        workload_ips: vec!["10.0.0.3".parse().unwrap()],
        ..Workload::default()
    };
    mesh.insert_workload(Arc::new(moved));
    assert_eq!(uid(&mesh, "net1", "10.0.0.1"), None);
    assert_eq!(uid(&mesh, "net1", "10.0.0.3").as_deref(), Some("a"));
    mesh.remove_workload("a");
    assert_eq!(uid(&mesh, "net1", "10.0.0.3"), None);
    assert_eq!(mesh.workloads().len(), 2);
}

#[test]
fn the_local_workload_is_exact_on_all_it_is_asked_for() {
    let mesh = parse(
        "workloads:
- {uid: a, name: w, namespace: n, serviceAccount: s, node: n1, workloadIps: [], services: {}}
- {uid: b, name: w, namespace: n, serviceAccount: s, node: n2, workloadIps: [], services: {}}
- {uid: c, name: w, namespace: n, serviceAccount: t, node: n1, workloadIps: [], services: {}}",
    )
    .unwrap();
    let uid = |account: &str, node: Option<&str>| {
        mesh.local_workload("w", "n", account, node).map(|workload| workload.uid.to_string())
    };
    assert_eq!(uid("s", Some("n2")).as_deref(), Some("b"));
    assert_eq!(uid("t", None).as_deref(), Some("c"));
    assert_eq!(uid("t", Some("n2")), None);
    assert_eq!(uid("u", None), None);
    assert!(mesh.local_workload("w", "other", "s", None).is_none());
}

#[test]
fn a_policy_that_changes_its_scope_leaves_the_old_one() {
    let policy = |scope: &str| {
        parse(&format!(
            "policies: [{{name: p, namespace: n, scope: {scope}, action: Deny, dryRun: false, rules: []}}]"
        ))
        .unwrap()
    };
    let workload = Workload { namespace: "n".into(), ..Workload::default() };
    let stranger = Workload { namespace: "m".into(), ..Workload::default() };
    let mut mesh = policy("Global");
    assert_eq!(mesh.policies_for(&stranger).iter().count(), 1);
    for policy in policy("Namespace").policies() {
        mesh.insert_policy(Arc::clone(policy));
    }
    assert_eq!(mesh.policies_for(&stranger).iter().count(), 0);
    assert_eq!(mesh.policies_for(&workload).iter().count(), 1);
    mesh.remove_policy("n/p").unwrap();
    assert_eq!(mesh.policies_for(&workload).iter().count(), 0);
}

#[test]
fn a_change_says_whose_connections_it_may_concern() {
    let pod = |change: &dyn Fn(&mut Workload)| {
        let mut workload = Workload {
            uid: "c//Pod/n/web".into(),
            name: "web".into(),
            namespace: "n".into(),
            service_account: "web".into(),
            node: "n1".into(),
            ..Workload::default()
        };
        change(&mut workload);
        Change::Workload(Arc::new(workload))
    };
    let mut mesh = Mesh::default();
    let unchanged = |_: &mut Workload| {};
    assert_eq!(mesh.apply(pod(&unchanged)), Effect::None, "nobody is connected yet");
    assert_eq!(mesh.apply(pod(&|pod| pod.capacity = 7)), Effect::None);
    let others: [&dyn Fn(&mut Workload); 5] = [
        &|pod| pod.authorization_policies = vec!["n/p".into()],
        &|pod| pod.name = "db".into(),
        &|pod| pod.namespace = "m".into(),
        &|pod| pod.service_account = "db".into(),
        &|pod| pod.node = "n2".into(),
    ];
    for other in others {
        assert_eq!(mesh.apply(pod(other)), Effect::Workloads);
        assert_eq!(mesh.apply(pod(&unchanged)), Effect::Workloads);
    }
    assert_eq!(mesh.apply(Change::RemoveAddress("c//Pod/n/web".into())), Effect::Workloads);
    assert_eq!(mesh.apply(Change::RemoveAddress("c//Pod/n/web".into())), Effect::None);
    let policies =
        parse("policies: [{name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []}]");
    let policies = policies.unwrap();
    let policy = Arc::clone(policies.policy("n/p").unwrap());
    assert_eq!(mesh.apply(Change::Policy("n/p".into(), policy)), Effect::Policies);
    assert_eq!(mesh.apply(Change::RemovePolicy("n/p".into())), Effect::Policies);
    assert_eq!(mesh.apply(Change::RemovePolicy("n/p".into())), Effect::None);
    assert_eq!(Effect::Workloads.max(Effect::Policies), Effect::Policies);
}
