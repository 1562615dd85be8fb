// SPDX-License-Identifier: Apache-2.0
//! Where connections of captured pods go, and what crosses the wire then.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::observe::Sniffer;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::traffic::stream::is_turned_away;
use ztunnel_tests::{Mesh, Node, Pod, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
const NEEDLE: &[u8] = b"this must never cross the wire in the clear";
const SERVICE: &str = "far.demo.svc.cluster.local";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1").service("near.demo.svc.cluster.local", 80, 8080))
        .pod(PodSpec::mesh("far").on("n2").service(SERVICE, 80, 8080))
        .pod(PodSpec::plain("plain").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

/// Asks a server and looks at the answer.
fn ask(mesh: &Mesh, from: &str, to: SocketAddr) -> Result<()> {
    let answer = mesh.pod(from).dial(to)?.ask(NEEDLE)?;
    ensure!(answer == NEEDLE, "another answer from {to}");
    Ok(())
}

/// The one line of the access log that has these fields; waits for it.
fn logged(node: &Node, fields: &[(&str, &str)]) -> Result<()> {
    wait::until(&format!("an access log line with {fields:?}"), SOON, || {
        node.access_log().iter().any(|entry| entry.is(fields))
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn mesh_pods_talk_hbone_within_a_node_and_across_nodes() {
    in_every_mode(mesh, |mesh| {
        for name in ["near", "far"] {
            let pod = mesh.pod(name);
            let server = Server::echo(pod, 8080)?;
            for (to, client) in
                [(pod.addr(8080), mesh.pod("client").ip4()), (pod.addr6(8080), mesh.pod("client").ip6())]
            {
                ask(mesh, "client", to)?;
                ensure!(
                    server.peers().last().map(SocketAddr::ip) == Some(client),
                    "{name} must see the client's own address {client}, not {:?}",
                    server.peers()
                );
                let hop = SocketAddr::new(to.ip(), 15008).to_string();
                let (identity, authority) = (pod.spiffe(), to.to_string());
                let fields = [
                    ("direction", "outbound"),
                    ("dst.addr", hop.as_str()),
                    ("dst.hbone_addr", authority.as_str()),
                    ("dst.identity", identity.as_str()),
                    ("bytes_sent", "43"),
                    ("bytes_recv", "43"),
                ];
                logged(mesh.node("n1"), &fields)?;
            }
        }
        for (node, reporter, count) in
            [("n1", "source", 4.0), ("n1", "destination", 2.0), ("n2", "destination", 2.0)]
        {
            let labels = [("reporter", reporter), ("connection_security_policy", "mutual_tls")];
            let opened = mesh.node(node).metrics()?.sum("istio_tcp_connections_opened_total", &labels);
            ensure!((opened - count).abs() < 0.5, "{node}, {reporter}: {opened} opened, not {count}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_service_address_leads_to_its_endpoint() {
    in_every_mode(mesh, |mesh| {
        let server = Server::echo(mesh.pod("far"), 8080)?;
        ask(mesh, "client", (mesh.vip(SERVICE), 80).into())?;
        ensure!(server.peers().len() == 1, "served by somebody else");
        let authority = mesh.pod("far").addr(8080).to_string();
        logged(mesh.node("n1"), &[("dst.service", SERVICE), ("dst.hbone_addr", &authority)])?;
        let labels = [("reporter", "source"), ("destination_service", SERVICE)];
        let sent = mesh.node("n1").metrics()?.sum("istio_tcp_received_bytes_total", &labels);
        ensure!((sent - 43.0).abs() < 0.5, "{sent} bytes counted for the service, not 43");
        // A port that the service does not have.
        let lost = is_turned_away(mesh.pod("client"), (mesh.vip(SERVICE), 81).into(), SOON);
        ensure!(lost, "a connection to a port that the service does not have stays open");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn plain_and_unknown_destinations_are_reached_in_plain_tcp() {
    in_every_mode(mesh, |mesh| {
        for name in ["plain", "stranger"] {
            let pod = mesh.pod(name);
            let server = Server::echo(pod, 8080)?;
            for to in [pod.addr(8080), pod.addr6(8080)] {
                ask(mesh, "client", to)?;
                let addr = to.to_string();
                logged(
                    mesh.node("n1"),
                    &[("direction", "outbound"), ("dst.addr", &addr), ("dst.hbone_addr", "")],
                )?;
            }
            let clients: Vec<_> = server.peers().iter().map(SocketAddr::ip).collect();
            ensure!(clients == [mesh.pod("client").ip4(), mesh.pod("client").ip6()], "{clients:?}");
        }
        let metrics = mesh.node("n1").metrics()?;
        let opened = "istio_tcp_connections_opened_total";
        let known = metrics
            .sum(opened, &[("destination_workload", "plain"), ("connection_security_policy", "unknown")]);
        let unknown = metrics.sum(opened, &[("destination_workload", "unknown")]);
        ensure!((known - 2.0).abs() < 0.5 && (unknown - 2.0).abs() < 0.5, "known {known}, unknown {unknown}");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn only_tls_to_the_hbone_port_crosses_the_wire_between_mesh_pods() {
    in_every_mode(mesh, |mesh| {
        let sniffer = Sniffer::start(mesh.wire(), NEEDLE)?;
        let far = mesh.pod("far");
        let server = Server::echo(far, 8080)?;
        for to in [far.addr(8080), far.addr6(8080), (mesh.vip(SERVICE), 80).into()] {
            ask(mesh, "client", to)?;
        }
        // The sniffer must be able to see what it looks for: towards a pod without HBONE it crosses in the clear.
        let plain = Server::echo(mesh.pod("plain"), 8081)?;
        ask(mesh, "client", mesh.pod("plain").addr(8081))?;
        let capture = sniffer.stop();
        ensure!(!capture.sightings.is_empty(), "the sniffer is blind");
        ensure!(
            capture.sightings.iter().all(|flow| flow.from.port() == 8081 || flow.to.port() == 8081),
            "plaintext on the wire: {:?}",
            capture.sightings
        );
        let client = mesh.pod("client");
        for (a, b) in [(client.ip4(), far.ip4()), (client.ip6(), far.ip6())] {
            let mut tunnels = 0;
            for (flow, seen) in capture.between(a, b) {
                ensure!(flow.from.port() == 15008 || flow.to.port() == 15008, "not a tunnel: {flow:?}");
                // A TLS record of type handshake, version 3.x.
                ensure!(seen.head.starts_with(&[0x16, 0x03]), "not TLS: {flow:?} {:02x?}", seen.head);
                tunnels += 1;
            }
            ensure!(tunnels >= 2, "no tunnel between {a} and {b} was seen");
        }
        drop((server, plain));
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn our_own_ports_are_never_a_destination() {
    in_every_mode(mesh, |mesh| {
        let client = mesh.pod("client");
        for port in [15001, 15006, 15008] {
            let loopback = SocketAddr::from(([127, 0, 0, 1], port));
            for to in [mesh.pod("far").addr(port), mesh.pod("far").addr6(port), client.addr(port), loopback] {
                match client.dial(to) {
                    Ok(conn) => {
                        let mut writer = &conn;
                        drop(std::io::Write::write_all(&mut writer, b"hello\r\n\r\n"));
                        ensure!(conn.ends_within(SOON), "a connection to our own port {to} stays open");
                    }
                    Err(error) => {
                        let refused = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
                        ensure!(refused.contains(&error.kind()), "{to}: {error}");
                    }
                }
            }
        }
        ensure!(mesh.nodes().all(|node| node.is_ready()), "a loop hurt a ztunnel");
        let server = Server::echo(mesh.pod("far"), 8080)?;
        ask(mesh, "client", mesh.pod("far").addr(8080))?;
        drop(server);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn traffic_within_a_pod_is_left_alone() {
    in_every_mode(mesh, |mesh| {
        let client = mesh.pod("client");
        let server = Server::echo(client, 8080)?;
        let loopback = [SocketAddr::from(([127, 0, 0, 1], 8080)), "[::1]:8080".parse()?];
        for to in [loopback[0], loopback[1], client.addr(8080), client.addr6(8080)] {
            ask(mesh, "client", to)?;
        }
        drop(server);
        let metrics = mesh.node("n1").metrics()?;
        let opened = metrics.sum("istio_tcp_connections_opened_total", &[]);
        ensure!(opened.abs() < 0.5, "ztunnel saw {opened} connections");
        Ok(())
    })
    .unwrap();
}

/// How many of our sockets on a listening port are in TIME_WAIT in the pod's namespace.
fn time_waits(pod: &Pod, port: u16) -> Result<usize> {
    let tables = pod.run(|| {
        ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    });
    let ours = format!(":{port:04X}");
    // `sl local_address rem_address st …`, addresses and state in hexadecimal.
    let is_ours = |line: &&str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&ours)) && words.nth(1) == Some("06")
    };
    tables.into_iter().map(|table| Ok(table?.lines().filter(is_ours).count())).sum()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connections_that_the_server_ended_leave_no_time_wait_where_all_of_a_pod_are_redirected() {
    in_every_mode(mesh, |mesh| {
        let servers = [8090, 8091].map(|port| Server::banner(mesh.pod("far"), port, "over"));
        for port in [8090, 8091].into_iter().cycle().take(40) {
            for to in [mesh.pod("far").addr(port), mesh.pod("far").addr6(port)] {
                // From the mesh to our 15001, from outside it to our 15006.
                for from in ["client", "plain"] {
                    ensure!(mesh.pod(from).dial(to)?.read_all()? == b"over");
                }
            }
        }
        wait::ok("nothing to wait on our port", SOON, || {
            let left = time_waits(mesh.pod("client"), 15001)?;
            ensure!(left == 0, "{left} sockets of port 15001 are in TIME_WAIT");
            Ok(())
        })?;
        // What came over a network may have something in flight: TIME_WAIT protects the next connection from it.
        let kept = time_waits(mesh.pod("far"), 15006)?;
        ensure!(kept > 0, "sockets of port 15006 have lost their TIME_WAIT");
        drop(servers);
        Ok(())
    })
    .unwrap();
}
