// SPDX-License-Identifier: Apache-2.0
//! Applications that call ztunnel's own ports, by every address that might lead there: no loop, no service that is not
//! theirs, no hang, and no harm. Source: data-plane contract, section 2.8.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Pod, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
/// All that a ztunnel may listen on, wherever.
const PORTS: [u16; 8] = [15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080];

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody listens.
    Refused,
    /// Accepted, and ended without an answer.
    Closed,
    /// A side door says that this is not HTTP.
    BadRequest,
}
use Fate::{BadRequest, Closed, Refused};

/// Calls, says something that no protocol knows, and waits for the end.
fn call(client: &Pod, to: SocketAddr) -> Result<Fate> {
    let conn = match client.dial(to) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Refused),
        // Accepted and reset before the caller looked.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Closed),
        other => other?.patience(SOON),
    };
    let mut answer = Vec::new();
    // Whoever has closed already may reset what comes now.
    (&conn).write_all(b"hello there\r\n\r\n").ok();
    if let Err(error) = (&conn).take(4096).read_to_end(&mut answer) {
        ensure!(error.kind() != ErrorKind::TimedOut, "neither an answer nor an end");
    }
    // RFC 8446, section 6: a TLS record of type alert, which is an end and no service.
    let alert = to.port() == 15008 && answer.starts_with(&[0x15, 0x03]);
    match answer.as_slice() {
        [] => Ok(Closed),
        _ if alert => Ok(Closed),
        text if text.starts_with(b"HTTP/1.1 400 ") => Ok(BadRequest),
        other => bail!("served: {:?}", String::from_utf8_lossy(other)),
    }
}

/// Both addresses of where a call goes, and what it comes to at each port.
type Row = (&'static str, &'static str, fn(&Mesh) -> [IpAddr; 2], fn(u16) -> Fate);

fn own(mesh: &Mesh, name: &str) -> [IpAddr; 2] {
    [mesh.pod(name).ip4(), mesh.pod(name).ip6()]
}

/// Not redirected: what listens in the pod is reached, which is our listeners.
fn here(port: u16) -> Fate {
    if matches!(port, 15001 | 15006 | 15008) { Closed } else { Refused }
}

/// A captured pod's call is accepted by our listener, whatever is behind it. Two doors of ztunnel speak HTTP.
fn through(port: u16) -> Fate {
    if matches!(port, 15020 | 15021) { BadRequest } else { Closed }
}

/// The same without anybody between: ztunnel is reached itself.
fn itself(port: u16) -> Fate {
    if matches!(port, 15020 | 15021) { BadRequest } else { Refused }
}

const TABLE: [Row; 8] = [
    ("client", "its own address", |mesh| own(mesh, "client"), here),
    ("client", "localhost", |_| [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], here),
    ("client", "no address", |_| [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()], here),
    ("client", "ztunnel", |mesh| [mesh.node("n1").ip4(), mesh.node("n1").ip6()], through),
    ("client", "a neighbor", |mesh| own(mesh, "near"), |_| Closed),
    ("client", "a pod of another node", |mesh| own(mesh, "far"), |_| Closed),
    ("stranger", "a captured pod", |mesh| own(mesh, "client"), |_| Closed),
    ("stranger", "ztunnel", |mesh| [mesh.node("n1").ip4(), mesh.node("n1").ip6()], itself),
];

/// Whether there are tunnels to ztunnel itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ztunnel {
    Unknown,
    Workload,
}

/// Makes every call.
fn calls(mesh: &Mesh, ztunnel: Ztunnel) -> Result<()> {
    let mut made = 0_u16;
    for (from, what, addresses, expected) in TABLE {
        for ip in addresses(mesh) {
            for port in PORTS {
                let to = SocketAddr::new(ip, port);
                let fate = call(mesh.pod(from), to).with_context(|| format!("{from} to {what}, {to}"))?;
                let expected = match (from, what, port, ztunnel) {
                    ("stranger", "ztunnel", 15008, Ztunnel::Workload) => Closed,
                    _ => expected(port),
                };
                ensure!(fate == expected, "{from} to {what}, {to}: {fate:?}, not {expected:?}");
                made += 1;
            }
        }
    }
    // Per family: 15001 and 15006 of its own, of localhost, of no address, three of the neighbor, two that the stranger
    // calls; three of ztunnel, where it is a workload. At the other node the three of that pod.
    let loops = [2 * (2 + 2 + 2 + 3 + 2 + if ztunnel == Ztunnel::Workload { 3 } else { 0 }), 2 * 3];
    for (node, loops) in ["n1", "n2"].into_iter().zip(loops) {
        let node = mesh.node(node);
        ensure!(node.is_ready(), "a loop hurt {}", node.name());
        let metrics = node.metrics()?;
        // Whoever is proxied into a loop is seen as a connection between proxies.
        for reporter in ["source", "destination"] {
            let opened = metrics.sum("istio_tcp_connections_opened_total", &[("reporter", reporter)]);
            ensure!(opened <= f64::from(made), "{reporter}: {opened} connections for {made} calls");
        }
        wait::ok("every loop to be refused, once", SOON, || {
            let lines = node.access_log();
            let refused =
                lines.iter().filter(|line| line.get("error") == "attempted recursive call to ourselves");
            let refused = refused.count();
            ensure!(refused == loops, "{}: {refused}, not {loops}: {lines:#?}", node.name());
            Ok(())
        })?;
    }
    let _server = Server::echo(mesh.pod("far"), 8080)?;
    let conn = mesh.pod("client").dial(mesh.pod("far").addr(8080))?;
    ensure!(conn.ask(b"still here")? == b"still here");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn no_call_to_our_own_ports_is_proxied_or_served() {
    in_every_mode(mesh, |mesh| calls(mesh, Ztunnel::Unknown)).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nor_is_one_where_ztunnel_is_a_workload_itself() {
    in_every_mode(|| mesh().ztunnels_in_the_mesh(&[]), |mesh| calls(mesh, Ztunnel::Workload)).unwrap();
}
