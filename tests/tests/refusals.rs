// SPDX-License-Identifier: Apache-2.0
//! What a client sees when it does not get through: an end at once, never a hang and never half a service; and what the
//! log says of it.

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone_with;
use ztunnel_tests::observe::AccessEntry;
use ztunnel_tests::peer::{Answer, Authority, Peer, connect_request};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);
/// No refusal of which we know at once may take longer.
const QUICK: Duration = Duration::from_secs(2);
const WEB: &str = "web.demo.svc.cluster.local";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("server").on("n1").service(WEB, 80, 8080))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::mesh("alien").on("n2").trust_domain("elsewhere"))
        .pod(PodSpec::unknown("attacker").on("n2"))
}

fn control(mesh: &Mesh) -> Result<Istiod> {
    let istiod = Istiod::start(mesh)?;
    istiod.configure(mesh);
    istiod.ads().update(|resources| {
        describe::mesh(mesh, resources);
        resources.policy(&describe::deny("demo", "not-eve", &["cluster.local/ns/demo/sa/eve"]));
    });
    Ok(istiod)
}

/// How a connection ends on which nothing can come: by a reset, or before it stands.
fn refused(mesh: &Mesh, from: &str, to: SocketAddr) -> Result<()> {
    let started = Instant::now();
    let ended = mesh.pod(from).dial(to).and_then(|conn| conn.ask(b"is anybody there?"));
    let error = ended.err().with_context(|| format!("{from} got an answer from {to}"))?;
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
    ensure!(kinds.contains(&error.kind()), "{from} to {to}: {error}");
    ensure!(started.elapsed() < QUICK, "{from} to {to}: after {:?}", started.elapsed());
    Ok(())
}

/// Waits for a line with this direction whose error has `text`.
fn logged(node: &Node, direction: &str, text: &str) -> Result<()> {
    let found =
        |entry: &AccessEntry| entry.is(&[("direction", direction)]) && entry.get("error").contains(text);
    wait::until(&format!("`{text}` in the log"), SOON, || node.access_log().iter().any(found))
        .with_context(|| format!("{:?}", node.access_log()))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn whoever_does_not_get_through_learns_it_at_once() -> Result<()> {
    in_every_mode_alone_with(mesh, control, |mesh, istiod| {
        let (n1, n2, pod) = (mesh.node("n1"), mesh.node("n2"), mesh.pod("server"));
        let server = Server::echo(pod, 8080)?;
        let to = pod.addr(8080);

        // Another trust domain: the server's side refuses the certificate.
        refused(mesh, "alien", to)?;
        logged(n1, "inbound", "tls handshake error")?;
        // A policy, towards a peer that shows what it is answered.
        let eve = Authority::open(&mesh.ca_dir())?.issue("spiffe://cluster.local/ns/demo/sa/eve")?;
        let peer = Peer::connect(mesh.pod("attacker"), pod.addr(15008), Some(&eve))?;
        ensure!(peer.request(connect_request(&to.to_string())?)? == Answer::Status(401));
        logged(
            n1,
            "inbound",
            "connection closed due to policy rejection: explicitly denied by: demo/not-eve",
        )?;
        ensure!(server.peers().is_empty(), "the application was reached");

        // The node agent takes the pod away: open connections break, new ones do not hang.
        let open: Vec<Conn> =
            ["near", "far"].into_iter().map(|from| mesh.pod(from).dial(to)).collect::<Result<_, _>>()?;
        for conn in &open {
            ensure!(conn.ask(b"before")? == b"before");
        }
        n1.agent().delete(&pod.uid())?;
        for conn in open {
            let ended = (&conn.patience(QUICK)).read(&mut [0]).map_err(|error| error.kind());
            ensure!(ended == Err(ErrorKind::ConnectionReset), "{ended:?}");
        }
        // Each worker closes its own listener, in the background.
        wait::ok("closed ports", SOON, || refused(mesh, "far", to))?;
        refused(mesh, "near", to)?;
        logged(n2, "outbound", "connection failed: Connection refused")?;
        n1.agent().add(pod.enrolled())?;
        ensure!(mesh.pod("far").dial(to)?.ask(b"after")? == b"after");

        // A service that nobody is an endpoint of.
        istiod.ads().update(|all| all.remove_address(&describe::uid("demo", "server")));
        istiod.ads().wait_settled(2, SOON)?;
        let vip = SocketAddr::from((mesh.vip(WEB), 80));
        refused(mesh, "near", vip)?;
        refused(mesh, "far", vip)?;
        logged(n2, "outbound", &format!("no healthy upstream: {vip}"))
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_application_that_breaks_off_is_never_asked_twice() -> Result<()> {
    in_every_mode_alone_with(mesh, control, |mesh, _istiod| {
        let server = Server::start(mesh.pod("server"), 8080, |conn| {
            let mut half = [0; 4];
            (&conn).read_exact(&mut half)?;
            Ok(conn.reset()?)
        })?;
        for round in 1..=10 {
            for from in ["near", "far"] {
                refused(mesh, from, mesh.pod("server").addr(8080))?;
            }
            let seen = server.peers().len();
            ensure!(seen == 2 * round, "{seen} connections in round {round}");
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_peer_that_is_silent_is_given_up_after_ten_seconds() -> Result<()> {
    // In the mesh by name only: nobody serves these pods.
    let nobody = |name| PodSpec::mesh(name).on("n2").not_redirected().not_enrolled();
    let mesh = Mesh::builder().pod(PodSpec::mesh("client").on("n1")).pod(nobody("mute")).pod(nobody("dark"));
    let mesh = mesh.start()?;
    // One takes the connection and says nothing, the other is behind a wall.
    let listener = mesh.pod("mute").listen(15008)?;
    let wall = "*filter\n-A INPUT -p tcp --dport 15008 -j DROP\nCOMMIT\n";
    mesh.pod("dark").netns().feed("iptables-restore", &["--noflush"], wall)?;
    let started = Instant::now();
    let dial = |name: &str| mesh.pod("client").dial(mesh.pod(name).addr(8080));
    let waiting = [dial("mute")?, dial("dark")?];
    let (_held, _) = listener.accept()?;
    for conn in waiting {
        ensure!(conn.ends_within(Duration::from_secs(13)), "still waiting after {:?}", started.elapsed());
    }
    ensure!(started.elapsed() > Duration::from_secs(9), "given up after {:?}", started.elapsed());
    let node = mesh.node("n1");
    logged(node, "outbound", "io error: TLS handshake: no answer in time")?;
    let text =
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed";
    logged(node, "outbound", text)?;
    let flag = [("response_flags", "NETWORK_POLICY")];
    let closed = node.metrics()?.sum("istio_tcp_connections_closed_total", &flag);
    ensure!((closed - 1.0).abs() < 0.5, "{closed}");
    mesh.stop()
}
