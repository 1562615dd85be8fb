// SPDX-License-Identifier: Apache-2.0
//! Where connections into a pod are delivered, as tables.

use super::super::inbound::guess_service;
use super::super::{Inbound, InboundTarget, Refusal, inbound};
use super::MESH;
use crate::addr::OriginalDst;
use crate::mesh::Mesh;
use crate::mesh::local::parse;
use crate::route::inbound::AppTunnels;

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
                let proxied = target.proxied.map(|asked| format!(" after {asked}"));
                format!("{}{}{}", target.addr, proxied.unwrap_or_default(), service.unwrap_or_default())
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
}

#[test]
fn a_proxy_header_says_what_was_asked_for() {
    let mesh = |tunnel: &str| {
        parse(&format!(
            "workloads: [{{uid: w, namespace: n, workloadIps: [10.1.0.2], services: {{n/s: {{}}, n/nowhere: {{}}}},
               applicationTunnel: {{protocol: PROXY{tunnel}}}}}]
services:
- {{name: s, namespace: n, hostname: s, vips: ['/fd00::9', /10.96.0.1, net/10.96.0.2], ports: {{80: 8080}}}}
- {{name: nowhere, namespace: n, hostname: nowhere, vips: [], ports: {{80: 8080}}}}
"
        ))
        .unwrap()
    };
    check_inbound(
        &mesh(", port: 7"),
        "w",
        &[
            ("10.1.0.2:80", "10.1.0.2:7 after 10.1.0.2:80"),
            ("10.9.9.9:80", "10.1.0.2:7 after 10.9.9.9:80"),
            ("[fd00::1]:80", "10.1.0.2:7 after [fd00::1]:80"),
            // The address of the service in our own network, with the service's port.
            ("s:80", "10.1.0.2:7 after 10.96.0.1:80 of s"),
            ("nowhere:80", "refused: requested service nowhere found, but has no IP addresses"),
            ("s:81", "refused: requested service s:81 found, but cannot resolve port"),
            ("unknown:80", "refused: no service or workload for hostname: unknown"),
            // Before the tunnel's port replaces it.
            ("10.9.9.9:15008", "refused: attempted recursive call to ourselves"),
        ],
    );
    check_inbound(
        &mesh(""),
        "w",
        &[
            ("10.9.9.9:80", "10.1.0.2:80 after 10.9.9.9:80"),
            ("s:80", "10.1.0.2:8080 after 10.96.0.1:80 of s"),
        ],
    );
}

#[test]
fn an_application_behind_a_proxy_header_is_at_localhost_unless_it_is_not() {
    let target = |addr: &str, proxied: Option<&str>| InboundTarget {
        addr: addr.parse().unwrap(),
        proxied: proxied.map(|addr| addr.parse().unwrap()),
        service: None,
    };
    let dial = |target: &InboundTarget, tunnels| target.dial(tunnels).to_string();
    let proxied = target("10.1.0.2:7", Some("10.9.9.9:80"));
    assert_eq!(dial(&proxied, AppTunnels::ToLocalhost), "127.0.0.1:7");
    assert_eq!(dial(&proxied, AppTunnels::ToPod), "10.1.0.2:7");
    assert_eq!(dial(&target("[fd00::2]:7", Some("10.9.9.9:80")), AppTunnels::ToLocalhost), "[::1]:7");
    assert_eq!(dial(&target("10.1.0.2:7", None), AppTunnels::ToLocalhost), "10.1.0.2:7");
}

#[test]
fn what_an_on_demand_mesh_lacks_is_asked_for() {
    let mesh = parse(
        "workloads:
- {uid: w, namespace: n, workloadIps: [10.1.0.1], services: {n/s: {}}}
- {uid: v, namespace: n, workloadIps: [10.1.0.2], services: {}, waypoint: {destination: n/waypoint, hboneMtlsPort: 1}}
",
    )
    .unwrap();
    let missing = |authority: &str| {
        let local = mesh.workload_by_uid("w").unwrap();
        let authority = &authority.parse().unwrap();
        let request = Inbound { local, pod_ip: local.workload_ips[0], network: "", authority };
        inbound::missing(&mesh, &request).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(missing("10.1.0.1:80"), "");
    assert_eq!(missing("10.1.0.9:80"), "/10.1.0.9");
    assert_eq!(missing("10.1.0.2:80"), "n/waypoint");
    assert_eq!(missing("s:80"), "n/s");
    assert_eq!(missing("other:80"), "");
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
- {name: t, namespace: n, hostname: t, vips: [/10.96.0.2], ports: {}, weightedWaypoints: [
   {destination: {destination: n/other, hboneMtlsPort: 1}, weight: 1},
   {destination: {destination: n/waypoint, hboneMtlsPort: 1}, weight: 2}]}
- {name: u, namespace: n, hostname: u, vips: [/10.96.0.3], ports: {}, weightedWaypoints: [
   {destination: {destination: n/waypoint, hboneMtlsPort: 1}, weight: 0}]}
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
            ("10.96.0.2:80", "10.1.0.9:80"),
            ("10.96.0.3:80", "refused: ip mismatch: 10.1.0.9 != 10.96.0.3"),
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
