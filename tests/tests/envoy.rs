// SPDX-License-Identifier: Apache-2.0
//! A real Envoy at the other end: a sidecar that dials our pods, a sidecar that our pods dial, a waypoint between our
//! pods, a gateway between their networks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::envoy::{Envoy, config};
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
        counted(mesh, "n1", &labels, 2 * MANY, MANY)?;
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
