// SPDX-License-Identifier: Apache-2.0
//! Other networks: their gateways, two tunnels in one another, and failover there.

use super::{check, decide};
use crate::mesh::local::parse;
use crate::route::Known;

const MESH: &str = "
workloads:
- {uid: client, name: client, namespace: n, serviceAccount: c, trustDomain: td, network: net1, workloadIps: [10.1.0.1],
   protocol: HBONE, services: {}}
- {uid: far, name: far, namespace: n, serviceAccount: f, trustDomain: td, network: net2, workloadIps: [10.1.0.2],
   protocol: HBONE, services: {n/far: {}, n/both: {}, n/over: {}, n/strict: {}}, networkGateway: {destination: net2/10.9.9.9, hboneMtlsPort: 15009}}
- {uid: farther, name: farther, namespace: n, serviceAccount: f, trustDomain: td, network: net3, workloadIps: [],
   services: {n/farther: {}}, networkGateway: {destination: g/gate, hboneMtlsPort: 15009}}
- {uid: lost, name: lost, namespace: n, network: net4, workloadIps: [10.1.0.4], services: {n/lost: {}, n/mixed: {}}}
- {uid: near, name: near, namespace: n, serviceAccount: f, trustDomain: td, network: net1, workloadIps: [10.1.0.3],
   protocol: HBONE, services: {n/both: {}, n/over: {}, n/mixed: {}, n/strict: {}}}
- {uid: gate, name: gate, namespace: g, serviceAccount: g, trustDomain: td, network: net2, workloadIps: [10.9.9.9], services: {}}
- {uid: gate2, name: gate2, namespace: g, serviceAccount: g, trustDomain: td, network: net3, workloadIps: [10.9.9.8],
   services: {g/gate: {}}}
services:
- {name: far, namespace: n, hostname: far.n, vips: [net1/10.96.0.1], ports: {80: 8080}, subjectAltNames: ['spiffe://td/ns/n/sa/f']}
- {name: far, namespace: n, hostname: far, vips: [net1/10.96.0.2], ports: {80: 8080}, subjectAltNames: ['spiffe://td/ns/n/sa/f']}
- {name: farther, namespace: n, hostname: farther, vips: [net1/10.96.0.3], ports: {80: 8080}}
- {name: lost, namespace: n, hostname: lost, vips: [net1/10.96.0.4], ports: {80: 8080}}
- {name: both, namespace: n, hostname: both, vips: [net1/10.96.0.5], ports: {80: 8080}}
- {name: over, namespace: n, hostname: over, vips: [net1/10.96.0.6], ports: {80: 8080},
   loadBalancer: {routingPreferences: [Network], mode: Failover, healthPolicy: OnlyHealthy}}
- {name: mixed, namespace: n, hostname: mixed, vips: [net1/10.96.0.7], ports: {80: 8080}}
- {name: strict, namespace: n, hostname: strict, vips: [net1/10.96.0.8], ports: {80: 8080},
   loadBalancer: {routingPreferences: [Network], mode: Strict, healthPolicy: OnlyHealthy}}
- {name: gate, namespace: g, hostname: gate, vips: [net3/10.9.9.7], ports: {15009: 15008}, subjectAltNames: ['spiffe://td/ns/g/sa/other']}
";

const NEAR: &str = "hbone 10.1.0.3:15008 for 10.1.0.3:8080 from spiffe://td/ns/n/sa/f to near";

#[test]
fn a_service_in_another_network_is_asked_for_by_its_name_through_the_gateway() {
    check(
        &parse(MESH).unwrap(),
        &[
            (
                "client in net1 -> 10.96.0.2:80",
                "double 10.9.9.9:15009 for far:80 from spiffe://td/ns/g/sa/g behind spiffe://td/ns/n/sa/f to gate of far",
            ),
            // The gateway's service maps the port and vouches for others; nobody vouches for what is behind it.
            (
                "client in net1 -> 10.96.0.3:80",
                "double 10.9.9.8:15008 for farther:80 from spiffe://td/ns/g/sa/g,spiffe://td/ns/g/sa/other behind  to gate2 of farther",
            ),
            ("client in net1 -> 10.96.0.4:80", "refused: no healthy upstream: 10.96.0.4:80"),
            // The address of another network's pod means nothing here.
            ("client in net1 -> 10.1.0.2:8080", "passthrough 10.1.0.2:8080"),
        ],
    );
}

#[test]
fn endpoints_of_both_networks_share_and_those_out_of_reach_do_not() {
    let mesh = parse(MESH).unwrap();
    let ask = |target: &str, drawn| {
        let question = format!("client in net1 -> {target}");
        decide(&mesh, &question, Known::default(), drawn)
    };
    assert!(ask("10.96.0.5:80", 0).starts_with("double 10.9.9.9:15009 for both:80"));
    assert_eq!(ask("10.96.0.5:80", u64::MAX), format!("{NEAR} of both"));
    for drawn in [0, u64::MAX] {
        assert_eq!(ask("10.96.0.6:80", drawn), format!("{NEAR} of over"), "the own network first");
        assert_eq!(
            ask("10.96.0.7:80", drawn),
            format!("{NEAR} of mixed"),
            "no gateway leads to the other one"
        );
        assert_eq!(ask("10.96.0.8:80", drawn), format!("{NEAR} of strict"));
    }
}

#[test]
fn a_service_fails_over_to_another_network() {
    let mut mesh = parse(MESH).unwrap();
    mesh.remove_workload("near");
    let ask = |target: &str| decide(&mesh, &format!("client in net1 -> {target}"), Known::default(), 0);
    assert!(ask("10.96.0.6:80").starts_with("double 10.9.9.9:15009 for over:80"));
    assert_eq!(ask("10.96.0.8:80"), "refused: no healthy upstream: 10.96.0.8:80");
}

#[test]
fn a_workload_of_another_network_is_not_reachable_by_its_address() {
    // Where the proxy's network and the pod's differ, an address can lead abroad.
    let yaml = MESH.replace("network: net1", "network: net2");
    check(
        &parse(&yaml).unwrap(),
        &[(
            "client in net1 -> 10.1.0.2:8080",
            "hbone 10.1.0.2:15008 for 10.1.0.2:8080 from spiffe://td/ns/n/sa/f to far",
        )],
    );
    let mesh = parse(
        "workloads:
- {uid: client, name: client, namespace: n, network: net1, workloadIps: [10.1.0.1], services: {}}
- {uid: far, name: far, namespace: n, network: net2, workloadIps: [10.1.0.2], services: {n/far: {}}}
services:
- {name: far, namespace: n, hostname: far, vips: [net1/10.96.0.1], ports: {80: 80},
   endpoints: {far: {workloadUid: far, port: {}, status: Healthy}}}",
    )
    .unwrap();
    check(&mesh, &[("client in net1 -> 10.96.0.1:80", "refused: no healthy upstream: 10.96.0.1:80")]);
}
