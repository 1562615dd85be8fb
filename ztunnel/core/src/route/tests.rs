// SPDX-License-Identifier: Apache-2.0
//! Where connections go, as tables: a mesh, who asks for what, and the answer in words.

use super::inbound::guess_service;
use super::{Inbound, Outbound, Refusal, Route, RouteKind, Routing, inbound, outbound};
use crate::addr::OriginalDst;
use crate::mesh::Mesh;
use crate::mesh::local::parse;

const MESH: &str = "
workloads:
- {uid: client, name: client, namespace: shop, serviceAccount: front, trustDomain: td, workloadIps: [10.1.0.1],
   protocol: HBONE, services: {shop/front: {}}}
- {uid: web, name: web, namespace: shop, serviceAccount: web, trustDomain: td, workloadIps: [10.1.0.2, 'fd00::2'],
   protocol: HBONE, services: {shop/web: {80: 8080}, shop/vouched: {}}}
- {uid: plain, name: plain, namespace: old, serviceAccount: p, trustDomain: td, workloadIps: [10.1.0.3],
   services: {old/plain: {}, old/sick: {}}}
- {uid: behind, name: behind, namespace: shop, workloadIps: [10.1.0.4], protocol: HBONE, services: {shop/both: {}},
   waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
- {uid: far, name: far, namespace: shop, network: net2, workloadIps: [10.1.0.5], protocol: HBONE,
   services: {shop/far: {}}, networkGateway: {destination: /10.9.9.9, hboneMtlsPort: 15008}}
- {uid: farther, name: farther, namespace: shop, network: net2, workloadIps: [10.1.0.6], services: {shop/farther: {}}}
- {uid: named, name: named, namespace: shop, workloadIps: [], hostname: example.com, services: {shop/named: {}}}
- {uid: node, name: node, namespace: kube, workloadIps: [10.1.0.7], networkMode: HostNetwork, services: {}}
services:
- {name: web, namespace: shop, hostname: web, vips: [/10.96.0.1], ports: {80: 0, 81: 8081}}
- {name: vouched, namespace: shop, hostname: vouched, vips: [/10.96.0.2], ports: {80: 8080},
   subjectAltNames: ['spiffe://td/ns/a/sa/b', nonsense]}
- {name: plain, namespace: old, hostname: plain, vips: [/10.96.0.3], ports: {80: 8080}}
- {name: guarded, namespace: shop, hostname: guarded, vips: [/10.96.0.4], ports: {80: 8080},
   waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
- {name: split, namespace: shop, hostname: split, vips: [/10.96.0.5], ports: {80: 8080},
   weightedWaypoints: [{destination: {destination: /10.96.0.9, hboneMtlsPort: 15008}, weight: 1}]}
- {name: both, namespace: shop, hostname: both, vips: [/10.96.0.6], ports: {80: 8080}}
- {name: far, namespace: shop, hostname: far, vips: [/10.96.0.7], ports: {80: 8080}}
- {name: farther, namespace: shop, hostname: farther, vips: [/10.96.0.8], ports: {80: 8080}}
- {name: empty, namespace: shop, hostname: empty, vips: [/10.96.0.10], ports: {80: 8080}}
- {name: open, namespace: shop, hostname: open, vips: [/10.96.0.11], ports: {80: 8080},
   loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: AllowAll}}
- {name: hidden, namespace: old, hostname: hidden, vips: [/10.96.0.12], ports: {80: 8080}, visibility: Namespace}
- {name: range, namespace: shop, hostname: range, vips: [], cidrVips: [{network: '', cidr: 10.97.0.0/16}],
   ports: {80: 8080}, endpoints: {plain: {workloadUid: plain, port: {}, status: Healthy}}}
- {name: named, namespace: shop, hostname: named, vips: [/10.96.0.13], ports: {80: 8080}}
- {name: loop, namespace: old, hostname: loop, vips: [/10.96.0.14], ports: {80: 15001},
   endpoints: {plain: {workloadUid: plain, port: {}, status: Healthy}}}
";

/// `uid -> ip:port`, and the route in words.
#[track_caller]
fn check_outbound(cases: &[(&str, &str)]) {
    let mesh = parse(MESH).unwrap();
    for (question, expected) in cases {
        let (source, target) = question.split_once(" -> ").unwrap();
        let conn = Outbound {
            source: mesh.workload_by_uid(source).unwrap(),
            network: "",
            original_dst: OriginalDst(target.parse().unwrap()),
        };
        let answer = match outbound::outbound(&mesh, &conn, &mut || 0) {
            Routing::Go(route) => words(&route),
            Routing::Refuse(refusal) => format!("refused: {refusal}"),
        };
        assert_eq!(answer, *expected, "{question}");
    }
}

fn words(route: &Route) -> String {
    let mut words = match &route.kind {
        RouteKind::Passthrough(addr) => format!("passthrough {addr}"),
        RouteKind::Plaintext(addr) => format!("plaintext {addr}"),
        RouteKind::Hbone(hop) => {
            let expected: Vec<String> = hop.expected.iter().map(ToString::to_string).collect();
            format!("hbone {} for {} from {}", hop.addr, hop.authority, expected.join(","))
        }
    };
    if let Some(destination) = &route.destination {
        words += &format!(" to {}", destination.uid);
    }
    if let Some(service) = &route.service {
        words += &format!(" of {}", service.hostname);
    }
    words
}

#[test]
fn a_workload_is_reached_by_what_it_accepts() {
    check_outbound(&[
        (
            "client -> 10.1.0.2:9000",
            "hbone 10.1.0.2:15008 for 10.1.0.2:9000 from spiffe://td/ns/shop/sa/web to web",
        ),
        (
            "client -> [::ffff:10.1.0.2]:9000",
            "hbone 10.1.0.2:15008 for 10.1.0.2:9000 from spiffe://td/ns/shop/sa/web to web",
        ),
        (
            "client -> [fd00::2]:9000",
            "hbone [fd00::2]:15008 for [fd00::2]:9000 from spiffe://td/ns/shop/sa/web to web",
        ),
        ("client -> 10.1.0.3:9000", "plaintext 10.1.0.3:9000 to plain"),
        ("client -> 10.1.0.7:9000", "passthrough 10.1.0.7:9000"),
        ("client -> 192.0.2.1:443", "passthrough 192.0.2.1:443"),
    ]);
}

#[test]
fn a_service_is_reached_through_an_endpoint() {
    check_outbound(&[
        (
            "client -> 10.96.0.1:80",
            "hbone 10.1.0.2:15008 for 10.1.0.2:8080 from spiffe://td/ns/shop/sa/web to web of web",
        ),
        (
            "client -> 10.96.0.1:81",
            "hbone 10.1.0.2:15008 for 10.1.0.2:8081 from spiffe://td/ns/shop/sa/web to web of web",
        ),
        ("client -> 10.96.0.1:82", "refused: no healthy upstream: 10.96.0.1:82"),
        (
            "client -> 10.96.0.2:80",
            "hbone 10.1.0.2:15008 for 10.1.0.2:8080 from spiffe://td/ns/a/sa/b,spiffe://td/ns/shop/sa/web to web of vouched",
        ),
        ("client -> 10.96.0.3:80", "plaintext 10.1.0.3:8080 to plain of plain"),
        ("client -> 10.97.1.1:80", "plaintext 10.1.0.3:8080 to plain of range"),
        ("client -> 10.96.0.10:80", "refused: no healthy upstream: 10.96.0.10:80"),
        ("client -> 10.96.0.11:80", "passthrough 10.96.0.11:80"),
        ("client -> 10.96.0.12:80", "passthrough 10.96.0.12:80"),
        ("plain -> 10.96.0.12:80", "refused: no healthy upstream: 10.96.0.12:80"),
        ("client -> 10.96.0.13:80", "refused: no valid routing destination for workload: named"),
    ]);
}

#[test]
fn what_is_not_supported_yet_is_refused_and_never_sent_in_the_clear() {
    check_outbound(&[
        (
            "client -> 10.96.0.4:80",
            "refused: unknown waypoint: waypoint shop/waypoint: waypoints are not supported yet",
        ),
        (
            "client -> 10.96.0.5:80",
            "refused: unknown waypoint: waypoint /10.96.0.9: waypoints are not supported yet",
        ),
        (
            "client -> 10.1.0.4:80",
            "refused: unknown waypoint: waypoint shop/waypoint: waypoints are not supported yet",
        ),
        // A workload's waypoint is for traffic addressed to the workload itself.
        (
            "client -> 10.96.0.6:80",
            "hbone 10.1.0.4:15008 for 10.1.0.4:8080 from spiffe:///ns/shop/sa/ to behind of both",
        ),
        (
            "client -> 10.96.0.7:80",
            "refused: unknown network gateway: network gateway /10.9.9.9: network gateways are not supported yet",
        ),
        ("client -> 10.96.0.8:80", "refused: no valid routing destination for workload: farther"),
    ]);
}

#[test]
fn a_route_never_leads_back_to_our_own_listeners() {
    check_outbound(&[
        ("client -> 127.0.0.1:15001", "refused: attempted recursive call to ourselves"),
        ("client -> [::1]:15008", "refused: attempted recursive call to ourselves"),
        ("client -> [::ffff:127.0.0.1]:15006", "refused: attempted recursive call to ourselves"),
        ("client -> 127.0.0.1:80", "passthrough 127.0.0.1:80"),
        ("plain -> 10.1.0.3:15001", "refused: attempted recursive call to ourselves"),
        ("plain -> 10.96.0.14:80", "refused: attempted recursive call to ourselves"),
        ("client -> 10.1.0.3:15001", "plaintext 10.1.0.3:15001 to plain"),
        // The tunnel's other end refuses it.
        (
            "client -> 10.1.0.2:15001",
            "hbone 10.1.0.2:15008 for 10.1.0.2:15001 from spiffe://td/ns/shop/sa/web to web",
        ),
    ]);
}

/// The authority that a peer asks the workload for, and the answer in words.
#[track_caller]
fn check_inbound(mesh: &Mesh, local: &str, cases: &[(&str, &str)]) {
    for (authority, expected) in cases {
        let local = mesh.workload_by_uid(local).unwrap();
        let request = Inbound {
            local,
            pod_ip: local.workload_ips[0],
            network: "",
            authority: &authority.parse().unwrap(),
        };
        let answer = match inbound::inbound(mesh, &request) {
            Ok(target) => {
                let service = target.service.map(|service| format!(" of {}", service.hostname));
                format!("{}{}", target.addr, service.unwrap_or_default())
            }
            Err(refusal) => format!("refused: {refusal}"),
        };
        assert_eq!(answer, *expected, "{authority}");
    }
}

#[test]
fn a_tunnel_leads_into_the_pod_that_it_arrived_at() {
    let mesh = parse(MESH).unwrap();
    check_inbound(
        &mesh,
        "web",
        &[
            ("10.1.0.2:8080", "10.1.0.2:8080 of web"),
            ("10.1.0.2:9000", "10.1.0.2:9000"),
            ("10.1.0.3:8080", "refused: ip mismatch: 10.1.0.2 != 10.1.0.3"),
            ("192.0.2.1:80", "refused: ip mismatch: 10.1.0.2 != 192.0.2.1"),
            ("[::ffff:10.1.0.2]:8080", "10.1.0.2:8080 of web"),
            ("web:80", "10.1.0.2:8080 of web"),
            ("web:81", "10.1.0.2:8081 of web"),
            ("web:82", "refused: requested service web:82 found, but cannot resolve port"),
            ("nobody:80", "refused: no service or workload for hostname: nobody"),
            ("10.1.0.2:15001", "refused: attempted recursive call to ourselves"),
            ("10.1.0.2:15006", "refused: attempted recursive call to ourselves"),
            ("10.1.0.2:15008", "refused: attempted recursive call to ourselves"),
            ("loop:80", "refused: attempted recursive call to ourselves"),
        ],
    );
}

#[test]
fn an_application_tunnel_takes_every_port_and_address() {
    let mesh = |tunnel: &str| {
        parse(&format!(
            "workloads: [{{uid: w, namespace: n, workloadIps: [10.1.0.2], services: {{}}, applicationTunnel: {tunnel}}}]"
        ))
        .unwrap()
    };
    check_inbound(
        &mesh("{protocol: NONE, port: 7}"),
        "w",
        &[("10.1.0.2:80", "10.1.0.2:7"), ("10.9.9.9:80", "10.1.0.2:7")],
    );
    check_inbound(&mesh("{protocol: NONE}"), "w", &[("10.1.0.2:80", "10.1.0.2:80")]);
    check_inbound(
        &mesh("{protocol: PROXY, port: 7}"),
        "w",
        &[("10.1.0.2:80", "refused: unsupported feature: application tunnel with a PROXY header")],
    );
}

#[test]
fn a_captured_waypoint_takes_what_is_behind_it() {
    let mesh = parse(
        "workloads:
- {uid: wp, namespace: n, workloadIps: [10.1.0.9], services: {n/waypoint: {}}}
- {uid: w, namespace: n, workloadIps: [10.1.0.1], services: {}, waypoint: {destination: n/waypoint, hboneMtlsPort: 1}}
- {uid: v, namespace: n, workloadIps: [10.1.0.2], services: {}, waypoint: {destination: /10.96.0.9, hboneMtlsPort: 1}}
- {uid: x, namespace: n, workloadIps: [10.1.0.3], services: {}, waypoint: {destination: /10.1.0.9, hboneMtlsPort: 1}}
- {uid: y, namespace: n, workloadIps: [10.1.0.4], services: {}, waypoint: {destination: n/other, hboneMtlsPort: 1}}
services:
- {name: waypoint, namespace: n, hostname: waypoint, vips: [/10.96.0.9], ports: {15008: 15008}}
- {name: s, namespace: n, hostname: s, vips: [/10.96.0.1], ports: {}, waypoint: {destination: n/waypoint, hboneMtlsPort: 1}}
",
    )
    .unwrap();
    check_inbound(
        &mesh,
        "wp",
        &[
            ("10.1.0.1:80", "10.1.0.9:80"),
            ("10.1.0.2:80", "10.1.0.9:80"),
            ("10.1.0.3:80", "10.1.0.9:80"),
            ("10.96.0.1:80", "10.1.0.9:80"),
            ("10.1.0.4:80", "refused: ip mismatch: 10.1.0.9 != 10.1.0.4"),
        ],
    );
    check_inbound(&mesh, "w", &[("10.1.0.2:80", "refused: ip mismatch: 10.1.0.1 != 10.1.0.2")]);
}

#[test]
fn the_service_is_guessed_from_the_peers_word_or_the_port() {
    let mesh = parse(MESH).unwrap();
    let web = mesh.workload_by_uid("web").unwrap();
    let guess = |port: u16, host: Option<&str>| {
        guess_service(&mesh, web, port, host).map(|service| service.hostname.to_string())
    };
    assert_eq!(guess(8080, None).as_deref(), Some("web"));
    assert_eq!(guess(8080, Some("vouched")).as_deref(), Some("vouched"));
    assert_eq!(guess(8080, Some("plain")).as_deref(), Some("web"), "the pod is not in that service");
    assert_eq!(guess(1, None), None);
}

#[test]
fn plaintext_goes_where_it_was_going_but_not_to_ourselves() {
    let target = |addr: &str| inbound::plaintext(OriginalDst(addr.parse().unwrap()));
    assert_eq!(target("[::ffff:10.1.0.2]:80").unwrap().addr, "10.1.0.2:80".parse().unwrap());
    for port in crate::addr::ILLEGAL_PORTS {
        assert_eq!(target(&format!("10.1.0.2:{port}")), Err(Refusal::LoopToSelf));
    }
}
