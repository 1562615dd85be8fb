// SPDX-License-Identifier: Apache-2.0
//! A node that asks for what it needs (`XDS_ON_DEMAND`): the waypoints and gateways of a route as well.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ztunnel_core::xds::proto::workload::gateway_address::Destination;
use ztunnel_core::xds::proto::workload::{
    GatewayAddress, NamespacedHostname, NetworkAddress, Service, Workload,
};
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::node::ADMIN;
use ztunnel_tests::peer::{Authority, Carry, HboneServer};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::traffic::stream::is_turned_away;
use ztunnel_tests::{Mesh, PodSpec, wait};

const SOON: Duration = Duration::from_secs(20);
const BY_NAME: &str = "by-name.demo.svc.cluster.local";
const BY_ADDRESS: &str = "by-address.demo.svc.cluster.local";
const NOWHERE: &str = "nowhere.demo.svc.cluster.local";
const ABROAD: &str = "abroad.demo.svc.cluster.local";
const WAYPOINT: &str = "waypoint.demo.svc.cluster.local";
const GATE: &str = "gate.demo.svc.cluster.local";

fn by_name(hostname: &str) -> Option<GatewayAddress> {
    let name = NamespacedHostname { namespace: "demo".to_owned(), hostname: hostname.to_owned() };
    Some(GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: 15008 })
}

/// A client; services behind waypoints that are known by name, by address, and not at all; one in another network.
/// And a control plane that knows a hundred pods that nobody asks for.
fn world() -> (Mesh, Istiod) {
    let foreign = |name: &str, node: &str| PodSpec::mesh(name).on(node).not_redirected().not_enrolled();
    let mesh = Mesh::builder()
        .node_env("n3", "NETWORK", "net2")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(foreign("waypoint", "n2").service(WAYPOINT, 15008, 15008))
        .pod(
            PodSpec::mesh("server")
                .on("n2")
                .service(BY_NAME, 80, 8080)
                .service(BY_ADDRESS, 80, 8080)
                .service(NOWHERE, 80, 8080),
        )
        .pod(foreign("gateway", "n3").service(GATE, 15008, 15008))
        .pod(PodSpec::mesh("abroad").on("n3").service(ABROAD, 80, 8080))
        .build()
        .unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.configure(&mesh);
    mesh.set_env("XDS_ON_DEMAND", "true");
    let service = |hostname| describe::service(hostname, mesh.vip(hostname), [(80, 8080)]);
    let abroad = |name: &str| Workload { network: "net2".to_owned(), ..describe::workload(mesh.pod(name)) };
    let waypoint = describe::workload(mesh.pod("waypoint")).addresses.swap_remove(0);
    let address = NetworkAddress { address: waypoint, ..NetworkAddress::default() };
    istiod.ads().update(|resources| {
        describe::mesh(&mesh, resources);
        describe::crowd(100, 10, resources);
        resources.service(&Service { waypoint: by_name(WAYPOINT), ..service(BY_NAME) });
        resources.service(&Service { waypoint: by_name("none.demo.svc"), ..service(NOWHERE) });
        let by_address =
            GatewayAddress { destination: Some(Destination::Address(address)), hbone_mtls_port: 15008 };
        resources.service(&Service { waypoint: Some(by_address), ..service(BY_ADDRESS) });
        resources
            .service(&Service { subject_alt_names: vec![mesh.pod("abroad").spiffe()], ..service(ABROAD) });
        resources.workload(&abroad("gateway"));
        resources.workload(&Workload { network_gateway: by_name(GATE), ..abroad("abroad") });
    });
    for node in mesh.nodes() {
        node.start().unwrap();
    }
    (mesh, istiod)
}

/// A waypoint or gateway that is no ztunnel.
fn foreign(mesh: &Mesh, name: &str, carry: Carry) -> HboneServer {
    let pod = mesh.pod(name);
    let credentials = Authority::open(&mesh.ca_dir()).unwrap().issue(&pod.spiffe()).unwrap();
    HboneServer::start(pod, 15008, &credentials, carry).unwrap()
}

/// How often each name was asked for.
fn questions(istiod: &Istiod) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for seen in istiod.ads().seen() {
        for name in seen.request.resource_names_subscribe {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn waypoints_and_gateways_are_asked_for_once_and_never_gone_around() {
    let (mesh, istiod) = world();
    let (node, client) = (mesh.node("n1"), mesh.pod("client"));
    let waypoint = foreign(&mesh, "waypoint", Carry::Back);
    let gateway = foreign(&mesh, "gateway", Carry::To(mesh.pod("abroad").addr(15008)));
    let served = Server::echo(mesh.pod("abroad"), 8080).unwrap();
    let vip = |hostname: &str| SocketAddr::from((mesh.vip(hostname), 80));
    for hostname in [BY_ADDRESS, BY_NAME, ABROAD] {
        for _ in 0..2 {
            let conn = client.dial(vip(hostname)).unwrap();
            assert_eq!(conn.ask(b"hello").unwrap(), b"hello", "{hostname}");
        }
        let (server, authority) = match hostname {
            ABROAD => (&gateway, format!("{ABROAD}:80")),
            _ => (&waypoint, vip(hostname).to_string()),
        };
        assert_eq!(server.asked().last().unwrap().authority, authority);
    }
    assert_eq!(served.peers().len(), 2);
    // A waypoint that the control plane does not know either.
    assert!(is_turned_away(client, vip(NOWHERE), SOON), "somebody answered");
    let error = "unknown waypoint: waypoint demo/none.demo.svc not found";
    wait::until("the log line", SOON, || node.access_log().iter().any(|line| line.get("error") == error))
        .unwrap();
    let asked = questions(&istiod);
    for name in [
        format!("/{}", mesh.vip(BY_NAME)),
        format!("demo/{WAYPOINT}"),
        format!("/{}", mesh.pod("waypoint").ip4()),
        format!("demo/{GATE}"),
        "demo/none.demo.svc".to_owned(),
    ] {
        assert_eq!(asked.get(&name), Some(&1), "{name}: {asked:#?}");
    }
    let dump: serde_json::Value =
        serde_json::from_str(&node.get(ADMIN, "/config_dump").unwrap().body).unwrap();
    let known = dump["workloads"].as_array().unwrap().len();
    assert!(known < 10, "{known} workloads: more than was asked for");
    mesh.stop().unwrap();
}
