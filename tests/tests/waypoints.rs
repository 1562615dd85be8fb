// SPDX-License-Identifier: Apache-2.0
//! Waypoints, services and names: who is asked for what, and as whom.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::observe::AccessEntry;
use ztunnel_tests::peer::{Answer, Asked, Authority, Carry, HboneServer, Peer, connect_request};
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::stream::is_turned_away;
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Netns, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
const WORDS: &[u8] = b"hello world";
const BY_ADDRESS: &str = "by-address.demo.svc.cluster.local";
const BY_NAME: &str = "by-name.demo.svc.cluster.local";
const NOWHERE: &str = "nowhere.demo.svc.cluster.local";
const WAYPOINT: &str = "waypoint.demo.svc.cluster.local";

/// Sends eleven bytes and expects them back.
fn ask(mesh: &Mesh, from: &str, to: SocketAddr) -> Result<()> {
    let conn = mesh.pod(from).dial(to)?;
    ensure!(
        conn.ask(WORDS).with_context(|| format!("{from} asks {to}"))? == WORDS,
        "another answer from {to}"
    );
    Ok(())
}

/// The line of the access log that has these fields; waits for it.
fn logged(mesh: &Mesh, node: &str, fields: &[(&str, &str)]) -> Result<AccessEntry> {
    let found = wait::some(&format!("a line with {fields:?}"), SOON, || {
        mesh.node(node).access_log().into_iter().find(|entry| entry.is(fields))
    });
    found.with_context(|| format!("{:#?}", mesh.node(node).access_log()))
}

/// Waits until the source's metrics have `connections` of eleven bytes each way with these labels.
fn counted(mesh: &Mesh, node: &str, labels: &[(&str, &str)], connections: f64) -> Result<()> {
    wait::until(&format!("{connections} connections with {labels:?}"), SOON, || {
        mesh.node(node).metrics().is_ok_and(|metrics| {
            [
                ("istio_tcp_connections_opened_total", connections),
                ("istio_tcp_connections_closed_total", connections),
                ("istio_tcp_received_bytes_total", connections * 11.0),
                ("istio_tcp_sent_bytes_total", connections * 11.0),
            ]
            .iter()
            .all(|(name, value)| (metrics.sum(name, labels) - value).abs() < 0.5)
        })
    })
}

/// A waypoint that is no ztunnel.
fn waypoint(mesh: &Mesh) -> Result<HboneServer> {
    HboneServer::start(mesh, "waypoint", Carry::Back)
}

fn foreign_waypoints() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(
            PodSpec::mesh("waypoint")
                .on("n2")
                .not_redirected()
                .not_enrolled()
                .service(WAYPOINT, 15008, 15008),
        )
        .pod(
            PodSpec::mesh("guarded")
                .on("n2")
                .with("waypoint: {destination: /$ip(waypoint), hboneMtlsPort: 15008}"),
        )
        .pod(PodSpec::mesh("server").on("n2").service(BY_ADDRESS, 80, 8080).service(BY_NAME, 80, 8080))
        .service_with(BY_ADDRESS, "waypoint: {destination: /$ip(waypoint), hboneMtlsPort: 15008}")
        .service_with(BY_NAME, &format!("waypoint: {{destination: demo/{WAYPOINT}, hboneMtlsPort: 15008}}"))
        .service_with(NOWHERE, "waypoint: {destination: demo/none.demo.svc, hboneMtlsPort: 15008}")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn workload_waypoint_service_waypoint_and_service_waypoint_hostname_are_asked_for_what_the_application_asked_for()
-> Result<()> {
    in_every_mode(foreign_waypoints, |mesh| {
        let (server, client) = (waypoint(mesh)?, mesh.pod("client"));
        let (vip, named): (SocketAddr, SocketAddr) =
            ((mesh.vip(BY_ADDRESS), 80).into(), (mesh.vip(BY_NAME), 80).into());
        let cases = [(mesh.pod("guarded").addr(8080), ""), (vip, BY_ADDRESS), (named, BY_NAME)];
        for (to, service) in cases {
            ask(mesh, "client", to)?;
            let asked: Asked = server.asked().last().cloned().context("the waypoint was not asked")?;
            ensure!(asked.authority == to.to_string() && asked.client == client.spiffe(), "{asked:?}");
            let forwarded = asked.headers.get("forwarded").map(String::as_str).unwrap_or_default();
            ensure!(forwarded.starts_with(&format!("for=\"{}:", client.ip4())), "{asked:?}");
            ensure!(forwarded.ends_with(service), "{asked:?}");
            let baggage = asked.headers.get("baggage").map(String::as_str).unwrap_or_default();
            ensure!(baggage.contains("k8s.pod.name=client"), "{asked:?}");
            ensure!(!asked.headers.contains_key("x-forwarded-network"), "{asked:?}");
            let hop = mesh.pod("waypoint").addr(15008).to_string();
            let (authority, identity) = (to.to_string(), mesh.pod("waypoint").spiffe());
            logged(
                mesh,
                "n1",
                &[
                    ("dst.addr", &hop),
                    ("dst.hbone_addr", &authority),
                    ("dst.service", service),
                    ("dst.workload", "waypoint"),
                    ("dst.identity", &identity),
                    ("src.identity", &client.spiffe()),
                    ("bytes_sent", "11"),
                    ("bytes_recv", "11"),
                ],
            )?;
            let label = if service.is_empty() { "unknown" } else { service };
            let labels = [("destination_workload", "waypoint"), ("destination_service", label)];
            counted(mesh, "n1", &labels, 1.0)?;
        }
        // A waypoint that is not there is never gone around, nor is one that is not there any more.
        ensure!(is_turned_away(client, (mesh.vip(NOWHERE), 80).into(), SOON), "somebody answered");
        logged(mesh, "n1", &[("error", "unknown waypoint: waypoint demo/none.demo.svc not found")])?;
        drop(server);
        ensure!(is_turned_away(client, vip, SOON), "somebody answered instead of the waypoint");
        Ok(())
    })
}

const DATABASE: &str = "database.demo.svc.cluster.local";
const LOST: &str = "lost.demo.svc.cluster.local";

/// The waypoint, a database outside of the mesh and somebody who is lost are known by their names alone.
fn known_by_name() -> MeshBuilder {
    Mesh::builder()
        .dns(&["resolver"])
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::unknown("resolver").on("n2"))
        .pod(
            PodSpec::mesh("waypoint")
                .on("n2")
                .known_as("at-$ip(waypoint).example")
                .not_redirected()
                .not_enrolled()
                .service(WAYPOINT, 15008, 15008),
        )
        .pod(
            PodSpec::plain("database")
                .on("n2")
                .known_as("at-$ip(database).example")
                .service(DATABASE, 80, 8080),
        )
        .pod(PodSpec::plain("lost").on("n2").known_as("nx.example").service(LOST, 80, 8080))
        .pod(PodSpec::mesh("server").on("n2").service(BY_NAME, 80, 8080))
        .service_with(BY_NAME, &format!("waypoint: {{destination: demo/{WAYPOINT}, hboneMtlsPort: 15008}}"))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn service_waypoint_workload_hostname_and_others_without_addresses_are_resolved_on_demand() -> Result<()> {
    in_every_mode(known_by_name, |mesh| {
        let resolver = Resolver::start(mesh.pod("resolver"))?;
        let (server, database) = (waypoint(mesh)?, Server::echo(mesh.pod("database"), 8080)?);
        let vip = SocketAddr::from((mesh.vip(BY_NAME), 80));
        ask(mesh, "client", vip)?;
        ensure!(
            server.asked().iter().map(|asked| &asked.authority).eq([&vip.to_string()]),
            "{:?}",
            server.asked()
        );
        let hop = mesh.pod("waypoint").addr(15008).to_string();
        logged(mesh, "n1", &[("dst.addr", &hop), ("dst.service", BY_NAME), ("dst.workload", "waypoint")])?;
        // What is known is not asked for again, but every use counts.
        resolver.forget();
        for _ in 0..2 {
            ask(mesh, "client", (mesh.vip(DATABASE), 80).into())?;
        }
        ensure!(database.peers().len() == 2 && resolver.received().len() == 2, "{:?}", resolver.received());
        let plain = mesh.pod("database").addr(8080).to_string();
        logged(mesh, "n1", &[("dst.addr", &plain), ("dst.hbone_addr", ""), ("dst.workload", "database")])?;
        let hostname = format!("at-{}.example", mesh.pod("database").ip4());
        let labels =
            [("hostname", &*hostname), ("source_workload", "client"), ("source_workload_namespace", "demo")];
        let metrics = mesh.node("n1").metrics()?;
        ensure!((metrics.sum("istio_on_demand_dns_total", &labels) - 2.0).abs() < 0.5);
        ensure!(metrics.named("istio_on_demand_dns_total").count() == 2, "not one series for each name");
        ensure!(is_turned_away(mesh.pod("client"), (mesh.vip(LOST), 80).into(), SOON), "somebody answered");
        let error = "no ip addresses were resolved for workload: cluster1//Pod/demo/lost";
        logged(mesh, "n1", &[("error", error)])?;
        Ok(())
    })
}

/// A waypoint that is a captured pod: it takes plain connections, and opens new ones to where they were going.
fn forwarder(conn: &Conn, waypoint: &Netns, to: SocketAddr) -> Result<()> {
    let onward = Conn::new(waypoint.run(|| TcpStream::connect_timeout(&to, SOON))?)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match { conn }.read(&mut buffer)? {
            0 => {
                onward.finish()?;
                break;
            }
            length => {
                { &onward }.write_all(&buffer[..length])?;
                let mut answer = vec![0; length];
                { &onward }.read_exact(&mut answer)?;
                { conn }.write_all(&answer)?;
            }
        }
    }
    Ok(conn.finish()?)
}

fn captured_waypoint(tunnel: &str) -> MeshBuilder {
    let waypoint = PodSpec::mesh("waypoint").on("n1").service(WAYPOINT, 15008, 15008);
    let waypoint = if tunnel.is_empty() { waypoint } else { waypoint.with(tunnel) };
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("raw").on("n2").not_redirected().not_enrolled())
        .pod(waypoint)
        .pod(
            PodSpec::mesh("server")
                .on("n2")
                .with(&format!("waypoint: {{destination: demo/{WAYPOINT}, hboneMtlsPort: 15008}}"))
                .service(BY_NAME, 80, 8080),
        )
        .service_with(BY_NAME, "weightedWaypoints:")
        .service_with(
            BY_NAME,
            &format!("- {{destination: {{destination: demo/{WAYPOINT}, hboneMtlsPort: 15008}}, weight: 7}}"),
        )
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn sandwich_waypoint_plain_takes_what_is_for_others_and_is_not_sent_to_itself() -> Result<()> {
    in_every_mode(
        || captured_waypoint(""),
        |mesh| {
            let (server, waypoint) = (Server::echo(mesh.pod("server"), 8080)?, mesh.pod("waypoint"));
            let (to, netns) = (mesh.pod("server").addr(8080), waypoint.netns().clone());
            let forwarding = Server::start(waypoint, 8080, move |conn| forwarder(&conn, &netns, to))?;
            ask(mesh, "client", to)?;
            ensure!(server.peers().iter().all(|peer| peer.ip() == waypoint.ip4()), "{:?}", server.peers());
            ensure!(forwarding.peers().iter().all(|peer| peer.ip() == mesh.pod("client").ip4()));
            let authority = to.to_string();
            let own = waypoint.addr(15008).to_string();
            // To the waypoint, into it, and on, straight to the destination.
            logged(
                mesh,
                "n1",
                &[
                    ("direction", "outbound"),
                    ("src.workload", "client"),
                    ("dst.addr", &own),
                    ("dst.hbone_addr", &authority),
                ],
            )?;
            logged(
                mesh,
                "n1",
                &[("direction", "inbound"), ("dst.workload", "waypoint"), ("dst.hbone_addr", &authority)],
            )?;
            let beyond = mesh.pod("server").addr(15008).to_string();
            logged(
                mesh,
                "n1",
                &[("direction", "outbound"), ("src.workload", "waypoint"), ("dst.addr", &beyond)],
            )?;
            logged(
                mesh,
                "n2",
                &[("direction", "inbound"), ("src.identity", &waypoint.spiffe()), ("bytes_sent", "11")],
            )?;
            // The same for a service whose waypoint is one of several.
            let listening = Server::echo(waypoint, 80)?;
            ask(mesh, "client", (mesh.vip(BY_NAME), 80).into())?;
            ensure!(listening.peers().len() == 1, "somebody else than the waypoint answered");
            forwarding.expect_finished(1, SOON)?;
            // What is behind somebody else is not the waypoint's.
            let credentials = Authority::open(&mesh.ca_dir())?.issue(&mesh.pod("client").spiffe())?;
            let foreign = mesh.pod("client").addr(8080).to_string();
            let peer = Peer::connect(mesh.pod("raw"), waypoint.addr(15008), Some(&credentials))?;
            ensure!(peer.request(connect_request(&foreign)?)? == Answer::Status(400));
            let mismatch = format!("ip mismatch: {} != {}", waypoint.ip4(), mesh.pod("client").ip4());
            logged(mesh, "n1", &[("error", &mismatch)])?;
            Ok(())
        },
    )
}

/// A PROXY header, version 2, over IPv4: source, destination, and the identity in the TLV 0xD0.
fn header(mut conn: &Conn) -> Result<(SocketAddr, SocketAddr, String)> {
    let mut head = [0; 16];
    conn.read_exact(&mut head)?;
    ensure!(&head[..12] == b"\r\n\r\n\0\r\nQUIT\n" && head[12..14] == [0x21, 0x11], "{head:02x?}");
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    conn.read_exact(&mut body)?;
    let end = |ip: &[u8], port: &[u8]| -> Result<SocketAddr> {
        let ip: [u8; 4] = ip.try_into()?;
        Ok((ip, u16::from_be_bytes(port.try_into()?)).into())
    };
    let (source, destination) = (end(&body[..4], &body[8..10])?, end(&body[4..8], &body[10..12])?);
    ensure!(body[12] == 0xD0 && usize::from(body[14]) == body.len() - 15, "{body:02x?}");
    Ok((source, destination, String::from_utf8(body[15..].to_vec())?))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn sandwich_waypoint_proxy_protocol_tells_the_waypoint_who_asks_and_for_what() -> Result<()> {
    let build = || captured_waypoint("applicationTunnel: {protocol: PROXY, port: 15088}");
    in_every_mode(build, |mesh| {
        let (server, waypoint, client) =
            (Server::echo(mesh.pod("server"), 8080)?, mesh.pod("waypoint"), mesh.pod("client"));
        let (ip, spiffe, vip) = (client.ip4(), client.spiffe(), SocketAddr::from((mesh.vip(BY_NAME), 80)));
        let (direct, netns) = (mesh.pod("server").addr(8080), waypoint.netns().clone());
        // At localhost alone, as a waypoint of its own would listen.
        let forwarding = Server::start(waypoint, 15088, move |conn| {
            ensure!(conn.local()?.ip().is_loopback(), "delivered to {}", conn.local()?);
            let (source, destination, identity) = header(&conn)?;
            ensure!(source.ip() == ip && identity == spiffe, "{source} {identity}");
            ensure!(destination == direct || destination == vip, "for {destination}");
            forwarder(&conn, &netns, direct)
        })?;
        ask(mesh, "client", direct)?;
        ask(mesh, "client", vip)?;
        forwarding.expect_finished(2, SOON)?;
        ensure!(server.peers().iter().all(|peer| peer.ip() == waypoint.ip4()), "{:?}", server.peers());
        // The header is none of the application's bytes.
        let labels = [("reporter", "destination"), ("destination_workload", "waypoint")];
        counted(mesh, "n1", &labels, 2.0)?;
        logged(mesh, "n2", &[("direction", "inbound"), ("src.identity", &waypoint.spiffe())])?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn service_loadbalancing_reaches_every_backend_and_one_per_connection() -> Result<()> {
    const SERVICE: &str = "pair.demo.svc.cluster.local";
    let build = || {
        Mesh::builder()
            .pod(PodSpec::mesh("client").on("n1"))
            .pod(PodSpec::mesh("one").on("n1").service(SERVICE, 80, 8080))
            .pod(PodSpec::mesh("two").on("n2").service(SERVICE, 80, 8081))
            .service_with(
                SERVICE,
                "loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: OnlyHealthy}",
            )
    };
    // Which backend is chance, and so are the lines of the log.
    ztunnel_tests::modes::in_every_mode_alone(build, |mesh| {
        let backends = [Server::echo(mesh.pod("one"), 8080)?, Server::echo(mesh.pod("two"), 8081)?];
        let vip = (mesh.vip(SERVICE), 80).into();
        ask(mesh, "client", vip)?;
        ensure!(backends.iter().map(|server| server.peers().len()).sum::<usize>() == 1);
        let service =
            [("reporter", "source"), ("destination_service", SERVICE), ("destination_service_name", "pair")];
        counted(mesh, "n1", &service, 1.0)?;
        for _ in 0..49 {
            ask(mesh, "client", vip)?;
        }
        counted(mesh, "n1", &service, 50.0)?;
        for (server, (node, name)) in backends.iter().zip([("n1", "one"), ("n2", "two")]) {
            let served = server.peers().len();
            ensure!((5..=45).contains(&served), "{name} served {served} of 50");
            #[expect(clippy::cast_precision_loss, reason = "fifty at most")]
            let served = served as f64;
            let labels = [
                ("reporter", "destination"),
                ("destination_workload", name),
                ("destination_service", SERVICE),
            ];
            counted(mesh, node, &labels, served)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn svc_hostname_port_and_svc_hostname_named_port_lead_to_the_pods_own_port() -> Result<()> {
    const SERVICE: &str = "named.demo.svc.cluster.local";
    let build = || {
        Mesh::builder()
            .pod(PodSpec::mesh("client").on("n1"))
            .pod(PodSpec::mesh("raw").on("n1").not_redirected().not_enrolled())
            .pod(PodSpec::mesh("server").on("n2").service(SERVICE, 80, 8080).named_port(SERVICE, 81, 8081))
    };
    in_every_mode(build, |mesh| {
        let (server, client) = (mesh.pod("server"), mesh.pod("raw"));
        let (numbered, named) = (Server::echo(server, 8080)?, Server::echo(server, 8081)?);
        let credentials = Authority::open(&mesh.ca_dir())?.issue(&client.spiffe())?;
        let connect = |authority: &str| {
            Peer::connect(client, server.addr(15008), Some(&credentials))?
                .request(connect_request(authority)?)
        };
        ensure!(connect(&format!("{SERVICE}:80"))? == Answer::Status(200));
        ensure!(connect(&format!("{SERVICE}:81"))? == Answer::Status(200));
        ensure!(connect(&format!("{SERVICE}:82"))? == Answer::Status(503));
        ensure!(connect("other.demo.svc.cluster.local:80")? == Answer::Status(503));
        wait::until("both ports to be reached", SOON, || {
            (numbered.peers().len(), named.peers().len()) == (1, 1)
        })?;
        let service = [("direction", "inbound"), ("dst.service", SERVICE), ("src.workload", "raw")];
        logged(mesh, "n2", &service)?;
        let error = format!("requested service {SERVICE}:82 found, but cannot resolve port");
        logged(mesh, "n2", &[("error", &error)])?;
        // The same through the service's address.
        ask(mesh, "client", (mesh.vip(SERVICE), 81).into())?;
        ensure!(named.peers().len() == 2);
        Ok(())
    })
}
