// SPDX-License-Identifier: Apache-2.0
//! A dedicated proxy: one workload, its own namespace, no node agent.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::time::Duration;

use ztunnel_tests::istiod::Istiod;
use ztunnel_tests::modes::chosen;
use ztunnel_tests::node::{PATIENCE, Successor};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Mode, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(15);

/// A pod that is served by a proxy of its own, one on another node that is served by that node's, and one by nobody.
fn mesh(pod: PodSpec, mode: Mode) -> Mesh {
    let other = PodSpec::mesh("other").on("n2");
    let builder =
        Mesh::builder().mode(mode).pod(pod.on("n1")).pod(other).pod(PodSpec::plain("plain").on("n2"));
    let mesh = builder.build().unwrap();
    dedicate(mesh.node("n1"));
    mesh
}

fn dedicate(node: &Node) {
    dedicate_to(node, "single");
}

fn dedicate_to(node: &Node, pod: &str) {
    node.set_env("PROXY_MODE", "dedicated");
    node.set_env("PROXY_WORKLOAD_INFO", &format!("demo/{pod}/{pod}"));
    // Nothing listens there: a dedicated proxy has no agent.
    node.set_env("INPOD_UDS", "/nowhere/agent.sock");
}

fn answers(mesh: &Mesh, from: &str, to: &str) -> bool {
    let asked = mesh.pod(from).dial(mesh.pod(to).addr(8080)).and_then(|conn| conn.ask(b"hello"));
    asked.is_ok_and(|answer| answer == b"hello")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn both_directions_of_a_captured_workload_go_through_its_own_proxy() {
    for mode in chosen(&Mode::EVERY).unwrap() {
        let mesh = mesh(PodSpec::mesh("single"), mode);
        // The rules in the pod know our connections by this mark; without it a dedicated proxy marks none.
        mesh.node("n1").set_env("PACKET_MARK", "1337");
        mesh.node("n2").start().unwrap();
        let proxy = mesh.node("n1").successor(mesh.pod("single").netns()).unwrap();
        let servers = ["single", "other", "plain"].map(|name| Server::echo(mesh.pod(name), 8080).unwrap());
        assert!(answers(&mesh, "single", "other") && answers(&mesh, "other", "single"), "{mode}");
        assert!(
            answers(&mesh, "single", "plain") && answers(&mesh, "plain", "single"),
            "{mode}, in the clear"
        );
        let log = || mesh.node("n2").access_log();
        let inbound = [("direction", "inbound"), ("src.identity", &mesh.pod("single").spiffe())];
        wait::until("its identity at the other end", SOON, || log().iter().any(|entry| entry.is(&inbound)))
            .unwrap();
        let single = mesh.pod("single").addr(15008).to_string();
        let outbound = [("direction", "outbound"), ("dst.addr", single.as_str())];
        wait::until("a tunnel to it", SOON, || log().iter().any(|entry| entry.is(&outbound))).unwrap();
        drop((servers, proxy));
        mesh.stop().unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_dedicated_proxy_asks_for_its_own_certificate() {
    let mesh = mesh(PodSpec::mesh("single").not_redirected(), Mode::Off);
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.certify(&mesh);
    // Without the rules in the pod, an application's answers to a foreign address would not come back to us.
    mesh.node("n1").set_env("ENABLE_ORIG_SRC", "false");
    // The way from the authority to the pod.
    mesh.wire().ip("route add 10.70.1.0/24 via 10.71.0.1\n").unwrap();
    mesh.node("n2").launch().unwrap();
    mesh.node("n2").wait_ready(PATIENCE).unwrap();
    let proxy = mesh.node("n1").successor(mesh.pod("single").netns()).unwrap();
    let server = Server::echo(mesh.pod("single"), 8080).unwrap();
    assert!(answers(&mesh, "other", "single"));
    let own = mesh.pod("single").spiffe();
    let seen = istiod.ca().seen();
    let own: Vec<_> = seen.iter().filter(|seen| seen.is_for(&own)).collect();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].impersonated, None, "it speaks for nobody else");
    assert!(seen.iter().any(|seen| seen.impersonated.is_some()), "the node's proxy does");
    drop((server, proxy));
    mesh.stop().unwrap();
}

/// Waits until a proxy has counted and logged one echo of eleven bytes, answered double, between two pods.
fn counted(proxy: &Successor, direction: &str, (from, to): (&str, &str), identities: (&str, &str)) {
    let (reporter, sent, received) =
        if direction == "outbound" { ("source", "11", "22") } else { ("destination", "22", "11") };
    let labels = [("reporter", reporter), ("source_workload", from), ("destination_workload", to)];
    wait::until("the connection in the metrics", SOON, || {
        let Ok(metrics) = proxy.metrics() else { return false };
        let sum = |name: &str| metrics.sum(&format!("istio_tcp_{name}_total"), &labels);
        let found = ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"].map(sum);
        found.iter().zip([1.0, 1.0, 11.0, 22.0]).all(|(found, wanted)| (found - wanted).abs() < 0.5)
    })
    .unwrap();
    let line = [
        ("direction", direction),
        ("src.workload", from),
        ("src.identity", identities.0),
        ("dst.workload", to),
        ("dst.identity", identities.1),
        ("bytes_sent", sent),
        ("bytes_recv", received),
        ("error", ""),
    ];
    wait::until("its line in the log", SOON, || {
        proxy.access_log().iter().filter(|entry| entry.is(&line)).count() == 1
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_echo_is_counted_and_logged_alike_between_dedicated_proxies_and_without_one() {
    for mode in chosen(&Mode::EVERY).unwrap() {
        let pods = ["single", "other"];
        let mesh = Mesh::builder()
            .mode(mode)
            .env("PACKET_MARK", "1337")
            .pod(PodSpec::mesh(pods[0]).on("n1"))
            .pod(PodSpec::mesh(pods[1]).on("n2"))
            .pod(PodSpec::plain("plain").on("n2"))
            .build()
            .unwrap();
        let [single, other] = pods.map(|pod| {
            let node = mesh.node(mesh.pod(pod).node_name());
            dedicate_to(node, pod);
            node.successor(mesh.pod(pod).netns()).unwrap()
        });
        if mode != Mode::Off {
            assert!(single.stdout().contains(&format!("fast path {mode}: ")), "{}", single.stdout());
        }
        let servers = ["single", "other", "plain"].map(|name| {
            let double = |conn: ztunnel_tests::traffic::Conn| {
                let mut hello = [0; 11];
                (&conn).read_exact(&mut hello)?;
                Ok((&conn).write_all(&[hello, hello].concat())?)
            };
            Server::start(mesh.pod(name), 8080, double).unwrap()
        });
        let echo = |from: &str, to: &str| {
            let conn = mesh.pod(from).dial(mesh.pod(to).addr(8080)).unwrap();
            (&conn).write_all(b"hello world").unwrap();
            assert_eq!(conn.read_all().unwrap(), b"hello worldhello world", "{mode}: {from} to {to}");
        };
        let identities = pods.map(|pod| mesh.pod(pod).spiffe());
        let both = (identities[0].as_str(), identities[1].as_str());
        echo("single", "other");
        counted(&single, "outbound", ("single", "other"), both);
        counted(&other, "inbound", ("single", "other"), both);
        echo("single", "plain");
        counted(&single, "outbound", ("single", "plain"), ("", ""));
        echo("plain", "single");
        counted(&single, "inbound", ("plain", "single"), ("", ""));
        drop((servers, single, other));
        mesh.stop().unwrap();
    }
}
