// SPDX-License-Identifier: Apache-2.0
//! How a ztunnel begins and ends: ports that are taken, what is counted while connections are open, every way to ask for
//! the end, what a stop waits for and what it does not, and a server that goes away.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::node::{ADMIN, PATIENCE, READINESS, STATS};
use ztunnel_tests::observe::Metrics;
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Node, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(15);
/// What upstream allows for an end that nothing holds up.
const AT_ONCE: Duration = Duration::from_secs(1);

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::plain("plain").on("n2"))
}

fn works(conn: &Conn, what: &[u8]) -> Result<()> {
    let answer = conn.ask(what).with_context(|| String::from_utf8_lossy(what).into_owned())?;
    ensure!(answer == what, "another answer");
    Ok(())
}

/// Waits for the end of ztunnel; it must have been well, and within `limit`.
fn ends_well(node: &Node, limit: Duration) -> Result<()> {
    let asked = Instant::now();
    let status = node.wait_exit(SOON)?;
    ensure!(status.success() && asked.elapsed() < limit, "{status} after {:?}", asked.elapsed());
    Ok(())
}

/// What a node counts between two workloads, by reporter: opened, closed, received, sent.
fn counted(metrics: &Metrics, reporter: &str, ends: (&str, &str)) -> [f64; 4] {
    let labels = [("reporter", reporter), ("source_workload", ends.0), ("destination_workload", ends.1)];
    ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"]
        .map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels))
}

/// Waits until the node counts exactly this.
fn counts(node: &Node, reporter: &str, ends: (&str, &str), expected: [f64; 4]) -> Result<()> {
    wait::ok(&format!("{reporter} of {ends:?} on {}", node.name()), SOON, || {
        let found = counted(&node.metrics()?, reporter, ends);
        ensure!(found.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 0.5), "{found:?}");
        Ok(())
    })
}

/// What is not called unstable: data-plane contract, section 6.1.
const STABLE: [&str; 5] = [
    "istio_build",
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_received_bytes",
    "istio_tcp_sent_bytes",
];

fn says_what_may_change(node: &Node) -> Result<()> {
    let page = node.get(STATS, "/metrics")?.body;
    let metrics = Metrics::parse(&page);
    ensure!((metrics.sum("istio_build", &[("component", "ztunnel")]) - 1.0).abs() < 0.5, "{page}");
    let (open, most) = (metrics.sum("process_open_fds", &[]), metrics.sum("process_max_fds", &[]));
    ensure!(open > 0.5 && most > open, "{open} of {most} descriptors: {page}");
    for help in page.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, text) = help.split_once(' ').context("a help text")?;
        let theirs = name.starts_with("istio_") || name.starts_with("workload_manager_");
        if theirs {
            ensure!(text.contains("unstable") != STABLE.contains(&name), "{help}");
        }
    }
    for name in STABLE {
        ensure!(page.contains(&format!("# TYPE {name} ")), "{name} is missing: {page}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_connection_counts_while_it_is_open_and_its_bytes_as_they_pass() {
    in_every_mode(mesh, |mesh| {
        let _servers = ["near", "far", "plain"].map(|name| Server::echo(mesh.pod(name), 8080));
        for to in ["near", "far", "plain"] {
            let conn = mesh.pod("client").dial(mesh.pod(to).addr(8080))?;
            ensure!(conn.ask(b"hello world")? == b"hello world");
            let reporters = [("source", "n1"), ("destination", mesh.pod(to).node_name())];
            let reporters = &reporters[..if to == "plain" { 1 } else { 2 }];
            for (reporter, node) in reporters {
                counts(mesh.node(node), reporter, ("client", to), [1.0, 0.0, 11.0, 11.0])?;
            }
            drop(conn);
            for (reporter, node) in reporters {
                counts(mesh.node(node), reporter, ("client", to), [1.0, 1.0, 11.0, 11.0])?;
            }
        }
        says_what_may_change(mesh.node("n1"))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_way_to_ask_for_the_end_ends_an_idle_ztunnel_well() {
    type Way = (&'static str, fn(&Node) -> Result<()>);
    let ways: [Way; 3] = [
        ("SIGTERM", |node| node.signal(Signal::SIGTERM)),
        ("SIGINT", |node| node.signal(Signal::SIGINT)),
        ("/quitquitquit", |node| {
            let refused = node.get(ADMIN, "/quitquitquit")?;
            ensure!(refused.status == 405 && node.is_ready(), "GET is no question to end: {refused:?}");
            let answer = node.post(ADMIN, "/quitquitquit")?;
            ensure!(answer.status == 200 && answer.body == "shutdown now\n", "{answer:?}");
            Ok(())
        }),
    ];
    in_every_mode_alone(mesh, |mesh| {
        let node = mesh.node("n1");
        for (what, ask) in ways {
            ask(node).context(what)?;
            ends_well(node, AT_ONCE).context(what)?;
            ensure!(node.stderr().is_empty(), "{what}: {}", node.stderr());
            node.start()?;
        }
        Ok(())
    })
    .unwrap();
}

fn waits_for_the_last(mesh: &Mesh) -> Result<()> {
    let (node, client) = (mesh.node("n1"), mesh.pod("client"));
    let dial = |to: &str| client.dial(mesh.pod(to).addr(8080));
    let mut open = Vec::new();
    for to in ["near", "far", "plain"] {
        open.push((to, dial(to)?));
    }
    // And one that comes from outside.
    open.push(("plain to near", mesh.pod("plain").dial(mesh.pod("near").addr(8080))?));
    for (_, conn) in &open {
        works(conn, b"before")?;
    }
    node.signal(Signal::SIGTERM)?;
    // Ports close one after the other, and a dial to a pod of this node may pass one and be refused by the next: first
    // whom the drain does not concern, until nobody takes the client's connections any more.
    for to in ["plain", "far", "near"] {
        wait::until("nobody to be let in", SOON, || {
            dial(to).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        })?;
    }
    let closed = |port| node.get(port, "/").is_err();
    for port in [ADMIN, STATS, READINESS] {
        wait::until("the side doors to be closed", SOON, || closed(port))?;
    }
    for (_, conn) in &open {
        works(conn, b"while it drains")?;
    }
    // Asked twice is not asked to hurry.
    node.signal(Signal::SIGTERM)?;
    while let Some((what, conn)) = open.pop() {
        ensure!(node.exit_status().is_none(), "ended with a connection open");
        works(&conn, b"to the end").context(what)?;
        conn.finish()?;
        ensure!(conn.read_all()?.is_empty(), "{what}: something else than the end");
    }
    ends_well(node, AT_ONCE)?;
    let lines = node.access_log();
    ensure!(lines.iter().all(|line| line.get("error").is_empty()), "{lines:#?}");
    let worked = lines.iter().filter(|line| line.get("bytes_sent") != "0").count();
    ensure!(worked == 5, "three that went out, two that came in: {lines:#?}");
    Ok(())
}

fn is_over_at_the_deadline(mesh: &Mesh) -> Result<()> {
    let (node, client) = (mesh.node("n1"), mesh.pod("client"));
    let mut open = Vec::new();
    for to in ["near", "far", "plain"] {
        let conn = client.dial(mesh.pod(to).addr(8080))?;
        works(&conn, b"before")?;
        open.push(conn);
    }
    // A peer that never says a word of TLS.
    let silent = mesh.pod("plain").connect(mesh.pod("near").addr(15008))?;
    node.signal(Signal::SIGTERM)?;
    ends_well(node, Duration::from_secs(1) + AT_ONCE)?;
    for conn in open {
        // Neither end may take this for an end that the other wanted.
        match conn.read_all() {
            Err(error) => ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}"),
            Ok(rest) => bail!("a cut connection looks complete: {rest:?}"),
        }
    }
    drop(silent);
    let said = node.stdout();
    ensure!(
        said.contains("drain duration expired with pending connections, forcefully shutting down"),
        "{said}"
    );
    let lines = node.access_log();
    for to in ["far", "plain"] {
        let line = lines.iter().find(|line| line.is(&[("direction", "outbound"), ("dst.workload", to)]));
        let error = line.with_context(|| format!("no line about {to}"))?.get("error");
        ensure!(error == "connection closed due to connection drain", "{to}: {error}");
    }
    // Both ends of one connection, of which either may see the other go first.
    let near = lines.iter().filter(|line| line.get("dst.workload") == "near");
    ensure!(near.filter(|line| !line.get("error").is_empty()).count() == 2, "{lines:#?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_stop_waits_for_the_last_connection_but_not_beyond_the_deadline() {
    // At first no deadline can be what ends it.
    in_every_mode_alone(
        || mesh().env("CONNECTION_TERMINATION_DEADLINE", "10m"),
        |mesh| {
            let servers = ["near", "far", "plain"].map(|name| Server::echo(mesh.pod(name), 8080));
            waits_for_the_last(mesh)?;
            mesh.node("n1").set_env("CONNECTION_TERMINATION_DEADLINE", "1s");
            mesh.node("n1").start()?;
            is_over_at_the_deadline(mesh)?;
            drop(servers);
            Ok(())
        },
    )
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_second_interrupt_ends_a_drain_at_once() {
    let mesh = mesh().env("CONNECTION_TERMINATION_DEADLINE", "10m").start().unwrap();
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("far"), 8080).unwrap();
    let open = mesh.pod("client").dial(mesh.pod("far").addr(8080)).unwrap();
    works(&open, b"before").unwrap();
    node.signal(Signal::SIGINT).unwrap();
    wait::until("the drain", SOON, || node.stdout().contains("draining")).unwrap();
    works(&open, b"while it drains").unwrap();
    node.signal(Signal::SIGINT).unwrap();
    ends_well(node, AT_ONCE).unwrap();
    assert!(open.ends_within(SOON));
    drop(server);
    mesh.stop().unwrap();
}

/// Listens with an ordinary socket, as somebody else's process does.
fn squat(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(at)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_that_is_taken_is_an_error_at_start_that_names_it() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("single").on("n1")).build().unwrap();
    let node = mesh.node("n1");
    let ends = |what: &str, words: &[&str]| {
        node.launch().unwrap();
        assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(1), "{what}");
        let said = node.stderr();
        assert!(words.iter().all(|word| said.contains(word)), "{what}, not {words:?}: {said}");
    };
    let localhost = (Ipv4Addr::LOCALHOST, ADMIN).into();
    let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    for (at, words) in [
        (localhost, ["failed to bind to address 127.0.0.1:15000", "admin server starts"]),
        (everywhere(STATS), ["failed to bind to address [::]:15020", "stats server starts"]),
        (everywhere(READINESS), ["failed to bind to address [::]:15021", "readiness server starts"]),
    ] {
        let squatter = node.netns().run(|| squat(at)).unwrap();
        ends("shared", &words);
        drop(squatter);
    }
    // A pod's own ports end nobody's start in shared mode (tests/tests/zds.rs), in dedicated mode they are the process'.
    node.set_env("PROXY_MODE", "dedicated");
    node.set_env("PROXY_WORKLOAD_INFO", "demo/single/single");
    for port in [15001, 15006, 15008] {
        let squatter = node.netns().run(|| squat(everywhere(port))).unwrap();
        ends("dedicated", &[&format!("failed to bind to address [::]:{port}"), "proxy starts"]);
        drop(squatter);
    }
    node.start().unwrap();
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_socket_for_all_workers_serves_a_pod_whose_ports_may_not_be_shared() {
    let build = || mesh().env("INPOD_PORT_REUSE", "false").env("ZTUNNEL_WORKER_THREADS", "3");
    let mesh = build().start().unwrap();
    let server = Server::echo(mesh.pod("far"), 8080).unwrap();
    for round in 0..30 {
        let from = if round % 2 == 0 { "client" } else { "plain" };
        works(&mesh.pod(from).dial(mesh.pod("far").addr(8080)).unwrap(), b"hello").unwrap();
    }
    let second = mesh.pod("far").run(|| squat((Ipv6Addr::UNSPECIFIED, 15008).into()));
    assert_eq!(second.unwrap_err().kind(), ErrorKind::AddrInUse);
    mesh.node("n2").terminate().unwrap();
    mesh.node("n2").start().unwrap();
    works(&mesh.pod("client").dial(mesh.pod("far").addr(8080)).unwrap(), b"again").unwrap();
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_server_that_goes_away_breaks_its_connections_and_new_ones_fail_without_a_hang() {
    in_every_mode_alone(mesh, |mesh| {
        let client = mesh.pod("client");
        for name in ["near", "far"] {
            let pod = mesh.pod(name);
            let node = mesh.node(pod.node_name());
            let server = Server::echo(pod, 8080)?;
            let open = client.dial(pod.addr(8080))?;
            works(&open, b"before")?;
            // As the kubelet does it: the pod's processes end, the node agent is told, its interface goes.
            drop(server);
            node.agent().delete(&pod.uid())?;
            (&open).write_all(b"into nothing").ok();
            ensure!(open.ends_within(SOON), "{name}: a connection to a pod that is gone hangs");
            pod.netns().ip("link del eth0\n")?;
            let gone = Instant::now();
            // The client's own ztunnel accepts, whatever is behind it; it may have given up before the client looks.
            let late = client.dial(pod.addr(8080)).and_then(|late| {
                (&late).write_all(b"anybody?").ok();
                late.read_all()
            });
            match late {
                Ok(answer) => ensure!(answer.is_empty(), "{name}: {answer:?}"),
                Err(error) => ensure!(error.kind() == ErrorKind::ConnectionReset, "{name}: {error}"),
            }
            ensure!(gone.elapsed() < SOON, "{name}: {:?}", gone.elapsed());
        }
        ensure!(mesh.nodes().all(Node::is_ready), "a ztunnel is hurt");
        Ok(())
    })
    .unwrap();
}
