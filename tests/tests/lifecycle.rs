// SPDX-License-Identifier: Apache-2.0
//! Start and end: ports that are taken, a stop that waits for connections and not for ever, and what is counted between.

use std::net::{Ipv6Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::node::{ADMIN, READINESS, STATS};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);

fn mesh() -> MeshBuilder {
    Mesh::builder().pod(PodSpec::mesh("client").on("n1")).pod(PodSpec::mesh("far").on("n2"))
}

/// A connection between the pods that has carried eleven bytes each way.
fn open(mesh: &Mesh) -> Result<Conn> {
    let conn = mesh.pod("client").dial(mesh.pod("far").addr(8080))?;
    ensure!(conn.ask(b"hello world")? == b"hello world");
    Ok(conn)
}

/// What a node counts of the connections that it was the source of: opened, closed, received, sent.
fn counts(mesh: &Mesh) -> Result<[f64; 4]> {
    let metrics = mesh.node("n1").metrics()?;
    let names = ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"];
    Ok(names.map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &[("reporter", "source")])))
}

fn wait_counts(mesh: &Mesh, expected: [f64; 4]) -> Result<()> {
    wait::ok("the counters", SOON, || {
        let found = counts(mesh)?;
        let same = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.5);
        ensure!(same, "{found:?}, not {expected:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_connection_counts_while_it_is_open_and_its_bytes_as_they_pass() {
    in_every_mode_alone(mesh, |mesh| {
        let server = Server::echo(mesh.pod("far"), 8080)?;
        let conn = open(mesh)?;
        wait_counts(mesh, [1.0, 0.0, 11.0, 11.0])?;
        ensure!(conn.ask(b"hello again")? == b"hello again");
        wait_counts(mesh, [1.0, 0.0, 22.0, 22.0])?;
        conn.finish()?;
        ensure!(conn.read_all()?.is_empty());
        wait_counts(mesh, [1.0, 1.0, 22.0, 22.0])?;
        let page = mesh.node("n1").get(STATS, "/metrics")?.body;
        ensure!(page.contains("istio_build{component=\"ztunnel\",tag=\"unknown\"} 1"), "{page}");
        // What may change says so, what may not does not.
        let stable = [
            "build",
            "tcp_connections_opened",
            "tcp_connections_closed",
            "tcp_received_bytes",
            "tcp_sent_bytes",
        ];
        let help = page.lines().filter_map(|line| line.strip_prefix("# HELP istio_")?.split_once(' '));
        for (name, text) in help {
            ensure!(text.contains("unstable") != stable.contains(&name), "{name}: {text}");
        }
        drop(server);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_stop_waits_for_the_last_connection_but_not_beyond_the_deadline() {
    in_every_mode_alone(mesh, |mesh| {
        let server = Server::echo(mesh.pod("far"), 8080)?;
        let node = mesh.node("n1");
        // The end of the last connection is the end of the process.
        node.terminate()?;
        node.set_env("CONNECTION_TERMINATION_DEADLINE", "60s");
        node.start()?;
        let conn = open(mesh)?;
        node.signal(Signal::SIGTERM)?;
        wait::until("nobody accepts any more", SOON, || {
            open(mesh).is_err()
                && node.get(READINESS, "/healthz/ready").is_err()
                && node.get(ADMIN, "/status").is_err()
        })?;
        ensure!(conn.ask(b"during the drain")? == b"during the drain");
        ensure!(node.exit_status().is_none(), "ended with an open connection");
        conn.finish()?;
        ensure!(conn.read_all()?.is_empty());
        let status = node.wait_exit(Duration::from_secs(1)).context("after the last connection")?;
        ensure!(status.success(), "{status}");

        // An open connection does not hold it for ever: it is cut, which is no failure of its own.
        node.set_env("CONNECTION_TERMINATION_DEADLINE", "1s");
        node.start()?;
        let conn = open(mesh)?;
        let asked = Instant::now();
        node.signal(Signal::SIGTERM)?;
        let status = node.wait_exit(Duration::from_secs(3)).context("after the deadline")?;
        ensure!(
            status.success() && asked.elapsed() > Duration::from_millis(900),
            "{status} {:?}",
            asked.elapsed()
        );
        ensure!(conn.ends_within(SOON), "the connection outlives its proxy");
        ensure!(
            node.stdout()
                .contains("drain duration expired with pending connections, forcefully shutting down")
        );
        let log = node.access_log();
        let cut = log.iter().find(|entry| entry.get("error") == "connection closed due to connection drain");
        ensure!(cut.is_some_and(|entry| entry.is(&[("bytes_sent", "11"), ("bytes_recv", "11")])), "{log:?}");

        // The same by the admin server; with nothing open there is nothing to wait for.
        node.set_env("CONNECTION_TERMINATION_DEADLINE", "60s");
        node.start()?;
        drop(open(mesh)?);
        ensure!(node.get(ADMIN, "/quitquitquit")?.status == 405, "a GET must change nothing");
        ensure!(node.post(ADMIN, "/quitquitquit")?.status == 200);
        let status = node.wait_exit(Duration::from_secs(5)).context("after /quitquitquit")?;
        ensure!(status.success(), "{status}");
        drop(server);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_that_is_taken_is_an_error_at_start_that_names_it() -> Result<()> {
    let mesh = mesh().build()?;
    let node = mesh.node("n1");
    node.set_env("PROXY_MODE", "dedicated");
    node.set_env("PROXY_WORKLOAD_INFO", "demo/client/client");
    node.set_env("INPOD_UDS", "/nowhere/agent.sock");
    for port in [15001, 15006, 15008, ADMIN, STATS, READINESS] {
        let taken = node.netns().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        node.launch()?;
        let status = node.wait_exit(SOON).with_context(|| format!("port {port} is taken"))?;
        ensure!(status.code() == Some(1), "{port}: {status}");
        let said = node.stderr();
        ensure!(
            said.contains("failed to bind to address") && said.contains(&port.to_string()),
            "{port}: {said}"
        );
        drop(taken);
    }
    mesh.stop()
}
