// SPDX-License-Identifier: Apache-2.0
//! Which endpoint is chosen, by example and by property.

use proptest::prelude::*;

use super::{Purpose, address, failover_rank, pick};
use crate::Name;
use crate::mesh::local::parse;
use crate::mesh::{Locality, LocalityScope, Mesh, Workload};

/// Every endpoint that some draw leads to, as `uid:port`, for port 80 of service `n/h` from workload `src`.
#[track_caller]
fn check(mesh: &str, expected: &[&str]) {
    let mesh = parse(mesh).unwrap();
    assert_eq!(reachable(&mesh, Purpose::Destination), expected);
}

fn reachable(mesh: &Mesh, purpose: Purpose) -> Vec<String> {
    let service = mesh.service_by_name("n", "h").unwrap();
    let source = mesh.workload_by_uid("src").unwrap();
    let mut found: Vec<String> = (0..=255u64)
        .filter_map(|step| pick(mesh, service, source, (80, purpose), &mut || step << 56 | step))
        .map(|choice| format!("{}:{}", choice.workload.uid, choice.port))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// A mesh of one service with these extra keys, a source, and these endpoints.
fn mesh(service: &str, endpoints: &str) -> String {
    format!(
        "services: [{{name: s, namespace: n, hostname: h, vips: [/10.0.0.9], ports: {{80: 8080}}{service}}}]\n\
         workloads:\n\
         - {{uid: src, namespace: n, workloadIps: [], services: {{}}, node: n1,\n\
         \x20  locality: {{region: r, zone: z, subzone: s}}}}\n{endpoints}"
    )
}

#[test]
fn an_endpoint_needs_a_weight_and_an_address() {
    check(
        &mesh(
            "",
            "- {uid: a, namespace: n, workloadIps: [10.0.0.1], services: {n/h: {}}}\n\
             - {uid: weightless, namespace: n, workloadIps: [10.0.0.2], services: {n/h: {}}, capacity: 0}\n\
             - {uid: nowhere, namespace: n, workloadIps: [], services: {n/h: {}}}\n\
             - {uid: sick, namespace: n, workloadIps: [10.0.0.3], services: {n/h: {}}, status: Unhealthy}\n\
             - {uid: own-port, namespace: n, workloadIps: [10.0.0.4], services: {n/h: {80: 81}}}\n",
        ),
        &["a:8080", "own-port:81"],
    );
}

#[test]
fn a_named_port_is_resolved_by_the_endpoint_or_not_at_all() {
    let named = mesh(
        "",
        "- {uid: a, namespace: n, workloadIps: [10.0.0.1], services: {n/h: {}}}\n\
         - {uid: b, namespace: n, workloadIps: [10.0.0.2], services: {n/h: {80: 81}}}\n\
         - {uid: t, namespace: n, workloadIps: [10.0.0.3], services: {n/h: {}},\n\
         \x20  applicationTunnel: {protocol: NONE, port: 7}}\n",
    );
    let unlisted = named.replace("80: 8080", "81: 8080");
    check(&named.replace("80: 8080", "80: 0"), &["b:81"]);
    check(&unlisted, &[]);
    // A waypoint's application tunnel takes every port.
    assert_eq!(
        reachable(&parse(&named.replace("80: 8080", "80: 0")).unwrap(), Purpose::Waypoint),
        ["b:81", "t:80"]
    );
    assert_eq!(reachable(&parse(&unlisted).unwrap(), Purpose::Waypoint), ["b:81", "t:80"]);
    assert!(reachable(&parse(&unlisted).unwrap(), Purpose::Gateway).is_empty());
}

#[test]
fn an_endpoint_in_another_network_needs_a_gateway_or_is_one() {
    let gateway = "networkGateway: {destination: net2/10.9.9.9, hboneMtlsPort: 15008}";
    let abroad = mesh(
        "",
        &format!(
            "- {{uid: lost, namespace: n, workloadIps: [10.0.0.1], services: {{n/h: {{}}}}, network: net2}}\n\
             - {{uid: gated, namespace: n, workloadIps: [], services: {{n/h: {{}}}}, network: net2, {gateway}}}\n"
        ),
    );
    check(&abroad, &["gated:8080"]);
    assert_eq!(reachable(&parse(&abroad).unwrap(), Purpose::Gateway), ["lost:8080"]);
}

#[test]
fn routing_preferences_choose_by_mode() {
    let endpoints = "- {uid: near, namespace: n, workloadIps: [10.0.0.1], services: {n/h: {}}, node: n1}\n\
                     - {uid: far, namespace: n, workloadIps: [10.0.0.2], services: {n/h: {}}, node: n2}\n";
    let only_far = "- {uid: far, namespace: n, workloadIps: [10.0.0.2], services: {n/h: {}}, node: n2}\n";
    let mode = |mode: &str| {
        format!(", loadBalancer: {{routingPreferences: [Node], mode: {mode}, healthPolicy: OnlyHealthy}}")
    };
    check(&mesh(&mode("Standard"), endpoints), &["far:8080", "near:8080"]);
    check(&mesh(&mode("Strict"), endpoints), &["near:8080"]);
    check(&mesh(&mode("Strict"), only_far), &[]);
    check(&mesh(&mode("Failover"), endpoints), &["near:8080"]);
    check(&mesh(&mode("Failover"), only_far), &["far:8080"]);
    check(&mesh(&mode("Passthrough"), endpoints), &[]);
}

#[test]
fn the_same_network_outranks_every_locality() {
    let place = |network: &str, region: &str, zone: &str| Workload {
        network: network.into(),
        locality: Locality { region: region.into(), zone: zone.into(), ..Locality::default() },
        ..Workload::default()
    };
    let source = place("net", "r", "z");
    let rank = |endpoint: &Workload| {
        let preferences = [LocalityScope::Network, LocalityScope::Region, LocalityScope::Zone];
        failover_rank(&preferences, &source, endpoint)
    };
    assert_eq!(rank(&place("net", "r", "z")), 5);
    assert_eq!(rank(&place("net", "r", "x")), 4);
    assert_eq!(rank(&place("net", "x", "z")), 3);
    assert_eq!(rank(&place("x", "r", "z")), 2);
    assert_eq!(rank(&place("x", "r", "x")), 1);
    assert_eq!(rank(&place("x", "x", "z")), 0);
}

#[test]
fn the_address_suits_the_original_destination_and_the_service() {
    let mesh = parse(
        "services:\n\
         - {name: s, namespace: n, hostname: any, vips: [], ports: {}}\n\
         - {name: s, namespace: n, hostname: v6, vips: [], ports: {}, ipFamilies: IPv6}\n\
         workloads: [{uid: w, namespace: n, workloadIps: [10.0.0.1, 10.0.0.2, 'fd00::1'], services: {}}]",
    )
    .unwrap();
    let workload = mesh.workload_by_uid("w").unwrap();
    let dial = |service: &str, original: &str| {
        let service = mesh.service_by_name("n", service).unwrap();
        address(workload, Some(service), original.parse().unwrap()).map(|ip| ip.to_string())
    };
    assert_eq!(dial("any", "10.0.0.2:80").as_deref(), Some("10.0.0.2"));
    assert_eq!(dial("any", "[::ffff:10.0.0.2]:80").as_deref(), Some("10.0.0.2"));
    assert_eq!(dial("any", "10.0.0.9:80").as_deref(), Some("10.0.0.1"));
    assert_eq!(dial("any", "[fd00::9]:80").as_deref(), Some("fd00::1"));
    assert_eq!(dial("v6", "10.0.0.9:80").as_deref(), Some("fd00::1"));
}

/// An endpoint of service `n/h`: is it healthy, its weight, and whether it has an address.
fn endpoints() -> impl Strategy<Value = Vec<(bool, u32, bool)>> {
    prop::collection::vec(
        (any::<bool>(), prop_oneof![Just(0), 1..5u32, Just(u32::MAX)], any::<bool>()),
        0..12,
    )
}

proptest! {
    #[test]
    fn only_a_usable_endpoint_is_chosen_and_one_is_if_there_is_any(
        endpoints in endpoints(),
        seed in any::<u64>(),
    ) {
        let mut mesh = parse(&mesh("", "")).unwrap();
        for (index, &(healthy, capacity, addressed)) in endpoints.iter().enumerate() {
            let yaml = format!(
                "workloads: [{{uid: w{index}, namespace: n, workloadIps: [{}], services: {{n/h: {{}}}}, \
                 status: {}, capacity: {capacity}}}]",
                if addressed { "10.0.0.1" } else { "" },
                if healthy { "Healthy" } else { "Unhealthy" },
            );
            for workload in parse(&yaml).unwrap().workloads() {
                mesh.insert_workload(std::sync::Arc::clone(workload));
            }
        }
        let usable = |&(healthy, capacity, addressed): &(bool, u32, bool)| healthy && capacity > 0 && addressed;
        let service = mesh.service_by_name("n", "h").unwrap();
        let source = mesh.workload_by_uid("src").unwrap();
        match pick(&mesh, service, source, (80, Purpose::Destination), &mut || seed) {
            Some(choice) => {
                let index: usize = choice.workload.uid.trim_start_matches('w').parse().unwrap();
                prop_assert!(usable(&endpoints[index]));
                prop_assert_eq!(choice.port, 8080);
            }
            None => prop_assert!(!endpoints.iter().any(usable)),
        }
    }

    #[test]
    fn shares_follow_weights(weights in prop::collection::vec(1..20u32, 1..6)) {
        let endpoints: String = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| format!(
                "- {{uid: w{index}, namespace: n, workloadIps: [10.0.0.1], services: {{n/h: {{}}}}, capacity: {weight}}}\n"
            ))
            .collect();
        let mesh = parse(&mesh("", &endpoints)).unwrap();
        let service = mesh.service_by_name("n", "h").unwrap();
        let source = mesh.workload_by_uid("src").unwrap();
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let rounds = total * 50;
        let mut hits = std::collections::HashMap::<Name, u64>::new();
        for round in 0..rounds {
            // Draws spread evenly over all numbers.
            let even = u64::try_from((u128::from(round) << 64) / u128::from(rounds)).unwrap();
            let choice = pick(&mesh, service, source, (80, Purpose::Destination), &mut || even).unwrap();
            *hits.entry(Name::clone(&choice.workload.uid)).or_default() += 1;
        }
        for (index, &weight) in weights.iter().enumerate() {
            let hits = hits.get(&*format!("w{index}")).copied().unwrap_or_default();
            let due = u64::from(weight) * 50;
            prop_assert!(hits.abs_diff(due) <= 1, "w{} was hit {} times, {} were due", index, hits, due);
        }
    }
}
