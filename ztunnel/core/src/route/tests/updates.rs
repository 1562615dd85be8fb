// SPDX-License-Identifier: Apache-2.0
//! Properties: no choice is a wrong one, and how a mesh came to be does not matter.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::decide;
use crate::mesh::local::parse;
use crate::mesh::{Change, Mesh};
use crate::route::Known;

/// Endpoint: healthy, capacity, network, has a gateway, zone, kind of waypoint.
type Shape = (bool, u32, bool, bool, u8, u8);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    prop::collection::vec((any::<bool>(), 0..4u32, any::<bool>(), any::<bool>(), 0..3u8, 0..4u8), 0..40)
}

fn workload(index: usize, (healthy, capacity, abroad, gated, zone, waypoint): Shape) -> String {
    let health = if healthy { "Healthy" } else { "Unhealthy" };
    let network = if abroad { "net2" } else { "" };
    let gate =
        if gated { ", networkGateway: {destination: net2/10.9.9.9, hboneMtlsPort: 15008}" } else { "" };
    let waypoint = match waypoint {
        0 => ", waypoint: {destination: n/wp, hboneMtlsPort: 15008}",
        1 => ", waypoint: {destination: /10.2.0.1, hboneMtlsPort: 15008}",
        _ => "",
    };
    format!(
        "- {{uid: w{index}, name: w{index}, namespace: n, serviceAccount: s{index}, trustDomain: td, network: '{network}', \
         workloadIps: [10.1.0.{}], protocol: HBONE, status: {health}, capacity: {capacity}, \
         locality: {{region: r, zone: z{zone}, subzone: ''}}, services: {{n/svc: {{}}, n/local: {{}}}}{gate}{waypoint}}}\n",
        index + 10
    )
}

const REST: &str = "
- {uid: client, name: client, namespace: n, workloadIps: [10.1.0.1], protocol: HBONE, services: {},
   locality: {region: r, zone: z0, subzone: ''}}
- {uid: wp, name: wp, namespace: n, serviceAccount: wp, trustDomain: td, workloadIps: [10.2.0.1], services: {n/wp: {}}}
- {uid: gate, name: gate, namespace: n, serviceAccount: g, trustDomain: td, network: net2, workloadIps: [10.9.9.9], services: {}}
services:
- {name: svc, namespace: n, hostname: svc, vips: [/10.96.0.1], ports: {80: 8080}}
- {name: local, namespace: n, hostname: local, vips: [/10.96.0.2], ports: {80: 8080},
   loadBalancer: {routingPreferences: [Region, Zone], mode: Failover, healthPolicy: OnlyHealthy}}
- {name: wp, namespace: n, hostname: wp, vips: [/10.96.0.3], ports: {15008: 15008}}
- {name: guarded, namespace: n, hostname: guarded, vips: [/10.96.0.4], ports: {80: 8080},
   waypoint: {destination: n/wp, hboneMtlsPort: 15008}}
";

fn whole(shapes: &[Shape]) -> Mesh {
    let workloads: String = shapes.iter().enumerate().map(|(index, &shape)| workload(index, shape)).collect();
    parse(&format!("workloads:\n{workloads}{REST}")).unwrap()
}

/// Every answer to a set of questions with some draws.
fn answers(mesh: &Mesh) -> Vec<String> {
    let targets = [
        "10.96.0.1:80",
        "10.96.0.2:80",
        "10.96.0.2:81",
        "10.96.0.4:80",
        "10.1.0.10:80",
        "10.1.0.11:80",
        "10.8.8.8:80",
    ];
    let draws = [0, u64::MAX / 3, u64::MAX / 2, u64::MAX];
    let ask = |target: &str, drawn| decide(mesh, &format!("client -> {target}"), Known::default(), drawn);
    targets.iter().flat_map(|target| draws.map(|drawn| ask(target, drawn))).collect()
}

proptest! {
    // Each case builds whole meshes.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_endpoint_is_chosen_that_must_not_be(shapes in shapes(), drawn in any::<u64>()) {
        let mesh = whole(&shapes);
        let usable = |&(healthy, capacity, abroad, gated, ..): &Shape| healthy && capacity > 0 && (!abroad || gated);
        for service in ["svc", "local"] {
            let target = if service == "svc" { "10.96.0.1:80" } else { "10.96.0.2:80" };
            let answer = decide(&mesh, &format!("client -> {target}"), Known::default(), drawn);
            let chosen = answer.strip_suffix(&format!(" of {service}")).and_then(|rest| rest.split(" to ").nth(1));
            match chosen {
                None => prop_assert!(!shapes.iter().any(usable), "{}", answer),
                Some("gate") => prop_assert!(shapes.iter().any(|shape| usable(shape) && shape.2), "{}", answer),
                Some(uid) => {
                    let shape = &shapes[uid[1..].parse::<usize>().unwrap()];
                    prop_assert!(usable(shape) && !shape.2, "{}", answer);
                    // Nobody nearer was left out.
                    let nearer = |other: &Shape| usable(other) && other.4 == 0;
                    prop_assert!(service == "svc" || shape.4 == 0 || !shapes.iter().any(nearer), "{}", answer);
                }
            }
        }
    }

    #[test]
    fn shares_follow_weights_with_many_endpoints_too(weights in prop::collection::vec(0..6u32, 30..50)) {
        let shapes: Vec<Shape> = weights.iter().map(|&weight| (true, weight, false, false, 0, 9)).collect();
        let mesh = whole(&shapes);
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        prop_assume!(total > 0);
        let rounds = total * 20;
        let mut hits = std::collections::HashMap::<String, u64>::new();
        for round in 0..rounds {
            let even = u64::try_from((u128::from(round) << 64) / u128::from(rounds)).unwrap();
            let answer = decide(&mesh, "client -> 10.96.0.1:80", Known::default(), even);
            let uid = answer.split(" to ").nth(1).unwrap().trim_end_matches(" of svc").to_owned();
            *hits.entry(uid).or_default() += 1;
        }
        for (index, &weight) in weights.iter().enumerate() {
            let hits = hits.get(&format!("w{index}")).copied().unwrap_or_default();
            prop_assert!(hits.abs_diff(u64::from(weight) * 20) <= 1, "w{index} of weight {weight} was hit {hits} times");
        }
    }

    /// A mesh that is reached by any order of updates, with other versions on the way and decisions in between.
    #[test]
    fn how_a_mesh_came_to_be_does_not_matter(
        shapes in shapes(),
        older in shapes(),
        order in prop::collection::vec(any::<u16>(), 50),
    ) {
        let expected = whole(&shapes);
        let mut changes: Vec<(u16, Change)> = Vec::new();
        let mut place = order.iter().copied().cycle();
        let mut next = || place.next().unwrap();
        for workload in expected.workloads() {
            changes.push((next(), Change::Workload(Arc::clone(workload))));
        }
        for service in expected.services() {
            let service = crate::mesh::Service { endpoints: Default::default(), ..(**service).clone() };
            changes.push((next(), Change::Service(Box::new(service))));
        }
        changes.sort_by_key(|(place, _)| *place);
        let mut mesh = Mesh::default();
        // What was there before: some of it under names that will be taken again, the rest goes.
        let before = whole(&older);
        let kept: BTreeSet<_> = expected.workloads().iter().map(|workload| Arc::clone(&workload.uid)).collect();
        for workload in before.workloads() {
            mesh.apply(Change::Workload(Arc::clone(workload)));
        }
        let (first, second) = changes.split_at(changes.len() / 2);
        for (_, change) in first {
            mesh.apply(change.clone());
        }
        if mesh.workload_by_uid("client").is_some() {
            answers(&mesh);
        }
        for workload in before.workloads().iter().filter(|workload| !kept.contains(&workload.uid)) {
            mesh.apply(Change::RemoveAddress(Arc::clone(&workload.uid)));
        }
        for (_, change) in second {
            mesh.apply(change.clone());
        }
        prop_assert_eq!(answers(&mesh), answers(&expected));
    }
}
