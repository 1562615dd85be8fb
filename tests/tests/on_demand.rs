// SPDX-License-Identifier: Apache-2.0
//! A node that asks for what it needs (`XDS_ON_DEMAND`): the waypoints and gateways of a route as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_core::xds::proto::workload::gateway_address::Destination;
use ztunnel_core::xds::proto::workload::{
    GatewayAddress, NamespacedHostname, NetworkAddress, Service, Workload,
};
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_with;
use ztunnel_tests::node::ADMIN;
use ztunnel_tests::peer::{Carry, HboneServer};
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

fn at(destination: Destination) -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 })
}

fn name(hostname: &str) -> Destination {
    Destination::Hostname(NamespacedHostname { namespace: "demo".to_owned(), hostname: hostname.to_owned() })
}

/// A client; services behind waypoints that are known by name, by address, and not at all; one in another network.
fn mesh() -> MeshBuilder {
    let foreign = |name: &str, node: &str| PodSpec::mesh(name).on(node).not_redirected().not_enrolled();
    Mesh::builder()
        .env("XDS_ON_DEMAND", "true")
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
}

/// A control plane that knows all that, and a hundred pods that nobody asks for.
fn control_plane(mesh: &Mesh) -> Result<Istiod> {
    let istiod = Istiod::start(mesh)?;
    istiod.configure(mesh);
    let service = |hostname| describe::service(hostname, mesh.vip(hostname), [(80, 8080)]);
    let abroad = |name: &str| Workload { network: "net2".to_owned(), ..describe::workload(mesh.pod(name)) };
    let waypoint = describe::workload(mesh.pod("waypoint")).addresses.swap_remove(0);
    let address = Destination::Address(NetworkAddress { address: waypoint, ..NetworkAddress::default() });
    istiod.ads().update(|resources| {
        describe::mesh(mesh, resources);
        describe::crowd(100, 10, resources);
        resources.service(&Service { waypoint: at(address), ..service(BY_ADDRESS) });
        resources.service(&Service { waypoint: at(name(WAYPOINT)), ..service(BY_NAME) });
        resources.service(&Service { waypoint: at(name("none.demo.svc")), ..service(NOWHERE) });
        let identity = vec![mesh.pod("abroad").spiffe()];
        resources.service(&Service { subject_alt_names: identity, ..service(ABROAD) });
        resources.workload(&abroad("gateway"));
        resources.workload(&Workload { network_gateway: at(name(GATE)), ..abroad("abroad") });
    });
    Ok(istiod)
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
fn waypoints_and_gateways_are_asked_for_once_and_never_gone_around() -> Result<()> {
    in_every_mode_with(mesh, control_plane, scenario)
}

fn scenario(mesh: &Mesh, istiod: &Istiod) -> Result<()> {
    let (node, client) = (mesh.node("n1"), mesh.pod("client"));
    let waypoint = HboneServer::start(mesh, "waypoint", Carry::Back)?;
    let gateway = HboneServer::start(mesh, "gateway", Carry::To(mesh.pod("abroad").addr(15008)))?;
    let served = Server::echo(mesh.pod("abroad"), 8080)?;
    let vip = |hostname: &str| SocketAddr::from((mesh.vip(hostname), 80));
    for hostname in [BY_ADDRESS, BY_NAME, ABROAD] {
        for _ in 0..2 {
            let conn = client.dial(vip(hostname))?;
            ensure!(conn.ask(b"hello")? == b"hello", "{hostname}");
            conn.finish()?;
            ensure!(conn.read_all()?.is_empty(), "{hostname}: something else than the end");
        }
        let (server, authority) = match hostname {
            ABROAD => (&gateway, format!("{ABROAD}:80")),
            _ => (&waypoint, vip(hostname).to_string()),
        };
        let asked = server.asked().last().cloned().context("nobody was asked")?;
        ensure!(asked.authority == authority, "{hostname}: {asked:?}");
    }
    served.expect_finished(2, SOON)?;
    // A waypoint that the control plane does not know either.
    ensure!(is_turned_away(client, vip(NOWHERE), SOON), "somebody answered");
    let error = "unknown waypoint: waypoint demo/none.demo.svc not found";
    wait::until("the log line", SOON, || node.access_log().iter().any(|line| line.get("error") == error))?;
    let asked = questions(istiod);
    for name in [
        format!("/{}", mesh.vip(BY_NAME)),
        format!("demo/{WAYPOINT}"),
        format!("/{}", mesh.pod("waypoint").ip4()),
        format!("demo/{GATE}"),
        "demo/none.demo.svc".to_owned(),
    ] {
        ensure!(asked.get(&name) == Some(&1), "{name}: {asked:#?}");
    }
    let dump: serde_json::Value = serde_json::from_str(&node.get(ADMIN, "/config_dump")?.body)?;
    let known = dump["workloads"].as_array().context("no workloads in the dump")?.len();
    ensure!(known < 10, "{known} workloads: more than was asked for");
    Ok(())
}
