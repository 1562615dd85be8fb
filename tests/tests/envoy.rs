// SPDX-License-Identifier: Apache-2.0
//! A real Envoy at the other end: a sidecar that dials our pods, a sidecar that our pods dial, a waypoint between our
//! pods, a gateway between their networks.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ztunnel_tests::envoy::{Envoy, config};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::traffic::stream::{Sides, listen_first, speak_first};
use ztunnel_tests::{Mesh, Pod, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
const APP: u16 = 8080;
/// Enough to fill every window on the way.
const MANY: u64 = 6 << 20;

/// A pod that speaks HBONE by itself.
fn native(name: &str) -> PodSpec {
    PodSpec::mesh(name).not_enrolled().not_redirected()
}

/// Waits for a line of a node's access log.
fn logged(mesh: &Mesh, node: &str, fields: &[(&str, &str)]) -> Result<()> {
    wait::ok(&format!("a line with {fields:?}"), SOON, || {
        let lines = mesh.node(node).access_log();
        ensure!(lines.iter().any(|entry| entry.is(fields)), "{lines:#?}");
        Ok(())
    })
}

/// Waits for bytes in a node's metrics.
#[expect(clippy::cast_precision_loss, reason = "some megabytes")]
fn counted(mesh: &Mesh, node: &str, labels: &[(&str, &str)], sent: u64, received: u64) -> Result<()> {
    wait::ok(&format!("{sent} and {received} bytes with {labels:?}"), SOON, || {
        let metrics = mesh.node(node).metrics()?;
        for (name, expected) in
            [("istio_tcp_sent_bytes_total", sent), ("istio_tcp_received_bytes_total", received)]
        {
            let found = metrics.sum(name, labels);
            ensure!((found - expected as f64).abs() < 0.5, "{name}: {found}, not {expected}");
        }
        Ok(())
    })
}

/// What a client says to [`listener`], and hears.
fn sides() -> Sides {
    Sides::client(7, MANY, MANY / 2)
}

/// A server that listens to the end of what is said, then answers. The other way round Envoy would take the end of the
/// answer for the end of everything.
fn listener(pod: &Pod, port: u16) -> Result<Server> {
    Server::start(pod, port, |conn| listen_first(&conn, sides().reversed()))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_sidecar_dials_our_pod() {
    let build = || Mesh::builder().pod(PodSpec::mesh("server").on("n1")).pod(native("sidecar").on("n2"));
    in_every_mode(build, |mesh| {
        let (server, sidecar) = (mesh.pod("server"), mesh.pod("sidecar"));
        let app = listener(server, APP)?;
        let entry = SocketAddr::from(([127, 0, 0, 1], 9001));
        let baggage = [("baggage", "k8s.namespace.name=demo,k8s.deployment.name=sidecar")];
        let envoy = Envoy::start(mesh, sidecar, |files| {
            let listeners = vec![config::tcp_listener(entry, "app"), config::connect_originate(&baggage)];
            let clusters = vec![
                config::tunneled_cluster("app", &[server.addr(APP)]),
                config::connect_originate_cluster(files, &[server.spiffe()]),
            ];
            (listeners, clusters)
        })?;
        let conn = sidecar.dial(entry)?;
        speak_first(&conn, sides()).with_context(|| envoy.log())?;
        app.expect_finished(1, SOON)?;
        ensure!(app.peers().first().map(SocketAddr::ip) == Some(sidecar.ip4()), "{:?}", app.peers());
        let (to, identity) = (server.addr(APP).to_string(), sidecar.spiffe());
        let fields = [
            ("direction", "inbound"),
            ("src.identity", identity.as_str()),
            ("src.workload", "sidecar"),
            ("dst.hbone_addr", &to),
            ("dst.workload", "server"),
            ("bytes_recv", &MANY.to_string()),
            ("bytes_sent", &(MANY / 2).to_string()),
            ("error", ""),
        ];
        logged(mesh, "n1", &fields)?;
        let labels = [("reporter", "destination"), ("source_principal", &identity)];
        counted(mesh, "n1", &labels, MANY / 2, MANY)
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn our_pod_dials_a_sidecar() {
    let build = || Mesh::builder().pod(PodSpec::mesh("client").on("n1")).pod(native("sidecar").on("n2"));
    in_every_mode(build, |mesh| {
        let (client, sidecar) = (mesh.pod("client"), mesh.pod("sidecar"));
        let app = listener(sidecar, APP)?;
        let envoy = Envoy::start(mesh, sidecar, |files| {
            let listeners = vec![config::connect_terminate(files), config::main_internal_tcp("app")];
            let app = config::plain_cluster("app", SocketAddr::from(([127, 0, 0, 1], APP)));
            (listeners, vec![config::main_internal_cluster(), app])
        })?;
        let to = sidecar.addr(APP);
        for _ in 0..2 {
            speak_first(&client.dial(to)?, sides()).with_context(|| envoy.log())?;
        }
        app.expect_finished(2, SOON)?;
        for served in envoy.expect_served(2)? {
            ensure!(served.client == client.spiffe() && served.authority == to.to_string(), "{served:?}");
            ensure!(served.status == "200" && served.baggage.contains("k8s.pod.name=client"), "{served:?}");
            ensure!(served.forwarded.starts_with(&format!("for=\"{}:", client.ip4())), "{served:?}");
            ensure!(served.traceparent.len() == 55, "{served:?}");
        }
        let (hop, authority) = (sidecar.addr(15008).to_string(), to.to_string());
        let fields = [
            ("direction", "outbound"),
            ("src.workload", "client"),
            ("dst.addr", hop.as_str()),
            ("dst.hbone_addr", &authority),
            ("dst.workload", "sidecar"),
            ("dst.identity", &sidecar.spiffe()),
            ("bytes_sent", &MANY.to_string()),
            ("bytes_recv", &(MANY / 2).to_string()),
            ("error", ""),
        ];
        logged(mesh, "n1", &fields)?;
        let labels = [("reporter", "source"), ("destination_principal", &sidecar.spiffe())];
        counted(mesh, "n1", &labels, MANY, 2 * MANY)?;
        // Nobody listens there: Envoy says so, and the application hears it.
        drop(app);
        let conn = client.dial(to)?;
        ensure!(conn.ends_within(SOON), "a connection that Envoy cannot carry stays open");
        wait::until("every connection to be closed", SOON, || {
            mesh.node("n1").metrics().is_ok_and(|metrics| metrics.open_connections().abs() < 0.5)
        })
    })
    .unwrap();
}

const SHOP: &str = "shop.demo.svc.cluster.local";

/// Two versions of a service behind a waypoint.
fn behind_a_waypoint() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(native("waypoint").on("n2"))
        .pod(PodSpec::mesh("v1").on("n2").service(SHOP, 80, APP))
        .pod(PodSpec::mesh("v2").on("n1").service(SHOP, 80, APP))
        .service_with(SHOP, "waypoint: {destination: /$ip(waypoint), hboneMtlsPort: 15008}")
}

/// One HTTP/1.1 request with one more header; the body of the answer.
fn get(pod: &Pod, to: SocketAddr, header: &str) -> Result<String> {
    let conn = pod.dial(to)?;
    let mut app = &conn;
    app.write_all(format!("GET / HTTP/1.1\r\nHost: shop\r\n{header}\r\n\r\n").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        app.read_exact(&mut byte).with_context(|| String::from_utf8_lossy(&head).into_owned())?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 ") && head.contains("content-length: 2"), "{head}");
    let mut body = [0; 2];
    app.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// A web server that says its name, on connections that stay open.
fn web(pod: &Pod, name: &'static str) -> Result<Server> {
    Server::start(pod, APP, move |conn| {
        let mut request = Vec::new();
        let mut byte = [0];
        while (&conn).read(&mut byte)? == 1 {
            request.push(byte[0]);
            if request.ends_with(b"\r\n\r\n") {
                let length = name.len();
                (&conn).write_all(
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}").as_bytes(),
                )?;
                request.clear();
            }
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
#[expect(clippy::cast_precision_loss, reason = "a few hundred requests")]
fn a_waypoint_between_our_pods_splits_and_matches() {
    const REQUESTS: usize = 200;
    // How many connections the waypoint opens for its requests is its own affair.
    in_every_mode_alone(behind_a_waypoint, |mesh| {
        let (client, waypoint) = (mesh.pod("client"), mesh.pod("waypoint"));
        let (v1, v2) = (mesh.pod("v1"), mesh.pod("v2"));
        let apps = [web(v1, "v1")?, web(v2, "v2")?];
        let baggage = [("baggage", "k8s.namespace.name=demo,k8s.deployment.name=waypoint")];
        let envoy = Envoy::start(mesh, waypoint, |files| {
            let routes = [
                config::route(Some(("x-version", "2")), &[("v2", 1)]),
                config::route(None, &[("v1", 90), ("v2", 10)]),
            ];
            let listeners = vec![
                config::connect_terminate(files),
                config::main_internal_http(&routes),
                config::connect_originate(&baggage),
            ];
            let clusters = vec![
                config::main_internal_cluster(),
                config::tunneled_cluster("v1", &[v1.addr(APP)]),
                config::tunneled_cluster("v2", &[v2.addr(APP)]),
                config::connect_originate_cluster(files, &[v1.spiffe(), v2.spiffe()]),
            ];
            (listeners, clusters)
        })?;
        let vip = SocketAddr::from((mesh.vip(SHOP), 80));
        let mut answers = [0, 0];
        for _ in 0..REQUESTS {
            match get(client, vip, "x: y").with_context(|| envoy.log())?.as_str() {
                "v1" => answers[0] += 1,
                "v2" => answers[1] += 1,
                other => bail!("an answer of nobody: {other}"),
            }
        }
        // Twenty are expected of v2; beyond three and a half sigma in either direction is no split of ten percent.
        ensure!((5..=35).contains(&answers[1]), "90/10 became {answers:?}");
        for _ in 0..10 {
            ensure!(get(client, vip, "x-version: 2")? == "v2", "the header was not matched");
        }
        // Envoy ends the stream by force then; what it said before must have arrived.
        ensure!(get(client, vip, "x-version: 2\r\nConnection: close")? == "v2");
        // Who speaks at each hop, as both ends of it say.
        let (authority, hop) = (vip.to_string(), waypoint.addr(15008).to_string());
        for served in envoy.expect_served(REQUESTS + 11)? {
            ensure!(served.client == client.spiffe() && served.authority == authority, "{served:?}");
            ensure!(served.baggage.contains("k8s.pod.name=client"), "{served:?}");
            ensure!(served.forwarded.ends_with(&format!(";host={SHOP}")), "{served:?}");
        }
        let fields = [
            ("direction", "outbound"),
            ("src.workload", "client"),
            ("dst.service", SHOP),
            ("dst.addr", &hop),
            ("dst.hbone_addr", &authority),
            ("dst.identity", &waypoint.spiffe()),
            ("error", ""),
        ];
        logged(mesh, "n1", &fields)?;
        let labels = [("reporter", "source"), ("destination_principal", &waypoint.spiffe())];
        wait::ok("every request in the metrics", SOON, || {
            let opened = mesh.node("n1").metrics()?.sum("istio_tcp_connections_opened_total", &labels);
            ensure!((opened - (REQUESTS + 11) as f64).abs() < 0.5, "{opened} connections");
            Ok(())
        })?;
        drop(envoy);
        for (pod, node) in [(v1, "n2"), (v2, "n1")] {
            let (to, identity) = (pod.addr(APP).to_string(), waypoint.spiffe());
            let fields = [
                ("direction", "inbound"),
                ("src.workload", "waypoint"),
                ("src.identity", &identity),
                ("dst.workload", pod.name()),
                ("dst.hbone_addr", &to),
            ];
            logged(mesh, node, &fields)?;
        }
        ensure!(apps.iter().all(|app| app.peers().iter().all(|peer| peer.ip() == waypoint.ip4())));
        Ok(())
    })
    .unwrap();
}

const ABROAD: &str = "abroad.demo.svc.cluster.local";

/// A server in another network, behind a gateway.
fn behind_a_gateway() -> MeshBuilder {
    Mesh::builder()
        .node_env("n2", "NETWORK", "net2")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(native("gateway").on("n2").with("network: net2"))
        .pod(
            PodSpec::mesh("server")
                .on("n2")
                .service(ABROAD, 80, APP)
                .with("network: net2")
                .with("networkGateway: {destination: net2/$ip(gateway), hboneMtlsPort: 15008}"),
        )
        .service_with(ABROAD, "subjectAltNames: ['spiffe://cluster.local/ns/demo/sa/server']")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_gateway_leads_to_our_pod_in_another_network() {
    in_every_mode(behind_a_gateway, |mesh| {
        let (client, gateway, server) = (mesh.pod("client"), mesh.pod("gateway"), mesh.pod("server"));
        let app = listener(server, APP)?;
        let envoy = Envoy::start(mesh, gateway, |files| {
            // The inner tunnel passes through as it is.
            let listeners = vec![config::connect_terminate(files), config::main_internal_tcp("inner")];
            let inner = config::plain_cluster("inner", server.addr(15008));
            (listeners, vec![config::main_internal_cluster(), inner])
        })?;
        let vip = SocketAddr::from((mesh.vip(ABROAD), 80));
        speak_first(&client.dial(vip)?, sides()).with_context(|| envoy.log())?;
        app.expect_finished(1, SOON)?;
        let (hop, authority, identity) =
            (gateway.addr(15008).to_string(), format!("{ABROAD}:80"), client.spiffe());
        let fields = [
            ("direction", "outbound"),
            ("dst.service", ABROAD),
            ("dst.addr", &hop),
            ("dst.hbone_addr", &authority),
            ("dst.workload", "server"),
            ("dst.identity", &server.spiffe()),
            ("bytes_sent", &MANY.to_string()),
            ("bytes_recv", &(MANY / 2).to_string()),
            ("error", ""),
        ];
        logged(mesh, "n1", &fields)?;
        let fields = [
            ("direction", "inbound"),
            ("src.identity", identity.as_str()),
            ("src.workload", "client"),
            ("dst.workload", "server"),
            ("dst.service", ABROAD),
            ("bytes_recv", &MANY.to_string()),
            ("bytes_sent", &(MANY / 2).to_string()),
            ("error", ""),
        ];
        logged(mesh, "n2", &fields)?;
        let labels = [("reporter", "destination"), ("source_principal", &identity)];
        counted(mesh, "n2", &labels, MANY / 2, MANY)?;
        drop(envoy);
        Ok(())
    })
    .unwrap();
}
