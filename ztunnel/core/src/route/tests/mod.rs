// SPDX-License-Identifier: Apache-2.0
//! Where connections go, as tables: a mesh, who asks for what, and the answer in words.

mod across;
mod inbound;
mod updates;
mod waypoints;

use std::net::IpAddr;

use super::{Known, Need, Outbound, Route, RouteKind, Routing, outbound};
use crate::Name;
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
- {name: deep, namespace: shop, hostname: deep, vips: [/10.96.0.15], ports: {80: 15001},
   endpoints: {named: {workloadUid: named, port: {}, status: Healthy}}}
- {name: loop, namespace: old, hostname: loop, vips: [/10.96.0.14], ports: {80: 15001},
   endpoints: {plain: {workloadUid: plain, port: {}, status: Healthy}}}
";

/// `uid -> ip:port`, and the route in words.
#[track_caller]
fn check_outbound(cases: &[(&str, &str)]) {
    check(&parse(MESH).unwrap(), cases);
}

#[track_caller]
fn check(mesh: &Mesh, cases: &[(&str, &str)]) {
    for (question, expected) in cases {
        assert_eq!(decide(mesh, question, Known::default(), 0), *expected, "{question}");
    }
}

/// The answer to `uid -> ip:port`, or to `uid@source_ip in network -> ip:port`, in words.
fn decide(mesh: &Mesh, question: &str, known: Known<'_>, drawn: u64) -> String {
    let (source, target) = question.split_once(" -> ").unwrap();
    let (source, network) = source.split_once(" in ").unwrap_or((source, ""));
    let (uid, source_ip) = source.split_once('@').unwrap_or((source, ""));
    let source = mesh.workload_by_uid(uid).unwrap();
    let own = || source.workload_ips.first().copied().unwrap_or_else(|| IpAddr::from([127, 0, 0, 1]));
    let conn = Outbound {
        source,
        source_ip: source_ip.parse().unwrap_or_else(|_| own()),
        network,
        original_dst: OriginalDst(target.parse().unwrap()),
        known,
    };
    match outbound::outbound(mesh, &conn, &mut || drawn) {
        Routing::Go(route) => words(&route),
        Routing::Need(Need::Resource(name)) => format!("ask for {name}"),
        Routing::Need(Need::Addresses(host)) => format!("resolve {host}"),
        Routing::Refuse(refusal) => format!("refused: {refusal}"),
    }
}

fn words(route: &Route) -> String {
    let list = |all: &[crate::identity::Identity]| {
        all.iter().map(ToString::to_string).collect::<Vec<String>>().join(",")
    };
    let mut words = match &route.kind {
        RouteKind::Passthrough(addr) => format!("passthrough {addr}"),
        RouteKind::Plaintext(addr) => format!("plaintext {addr}"),
        RouteKind::Hbone(hop) => {
            format!("hbone {} for {} from {}", hop.addr, hop.authority, list(&hop.expected))
        }
        RouteKind::DoubleHbone(hops) => {
            let (hop, behind) = (&hops.outer, list(&hops.expected));
            format!("double {} for {} from {} behind {behind}", hop.addr, hop.authority, list(&hop.expected))
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
        ("client -> 10.96.0.13:80", "resolve example.com"),
    ]);
}

#[test]
fn what_cannot_be_reached_as_the_mesh_says_is_refused_and_never_sent_in_the_clear() {
    check_outbound(&[
        ("client -> 10.96.0.4:80", "refused: unknown waypoint: waypoint shop/waypoint not found"),
        ("client -> 10.96.0.5:80", "refused: unknown waypoint: waypoint /10.96.0.9 not found"),
        ("client -> 10.1.0.4:80", "refused: unknown waypoint: waypoint shop/waypoint not found"),
        // A workload's waypoint is for traffic addressed to the workload itself.
        (
            "client -> 10.96.0.6:80",
            "hbone 10.1.0.4:15008 for 10.1.0.4:8080 from spiffe:///ns/shop/sa/ to behind of both",
        ),
        ("client -> 10.96.0.7:80", "refused: unknown network gateway: network gateway /10.9.9.9 not found"),
        // In another network, and no gateway leads there.
        ("client -> 10.96.0.8:80", "refused: no healthy upstream: 10.96.0.8:80"),
    ]);
}

#[test]
fn a_workload_without_addresses_is_found_by_its_host_name() {
    let mesh = parse(MESH).unwrap();
    let host: Name = "example.com".into();
    let ask = |question: &str, addresses: &[&str]| {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let resolved = [(Name::clone(&host), addresses)];
        let known = Known { resolved: &resolved, ..Known::default() };
        decide(&mesh, question, known, u64::MAX)
    };
    let both = ["fd00::7", "10.7.0.1", "10.7.0.2"];
    assert_eq!(ask("client -> 10.96.0.13:80", &both), "plaintext 10.7.0.2:8080 to named of named");
    assert_eq!(ask("client -> 10.96.0.13:80", &["fd00::7"]), "plaintext [fd00::7]:8080 to named of named");
    let refused = "refused: no ip addresses were resolved for workload: named";
    assert_eq!(ask("client -> 10.96.0.13:80", &[]), refused);
    // What a name server says does not lead to our own listeners either.
    assert_eq!(
        ask("client -> 10.96.0.15:80", &["127.0.0.1"]),
        "refused: attempted recursive call to ourselves"
    );
}

#[test]
fn what_the_mesh_does_not_know_yet_is_asked_for_before_it_is_passed_through() {
    let mesh = parse(MESH).unwrap();
    let ask = |question: &str, asked: &[&str]| {
        let asked: Vec<Name> = asked.iter().map(|&name| name.into()).collect();
        decide(&mesh, question, Known { asked: Some(&asked), ..Known::default() }, 0)
    };
    assert_eq!(ask("client -> 192.0.2.1:443", &[]), "ask for /192.0.2.1");
    assert_eq!(ask("client -> 192.0.2.1:443", &["/192.0.2.1"]), "passthrough 192.0.2.1:443");
    assert_eq!(ask("client in net -> 192.0.2.1:443", &["net/192.0.2.1"]), "ask for /192.0.2.1");
    assert_eq!(ask("client -> 10.1.0.3:9000", &[]), "plaintext 10.1.0.3:9000 to plain");
    assert_eq!(ask("client -> 10.96.0.4:80", &[]), "ask for shop/waypoint");
    let unknown = "refused: unknown waypoint: waypoint shop/waypoint not found";
    assert_eq!(ask("client -> 10.96.0.4:80", &["shop/waypoint"]), unknown);
    assert_eq!(ask("client -> 10.96.0.5:80", &[]), "ask for /10.96.0.9");
    assert_eq!(ask("client -> 10.96.0.7:80", &[]), "ask for /10.9.9.9");
    assert_eq!(ask("client -> 10.1.0.4:80", &[]), "ask for shop/waypoint");
}

#[test]
fn a_route_never_leads_back_to_our_own_listeners() {
    check_outbound(&[
        ("client -> 127.0.0.1:15001", "refused: attempted recursive call to ourselves"),
        ("client -> 0.0.0.0:15001", "refused: attempted recursive call to ourselves"),
        ("client -> [::]:15006", "refused: attempted recursive call to ourselves"),
        ("client -> [::ffff:0.0.0.0]:15008", "refused: attempted recursive call to ourselves"),
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
