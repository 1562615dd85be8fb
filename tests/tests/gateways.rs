// SPDX-License-Identifier: Apache-2.0
//! Other networks: a tunnel in a tunnel, through a gateway that sees nothing of what it carries.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::observe::{AccessEntry, Sniffer};
use ztunnel_tests::peer::{Asked, Carry, HboneServer};
use ztunnel_tests::traffic::stream::{self, Sides, is_turned_away};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
const WORDS: &[u8] = b"hello world, over there";
const BY_ADDRESS: &str = "by-address.demo.svc.cluster.local";
const BY_NAME: &str = "by-name.demo.svc.cluster.local";
const UNVOUCHED: &str = "unvouched.demo.svc.cluster.local";
const GATE: &str = "gate.demo.svc.cluster.local";
const SANS: &str = "subjectAltNames: ['spiffe://cluster.local/ns/demo/sa/server']";

/// `client` in the default network, two servers in `net2` behind two gateways, one known by address, one by name.
fn mesh() -> MeshBuilder {
    let abroad = |name: &str| PodSpec::mesh(name).on("n2").with("network: net2");
    let foreign = |name: &str| abroad(name).not_redirected().not_enrolled();
    Mesh::builder()
        .node_env("n2", "NETWORK", "net2")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(foreign("gateway1"))
        .pod(foreign("gateway2").service(GATE, 15009, 15008))
        .pod(
            abroad("server1")
                .service_account("server")
                .service(BY_ADDRESS, 80, 8080)
                .service(UNVOUCHED, 80, 8080)
                .with("networkGateway: {destination: net2/$ip(gateway1), hboneMtlsPort: 15008}"),
        )
        .pod(
            abroad("server2")
                .service_account("server")
                .service(BY_NAME, 80, 8080)
                .with(&format!("networkGateway: {{destination: demo/{GATE}, hboneMtlsPort: 15009}}")),
        )
        .service_with(BY_ADDRESS, SANS)
        .service_with(BY_NAME, SANS)
        .service_with(UNVOUCHED, "subjectAltNames: ['spiffe://cluster.local/ns/demo/sa/somebody']")
}

/// What a gateway does: it carries everything to one pod's proxy.
fn to(mesh: &Mesh, server: &str) -> Carry {
    Carry::To(mesh.pod(server).addr(15008))
}

/// The line of the access log that has these fields; waits for it.
fn logged(mesh: &Mesh, node: &str, fields: &[(&str, &str)]) -> Result<AccessEntry> {
    let found = wait::some(&format!("a line with {fields:?}"), SOON, || {
        mesh.node(node).access_log().into_iter().find(|entry| entry.is(fields))
    });
    found.with_context(|| format!("{:#?}", mesh.node(node).access_log()))
}

fn counted(mesh: &Mesh, node: &str, labels: &[(&str, &str)]) -> Result<()> {
    wait::until(&format!("one connection with {labels:?}"), SOON, || {
        mesh.node(node).metrics().is_ok_and(|metrics| {
            (metrics.sum("istio_tcp_connections_closed_total", labels) - 1.0).abs() < 0.5
                && (metrics.sum("istio_tcp_received_bytes_total", labels) - 23.0).abs() < 0.5
                && (metrics.sum("istio_tcp_sent_bytes_total", labels) - 23.0).abs() < 0.5
        })
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn double_hbone_by_address_and_double_hbone_by_hostname_reach_the_service_behind_the_gateway() -> Result<()> {
    in_every_mode(mesh, |mesh| {
        let client = mesh.pod("client");
        let sniffer = Sniffer::start(mesh.wire(), WORDS)?;
        for (service, server, through) in
            [(BY_ADDRESS, "server1", "gateway1"), (BY_NAME, "server2", "gateway2")]
        {
            let gateway = HboneServer::start(mesh, through, to(mesh, server))?;
            let serving = Server::echo(mesh.pod(server), 8080)?;
            let conn = client.dial((mesh.vip(service), 80).into())?;
            ensure!(conn.ask(WORDS)? == WORDS, "another answer");
            conn.finish()?;
            ensure!(conn.read_all()?.is_empty());
            serving.expect_finished(1, SOON)?;
            // The gateway is asked for the service by its name, and sees nothing else.
            let asked: Asked = gateway.asked().last().cloned().context("the gateway was not asked")?;
            let authority = format!("{service}:80");
            ensure!(asked.authority == authority && asked.client == client.spiffe(), "{asked:?}");
            ensure!(!asked.headers.contains_key("x-forwarded-network"), "{asked:?}");
            // What the application sees is the gateway.
            ensure!(serving.peers().iter().all(|peer| peer.ip() == mesh.pod(through).ip4()));
            let hop = mesh.pod(through).addr(15008).to_string();
            let identity = mesh.pod(server).spiffe();
            let fields = [
                ("direction", "outbound"),
                ("dst.addr", hop.as_str()),
                ("dst.hbone_addr", &authority),
                ("dst.service", service),
                ("dst.workload", server),
                ("dst.namespace", "demo"),
                ("dst.identity", &identity),
                ("src.identity", &client.spiffe()),
                ("bytes_sent", "23"),
                ("bytes_recv", "23"),
            ];
            logged(mesh, "n1", &fields)?;
            counted(
                mesh,
                "n1",
                &[
                    ("reporter", "source"),
                    ("destination_workload", server),
                    ("destination_principal", &identity),
                    ("destination_service", service),
                    ("connection_security_policy", "mutual_tls"),
                ],
            )?;
            // At the other end: who it is says the inner tunnel, what it is its baggage.
            let source = client.spiffe();
            let own = mesh.pod(server).addr(15008).to_string();
            logged(
                mesh,
                "n2",
                &[
                    ("direction", "inbound"),
                    ("src.workload", "client"),
                    ("src.identity", &source),
                    ("dst.addr", &own),
                    ("dst.hbone_addr", &authority),
                    ("dst.service", service),
                ],
            )?;
            counted(
                mesh,
                "n2",
                &[
                    ("reporter", "destination"),
                    ("source_workload", "client"),
                    ("source_principal", &source),
                    ("destination_service", service),
                ],
            )?;
        }
        let capture = sniffer.stop();
        ensure!(capture.bytes_with_port(15008) > 0, "the sniffer is blind");
        ensure!(capture.sightings.is_empty(), "seen in the clear: {:?}", capture.sightings);
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn whoever_is_not_vouched_for_and_gateways_that_refuse_get_no_byte() -> Result<()> {
    // How the other end sees the end of a handshake, in its log, is a matter of moments.
    in_every_mode_alone(mesh, |mesh| {
        let (client, serving) = (mesh.pod("client"), Server::echo(mesh.pod("server1"), 8080)?);
        let turned_away = |service: &str| is_turned_away(client, (mesh.vip(service), 80).into(), SOON);
        {
            let _gateway = HboneServer::start(mesh, "gateway1", to(mesh, "server1"))?;
            ensure!(turned_away(UNVOUCHED), "the wrong identity was believed");
            let line = logged(mesh, "n1", &[("dst.service", UNVOUCHED)])?;
            ensure!(line.get("error").contains("UnexpectedIdentity"), "{line}");
        }
        {
            let _gateway = HboneServer::start(mesh, "gateway2", Carry::Status(503))?;
            ensure!(turned_away(BY_NAME), "a refusal was taken for an answer");
            let error = "http status: 503 Service Unavailable";
            logged(mesh, "n1", &[("dst.service", BY_NAME), ("error", error), ("dst.workload", "gateway2")])?;
        }
        ensure!(turned_away(BY_NAME), "nobody is there, and somebody answered");
        ensure!(serving.peers().is_empty(), "the application was reached");
        let labels = [("reporter", "source"), ("response_flags", "CONNECT")];
        wait::until("three failed connections", SOON, || {
            mesh.node("n1").metrics().is_ok_and(|metrics| {
                (metrics.sum("istio_tcp_connections_failed_total", &labels) - 3.0).abs() < 0.5
            })
        })
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn bulk_half_closes_and_resets_are_carried_through_both_tunnels_and_nothing_is_left() -> Result<()> {
    in_every_mode_alone(mesh, |mesh| {
        let (client, vip) = (mesh.pod("client"), SocketAddr::from((mesh.vip(BY_ADDRESS), 80)));
        let through = HboneServer::start(mesh, "gateway1", to(mesh, "server1"))?;
        type Exchange = fn(&Conn, Sides) -> Result<()>;
        let exchange = |sides: Sides, (ours, theirs): (Exchange, Exchange)| -> Result<()> {
            let serving =
                Server::start(mesh.pod("server1"), 8080, move |conn| theirs(&conn, sides.reversed()))?;
            ours(&client.dial(vip)?, sides)
                .with_context(|| format!("the server: {:?}", serving.complaints()))?;
            serving.expect_finished(1, SOON)
        };
        exchange(Sides::client(1, 16 << 20 | 1, 16 << 20 | 3), (stream::duplex, stream::duplex))?;
        for (seed, lengths) in (2..).zip([(1, 1), (300_001, 200_003), (0, 100_001), (100_003, 0), (0, 0)]) {
            let sides = Sides::client(seed, lengths.0, lengths.1);
            exchange(sides, (stream::speak_first, stream::listen_first))?;
            exchange(sides, (stream::listen_first, stream::speak_first))?;
        }
        // A reset of either end is one at the other.
        let waiting = Server::start(mesh.pod("server1"), 8080, |conn| {
            ensure!(conn.ask(b"ready")? == b"reset", "another answer");
            { &conn }.write_all(b"go")?;
            let end = conn.read_all().map_err(|error| error.kind());
            ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "it ended with {end:?}");
            Ok(())
        })?;
        let conn = client.dial(vip)?;
        ensure!(conn.ask(b"reset")? == b"ready");
        // What we have said has arrived by now: a reset may take back what has not.
        { &conn }.read_exact(&mut [0; 2])?;
        conn.reset()?;
        waiting.expect_finished(1, SOON)?;
        drop(waiting);
        let resetting = Server::start(mesh.pod("server1"), 8080, |conn| {
            ensure!(conn.ask(b"ready")? == b"reset", "another answer");
            { &conn }.read_exact(&mut [0; 2])?;
            Ok(conn.reset()?)
        })?;
        let conn = client.dial(vip)?;
        ensure!(conn.ask(b"reset")? == b"ready");
        { &conn }.write_all(b"go")?;
        let end = conn.read_all().map_err(|error| error.kind());
        ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "it ended with {end:?}");
        resetting.expect_finished(1, SOON)?;
        drop(resetting);
        // The gateway goes away: both ends hear of it.
        let serving = Server::start(mesh.pod("server1"), 8080, |conn| {
            ensure!(conn.ask(b"ready")? == b"reset", "another answer");
            { &conn }.write_all(b"go")?;
            ensure!(conn.ends_within(SOON), "the server was not told");
            Ok(())
        })?;
        let conn = client.dial(vip)?;
        ensure!(conn.ask(b"reset")? == b"ready");
        { &conn }.read_exact(&mut [0; 2])?;
        drop(through);
        let end = conn.read_all().map_err(|error| error.kind());
        ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "it ended with {end:?}");
        serving.expect_finished(1, SOON)?;
        for node in mesh.nodes() {
            wait::until("nothing to be open", SOON, || {
                node.metrics().is_ok_and(|metrics| metrics.open_connections().abs() < 0.5)
            })?;
        }
        Ok(())
    })
}
