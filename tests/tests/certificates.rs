// SPDX-License-Identifier: Apache-2.0
//! Certificates from an authority over gRPC: obtained, renewed, refused, revoked, and gone with their pods.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use serde_json::Value;
use ztunnel_tests::istiod::Istiod;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::node::{ADMIN, PATIENCE};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(15);

/// A mesh whose ztunnels take certificates from an istiod, and are not started yet.
fn build(builder: MeshBuilder) -> (Mesh, Istiod) {
    let mesh = builder.build().unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.certify(&mesh);
    (mesh, istiod)
}

fn start(mesh: &Mesh) {
    mesh.nodes().for_each(|node| node.launch().unwrap());
    mesh.nodes().for_each(|node| node.wait_ready(PATIENCE).unwrap());
}

/// Two pods on one node and one on another.
fn three() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("a").on("n1"))
        .pod(PodSpec::mesh("b").on("n1"))
        .pod(PodSpec::mesh("c").on("n2"))
}

/// The certificates that a node has, as its config dump shows them.
fn certificates(node: &Node) -> Vec<Value> {
    let dump = node.get(ADMIN, "/config_dump").unwrap();
    assert!(!dump.body.contains("PRIVATE"), "a key in the dump");
    let dump: Value = serde_json::from_str(&dump.body).unwrap();
    dump["certificates"].as_array().unwrap().clone()
}

/// What a node says of one identity.
fn state(node: &Node, identity: &str) -> String {
    let all = certificates(node);
    let found = all.iter().find(|certificate| certificate["identity"] == identity);
    found.map_or("none", |certificate| certificate["state"].as_str().unwrap()).to_owned()
}

/// Asks the pod's server from another pod; true if it answers.
fn answers(mesh: &Mesh, from: &str, to: &str) -> bool {
    let asked = mesh.pod(from).dial(mesh.pod(to).addr(8080)).and_then(|conn| conn.ask(b"hello"));
    asked.is_ok_and(|answer| answer == b"hello")
}

/// Waits until a line of the access log of `node` has `text` in its error.
fn wait_refused(node: &Node, text: &str) {
    let logged = || node.access_log().iter().any(|entry| entry.get("error").contains(text));
    wait::until(&format!("`{text}` in the access log"), SOON, logged).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn certificates_come_from_the_authority_and_the_keys_stay() {
    let (mesh, istiod) = build(three().env("SECRET_TTL", "2h").env("CA_HEADER_X_Team", "mesh"));
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert!(answers(&mesh, "a", "c") && answers(&mesh, "b", "c"));
    let seen = istiod.ca().seen();
    for pod in ["a", "b", "c"] {
        let identity = mesh.pod(pod).spiffe();
        let requests: Vec<_> = seen.iter().filter(|seen| seen.is_for(&identity)).collect();
        assert_eq!(requests.len(), 1, "{pod}: one request, however many workers and connections");
        assert_eq!(requests[0].requested, Some(identity));
        assert_eq!(requests[0].validity, 7200);
        let header = |name| requests[0].metadata.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("authorization"), Some("Bearer a-token"));
        assert_eq!(header("clusterid"), Some("Kubernetes"));
        assert_eq!(header("x_team"), Some("mesh"));
    }
    let node = mesh.node("n2");
    let shown = certificates(node);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0]["state"], "Available");
    let serial = seen.iter().find(|seen| seen.is_for(&mesh.pod("c").spiffe())).unwrap().serial.unwrap();
    assert_eq!(shown[0]["certChain"][0]["serialNumber"], serial.to_string());
    assert_eq!(shown[0]["rootCerts"].as_array().unwrap().len(), 1);
    assert!(!node.stdout().contains("PRIVATE") && !node.stdout().contains("a-token"), "a secret in the log");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_authority_that_is_down_at_start_is_found_when_it_is_up() {
    let (mesh, istiod) = build(three());
    istiod.pause();
    // The token and the root may come late as well.
    let (root, token) = (istiod.root().to_owned(), istiod.token().to_owned());
    let files = [&root, &token].map(|path| std::fs::read(path).unwrap());
    for path in [&root, &token] {
        std::fs::remove_file(path).unwrap();
    }
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert!(!answers(&mesh, "a", "c"), "without a certificate");
    wait_refused(mesh.node("n1"), "no roots of trust for the control plane in");
    std::fs::write(&root, &files[0]).unwrap();
    wait_refused_after_retry(&mesh, &token.to_string_lossy());
    std::fs::write(&token, &files[1]).unwrap();
    wait_refused_after_retry(&mesh, "TCP to 10.71.0.250:15012");
    istiod.resume().unwrap();
    wait::until("traffic", Duration::from_secs(60), || answers(&mesh, "a", "c")).unwrap();
    drop(server);
    mesh.stop().unwrap();
}

/// Asks until the reason for which there is no certificate is another one.
fn wait_refused_after_retry(mesh: &Mesh, text: &str) {
    let refused = || {
        assert!(!answers(mesh, "a", "c"), "without a certificate");
        mesh.node("n1").access_log().iter().any(|entry| entry.get("error").contains(text))
    };
    wait::until(&format!("`{text}` as the reason"), Duration::from_secs(60), refused).unwrap();
}
