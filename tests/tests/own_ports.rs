// SPDX-License-Identifier: Apache-2.0
//! Applications that call ztunnel's own ports, by every address that might lead there: no loop, no service that is not
//! theirs, no hang, and no harm.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Pod, PodSpec};

const SOON: Duration = Duration::from_secs(5);
/// Outbound, inbound plaintext, inbound HBONE: in every pod.
const IN_PODS: [u16; 3] = [15001, 15006, 15008];
/// Admin, SOCKS5, DNS, where ztunnel itself is or where nobody listens.
const CLOSED: [u16; 3] = [15000, 15080, 15053];
/// Metrics and readiness: where ztunnel itself is they answer whoever speaks HTTP.
const PUBLIC: [u16; 2] = [15020, 15021];

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

/// Says something that no protocol knows, and gives what comes back up to the end.
fn answer(from: &Pod, to: SocketAddr) -> Result<Vec<u8>> {
    let conn = match from.dial(to) {
        Ok(conn) => conn.patience(SOON),
        Err(error) => {
            let refused =
                [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::HostUnreachable];
            ensure!(refused.contains(&error.kind()), "{to}: {error}");
            return Ok(Vec::new());
        }
    };
    let mut all = Vec::new();
    let ended = (&conn).write_all(b"hello there\r\n\r\n").and_then(|()| (&conn).read_to_end(&mut all));
    if let Err(error) = ended {
        ensure!(error.kind() != ErrorKind::TimedOut, "{} to {to}: it stays open", from.name());
    }
    Ok(all)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn no_call_to_our_own_ports_is_proxied_or_served() {
    in_every_mode_alone(mesh, |mesh| {
        let node = mesh.node("n1").ip4();
        let places = |port: u16| {
            let pods = ["client", "near", "far"].map(|name| mesh.pod(name));
            let by_pod = pods.into_iter().flat_map(move |pod| [pod.addr(port), pod.addr6(port)]);
            by_pod.chain([
                (Ipv4Addr::LOCALHOST, port).into(),
                (Ipv4Addr::UNSPECIFIED, port).into(),
                SocketAddr::from((node, port)),
            ])
        };
        for from in ["client", "stranger"].map(|name| mesh.pod(name)) {
            for to in IN_PODS.into_iter().chain(CLOSED).flat_map(places) {
                let answer = answer(from, to)?;
                // A TLS alert is an end, and no service.
                let alert = to.port() == 15008 && answer.len() <= 7 && answer.first() == Some(&21);
                ensure!(answer.is_empty() || alert, "{} to {to}: {answer:?}", from.name());
            }
            for to in PUBLIC.into_iter().flat_map(places) {
                let answer = answer(from, to)?;
                let refusal = answer.starts_with(b"HTTP/1.1 400");
                let public = to.ip() == node && refusal;
                ensure!(
                    answer.is_empty() || public,
                    "{} to {to}: {}",
                    from.name(),
                    String::from_utf8_lossy(&answer)
                );
            }
        }
        ensure!(mesh.nodes().all(|node| node.is_ready()), "a loop hurt a ztunnel");
        // Whoever is proxied into a loop is seen as a connection between proxies.
        for node in mesh.nodes() {
            let open = node.metrics()?.open_connections();
            ensure!(open < 0.5, "{}: {open} connections are left", node.name());
        }
        let _server = Server::echo(mesh.pod("far"), 8080)?;
        let conn = mesh.pod("client").dial(mesh.pod("far").addr(8080))?;
        ensure!(conn.ask(b"still here")? == b"still here");
        Ok(())
    })
    .unwrap();
}
