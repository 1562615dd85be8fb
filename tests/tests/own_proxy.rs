// SPDX-License-Identifier: Apache-2.0
//! ztunnel as a workload itself: its metrics are reached over HBONE, with mutual TLS and policies.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use ztunnel_core::xds::proto::workload::{TunnelProtocol, Workload, WorkloadType};
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone_with;
use ztunnel_tests::node::{ADMIN, STATS};
use ztunnel_tests::observe::Sniffer;
use ztunnel_tests::{Mesh, Node, PodSpec, http, wait};

const SOON: Duration = Duration::from_secs(10);
const SYSTEM: &str = "istio-system";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .env("SERVICE_ACCOUNT", "ztunnel")
        .pod(PodSpec::mesh("prometheus").on("n1"))
        .pod(PodSpec::mesh("nosy").on("n1"))
        .pod(PodSpec::mesh("neighbor").on("n2"))
}

/// The pod of a node's ztunnel.
fn ztunnel(node: &Node) -> Workload {
    let name = format!("ztunnel-{}", node.name());
    let std::net::IpAddr::V4(ip) = node.ip4() else { unreachable!("nodes have IPv4") };
    Workload {
        uid: describe::uid(SYSTEM, &name),
        namespace: SYSTEM.to_owned(),
        service_account: "ztunnel".to_owned(),
        workload_name: "ztunnel".to_owned(),
        canonical_name: "ztunnel".to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        node: node.name().to_owned(),
        cluster_id: "cluster1".to_owned(),
        addresses: vec![Bytes::copy_from_slice(&ip.octets())],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        name,
        ..Workload::default()
    }
}

fn control(mesh: &Mesh) -> Result<Istiod> {
    let istiod = Istiod::start(mesh)?;
    istiod.configure(mesh);
    let nosy = mesh.pod("nosy").spiffe().replace("spiffe://", "");
    istiod.ads().update(|resources| {
        describe::mesh(mesh, resources);
        mesh.nodes().for_each(|node| resources.workload(&ztunnel(node)));
        resources.policy(&describe::deny(SYSTEM, "not-everybody", &[&nosy]));
    });
    Ok(istiod)
}

fn scrape(mesh: &Mesh, from: &str, node: &str) -> Result<String> {
    let stream = mesh.pod(from).connect((mesh.node(node).ip4(), STATS).into())?;
    let answer = http::ask(stream, "GET", "/metrics")?;
    ensure!(answer.status == 200, "{}", answer.status);
    Ok(answer.body)
}

/// Whether anybody listens at the HBONE port of the node itself, seen from the other node.
fn listens(mesh: &Mesh, node: &str) -> Result<bool> {
    let to = (mesh.node(node).ip4(), 15008).into();
    let dialed = mesh.wire().run(|| TcpStream::connect_timeout(&to, SOON));
    match dialed {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn metrics_are_scraped_over_hbone_by_whom_the_policies_let_in() {
    // The page has counters of the fast path: its length is not the same in every mode.
    in_every_mode_alone_with(mesh, control, |mesh, istiod| {
        // Not before the mesh is known.
        let node = mesh.node("n2");
        node.terminate()?;
        istiod.pause();
        node.launch()?;
        wait::until("the admin server", SOON, || node.get(ADMIN, "/status").is_ok())?;
        ensure!(!listens(mesh, "n2")?, "listening before the policies are known");
        istiod.resume()?;
        node.wait_ready(SOON)?;
        ensure!(listens(mesh, "n2")?, "not listening afterwards");

        for name in ["n1", "n2"] {
            let sniffer = Sniffer::start(mesh.wire(), b"# HELP istio_build")?;
            let text = scrape(mesh, "prometheus", name).with_context(|| format!("ztunnel of {name}"))?;
            ensure!(sniffer.stop().sightings.is_empty(), "{name}: metrics crossed the wire in the clear");
            ensure!(text.contains("istio_build{component=\"ztunnel\""), "{text}");
            ensure!(scrape(mesh, "nosy", name).is_err(), "{name} let in whom the policy denies");
            let prometheus = mesh.pod("prometheus").spiffe();
            let labels = [
                ("reporter", "destination"),
                ("source_principal", prometheus.as_str()),
                ("destination_principal", "spiffe://cluster.local/ns/istio-system/sa/ztunnel"),
                ("destination_workload", "ztunnel"),
                ("connection_security_policy", "mutual_tls"),
            ];
            wait::until("the scrape in the metrics", SOON, || {
                let metrics = mesh.node(name).metrics();
                metrics.is_ok_and(|all| {
                    let closed = |labels: &[_]| all.sum("istio_tcp_connections_closed_total", labels);
                    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
                    (closed(&labels) - 1.0).abs() < 0.5 && (closed(&denied) - 1.0).abs() < 0.5
                })
            })?;
            let own = SocketAddr::new(mesh.node(name).ip4(), 15008).to_string();
            let authority = SocketAddr::new(mesh.node(name).ip4(), STATS).to_string();
            let line = [
                ("direction", "inbound"),
                ("src.workload", "prometheus"),
                ("src.identity", prometheus.as_str()),
                ("dst.addr", own.as_str()),
                ("dst.hbone_addr", authority.as_str()),
                ("dst.namespace", SYSTEM),
                ("dst.identity", "spiffe://cluster.local/ns/istio-system/sa/ztunnel"),
            ];
            wait::until("the scrape in the log", SOON, || {
                mesh.node(name).access_log().iter().any(|entry| entry.is(&line))
            })?;
            // It is none of the node agent's pods.
            let status = mesh.node(name).status()?;
            let pods = status["pods"].as_array().context("pods")?;
            ensure!(pods.iter().all(|pod| pod["namespace"] != SYSTEM), "{status}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn tunnels_to_ztunnel_drain_with_the_rest_and_without_its_names_there_are_none() {
    let mesh = Mesh::builder()
        .pod(PodSpec::mesh("prometheus").on("n1"))
        .pod(PodSpec::plain("plain").on("n2"))
        .ztunnels_in_the_mesh(&[])
        .start()
        .unwrap();
    let (node, client) = (mesh.node("n1"), mesh.pod("prometheus"));
    let own = SocketAddr::new(node.ip4(), 15008);
    let mut open = client.connect((node.ip4(), STATS).into()).unwrap();
    std::io::Write::write_all(&mut open, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait::until("the scrape to be served", SOON, || {
        let opened = [("reporter", "destination"), ("destination_workload", "ztunnel")];
        node.metrics().is_ok_and(|metrics| metrics.sum("istio_tcp_connections_opened_total", &opened) > 0.5)
    })
    .unwrap();
    node.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    let refused = || mesh.pod("plain").connect(own).is_err();
    wait::until("its port to be closed", SOON, refused).unwrap();
    assert!(node.wait_exit(SOON).unwrap().success());
    drop(open);
    // In part is not at all.
    node.unset_env("SERVICE_ACCOUNT");
    node.start().unwrap();
    assert!(refused(), "a listener for nobody");
    // A port that somebody else has ends the start.
    let node = mesh.node("n2");
    node.terminate().unwrap();
    let squatter = node.netns().run(|| std::net::TcpListener::bind(("::", 15008))).unwrap();
    node.launch().unwrap();
    assert_eq!(node.wait_exit(SOON).unwrap().code(), Some(1));
    let said = node.stderr();
    assert!(said.contains("failed to bind to address [::]:15008"), "{said}");
    drop(squatter);
    mesh.stop().unwrap();
}
