// SPDX-License-Identifier: Apache-2.0
//! Waypoints: of services and of workloads, by address and by name, and who is not sent there.

use super::{check, decide};
use crate::mesh::local::parse;
use crate::route::Known;

const MESH: &str = "
workloads:
- {uid: client, name: client, namespace: n, serviceAccount: c, trustDomain: td, workloadIps: [10.1.0.1, 'fd00::1'],
   protocol: HBONE, services: {}, waypoint: {destination: n/wp, hboneMtlsPort: 15008}}
- {uid: web, name: web, namespace: n, serviceAccount: w, trustDomain: td, workloadIps: [10.1.0.2, 'fd00::2'],
   protocol: HBONE, services: {n/web: {}, n/named: {}, n/both: {}}, waypoint: {destination: n/wp, hboneMtlsPort: 15008}}
- {uid: wp, name: wp, namespace: n, serviceAccount: wp, trustDomain: td, workloadIps: [10.1.0.8, 10.1.0.9],
   services: {n/wp: {}, n/mapped: {15008: 15009}}}
- {uid: six, name: six, namespace: n, serviceAccount: wp, trustDomain: td, workloadIps: ['fd00::8'], services: {n/six: {}}}
- {uid: host, name: host, namespace: n, serviceAccount: wp, trustDomain: td, workloadIps: [], hostname: wp.example,
   services: {n/far: {}}}
- {uid: tunnel, name: tunnel, namespace: n, serviceAccount: t, trustDomain: td, workloadIps: [10.1.0.7],
   services: {n/tunnel: {}}, applicationTunnel: {protocol: PROXY, port: 15088}}
- {uid: abroad, name: abroad, namespace: n, serviceAccount: a, trustDomain: td, network: net2, workloadIps: [10.1.0.6],
   services: {n/abroad: {}}, networkGateway: {destination: net2/10.9.9.9, hboneMtlsPort: 15008}}
- {uid: gate, name: gate, namespace: g, serviceAccount: g, trustDomain: td, network: net2, workloadIps: [10.9.9.9], services: {}}
- {uid: b1, name: b1, namespace: n, workloadIps: [10.1.1.1], services: {}, waypoint: {destination: /10.1.0.9, hboneMtlsPort: 15021}}
- {uid: b2, name: b2, namespace: n, workloadIps: [10.1.1.2], services: {}, waypoint: {destination: n/abroad, hboneMtlsPort: 15008}}
- {uid: b3, name: b3, namespace: n, workloadIps: [10.1.1.3], services: {}, waypoint: {destination: n/wp.example, hboneMtlsPort: 15008}}
services:
- {name: web, namespace: n, hostname: web, vips: [/10.96.0.1, '/fd00:96::1'], ports: {80: 8080},
   waypoint: {destination: /10.96.0.8, hboneMtlsPort: 15008}}
- {name: named, namespace: n, hostname: named, vips: [/10.96.0.2], ports: {80: 8080},
   waypoint: {destination: n/mapped, hboneMtlsPort: 15008}}
- {name: both, namespace: n, hostname: both, vips: [/10.96.0.3], ports: {80: 8080}, weightedWaypoints: [
   {destination: {destination: n/nobody, hboneMtlsPort: 15008}, weight: 0},
   {destination: {destination: n/wp, hboneMtlsPort: 15008}, weight: 1},
   {destination: {destination: n/six, hboneMtlsPort: 15008}, weight: 3}], waypoint: {destination: n/nobody, hboneMtlsPort: 1}}
- {name: zero, namespace: n, hostname: zero, vips: [/10.96.0.4], ports: {80: 8080}, weightedWaypoints: [
   {destination: {destination: n/nobody, hboneMtlsPort: 15008}, weight: 0}], waypoint: {destination: n/wp, hboneMtlsPort: 15008}}
- {name: far, namespace: n, hostname: far, vips: [/10.96.0.5], ports: {80: 8080, 15008: 15008},
   waypoint: {destination: n/far, hboneMtlsPort: 15008}}
- {name: open, namespace: n, hostname: open, vips: [/10.96.0.6], ports: {80: 8080},
   loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: AllowAll},
   waypoint: {destination: n/wp, hboneMtlsPort: 15008}}
- {name: tunneled, namespace: n, hostname: tunneled, vips: [/10.96.0.7], ports: {80: 8080},
   waypoint: {destination: n/tunnel, hboneMtlsPort: 15008}}
- {name: remote, namespace: n, hostname: remote, vips: [/10.96.0.9], ports: {80: 8080},
   waypoint: {destination: n/abroad, hboneMtlsPort: 15008}}
- {name: portless, namespace: n, hostname: portless, vips: [/10.96.0.10], ports: {80: 8080},
   waypoint: {destination: n/wp, hboneMtlsPort: 15099}}
- {name: passing, namespace: n, hostname: passing, vips: [/10.96.0.11], ports: {80: 8080},
   waypoint: {destination: n/open, hboneMtlsPort: 80}}
- {name: self, namespace: n, hostname: self, vips: [/10.96.0.12], ports: {80: 8080},
   waypoint: {destination: /10.1.0.1, hboneMtlsPort: 15001}}
- {name: wp, namespace: n, hostname: wp, vips: [/10.96.0.8], ports: {15008: 15008}, subjectAltNames: ['spiffe://td/ns/n/sa/spare']}
- {name: mapped, namespace: n, hostname: mapped, vips: [], ports: {15008: 0}}
- {name: six, namespace: n, hostname: six, vips: [], ports: {15008: 15008}}
- {name: tunnel, namespace: n, hostname: tunnel, vips: [], ports: {}}
- {name: abroad, namespace: n, hostname: abroad, vips: [], ports: {15008: 15008}, subjectAltNames: ['spiffe://td/ns/n/sa/a']}
";

#[test]
fn a_services_waypoint_is_asked_for_the_services_address() {
    check(
        &parse(MESH).unwrap(),
        &[
            (
                "client -> 10.96.0.1:80",
                "hbone 10.1.0.8:15008 for 10.96.0.1:80 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp of web",
            ),
            // Its own address says in which family the waypoint is dialed.
            (
                "client -> [fd00:96::1]:80",
                "hbone 10.1.0.8:15008 for [fd00:96::1]:80 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp of web",
            ),
            // Ports that the service does not have are the waypoint's to refuse.
            (
                "client -> 10.96.0.1:81",
                "hbone 10.1.0.8:15008 for 10.96.0.1:81 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp of web",
            ),
            (
                "client -> 10.96.0.2:80",
                "hbone 10.1.0.8:15009 for 10.96.0.2:80 from spiffe://td/ns/n/sa/wp to wp of named",
            ),
            (
                "client -> 10.96.0.4:80",
                "hbone 10.1.0.8:15008 for 10.96.0.4:80 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp of zero",
            ),
            ("client -> 10.96.0.5:80", "resolve wp.example"),
            (
                "client -> 10.96.0.6:80",
                "hbone 10.1.0.8:15008 for 10.96.0.6:80 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp of open",
            ),
            (
                "client -> 10.96.0.7:80",
                "hbone 10.1.0.7:15008 for 10.96.0.7:80 from spiffe://td/ns/n/sa/t to tunnel of tunneled",
            ),
            ("client -> 10.96.0.10:80", "refused: unknown waypoint: waypoint n/wp not found"),
            ("client -> 10.96.0.11:80", "refused: unknown waypoint: waypoint n/open not found"),
            // It would be our own listener.
            ("client -> 10.96.0.12:80", "refused: attempted recursive call to ourselves"),
        ],
    );
}

#[test]
fn weights_choose_among_the_waypoints_of_a_service() {
    let mesh = parse(MESH).unwrap();
    let share = |waypoint: &str| {
        let to = format!(" to {waypoint} of both");
        let draws =
            (0..=255u64).map(|high| decide(&mesh, "client -> 10.96.0.3:80", Known::default(), high << 56));
        draws.filter(|route| route.ends_with(&to)).count()
    };
    assert_eq!((share("wp"), share("six")), (64, 192));
}

#[test]
fn a_workloads_waypoint_is_for_traffic_that_is_addressed_to_it() {
    check(
        &parse(MESH).unwrap(),
        &[
            (
                "client -> 10.1.0.2:9000",
                "hbone 10.1.0.8:15008 for 10.1.0.2:9000 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp",
            ),
            // There is no IPv6 address: IPv4 will do.
            (
                "client -> [fd00::2]:9000",
                "hbone 10.1.0.8:15008 for [fd00::2]:9000 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp",
            ),
            (
                "client -> 10.1.1.1:80",
                "hbone 10.1.0.9:15021 for 10.1.1.1:80 from spiffe://td/ns/n/sa/wp to wp",
            ),
            ("client -> 10.1.1.3:80", "resolve wp.example"),
            (
                "client -> 10.1.1.2:80",
                "refused: unknown waypoint: waypoint n/abroad is in network `net2`, where only services are reachable",
            ),
        ],
    );
}

#[test]
fn a_waypoint_is_not_sent_to_itself() {
    check(
        &parse(MESH).unwrap(),
        &[
            (
                "wp -> 10.1.0.2:9000",
                "hbone 10.1.0.2:15008 for 10.1.0.2:9000 from spiffe://td/ns/n/sa/w to web",
            ),
            ("wp@10.1.0.9 -> 10.1.1.1:80", "plaintext 10.1.1.1:80 to b1"),
            // Its identity alone is not enough, nor is its address.
            (
                "wp@10.1.0.77 -> 10.1.0.2:9000",
                "hbone 10.1.0.8:15008 for 10.1.0.2:9000 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp",
            ),
            (
                "web@10.1.0.8 -> 10.1.0.2:9000",
                "hbone 10.1.0.8:15008 for 10.1.0.2:9000 from spiffe://td/ns/n/sa/spare,spiffe://td/ns/n/sa/wp to wp",
            ),
        ],
    );
}

#[test]
fn a_waypoint_in_another_network_is_behind_that_networks_gateway() {
    check(
        &parse(MESH).unwrap(),
        &[(
            "client -> 10.96.0.9:80",
            "double 10.9.9.9:15008 for remote:80 from spiffe://td/ns/g/sa/g behind spiffe://td/ns/n/sa/a to gate of remote",
        )],
    );
}
