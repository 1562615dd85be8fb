// SPDX-License-Identifier: Apache-2.0
//! A dedicated proxy: one workload, its own namespace, no node agent.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use ztunnel_tests::istiod::Istiod;
use ztunnel_tests::modes::chosen;
use ztunnel_tests::node::PATIENCE;
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
    node.set_env("PROXY_MODE", "dedicated");
    node.set_env("PROXY_WORKLOAD_INFO", "demo/single/single");
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
