// SPDX-License-Identifier: Apache-2.0
//! What reaches a captured pod: tunnels, plaintext, policies, and the source address that the application sees.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::traffic::stream::is_turned_away;
use ztunnel_tests::{Mesh, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("server").on("n1"))
        .pod(PodSpec::mesh("neighbor").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::plain("plain").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn plaintext_reaches_a_captured_pod_with_the_callers_address() {
    in_every_mode(mesh, |mesh| {
        let server = Server::echo(mesh.pod("server"), 8080)?;
        for name in ["plain", "stranger"] {
            let from = mesh.pod(name);
            for (to, seen) in
                [(mesh.pod("server").addr(8080), from.ip4()), (mesh.pod("server").addr6(8080), from.ip6())]
            {
                let conn = from.dial(to)?;
                ensure!(conn.ask(b"plaintext")? == b"plaintext");
                ensure!(server.peers().last().map(SocketAddr::ip) == Some(seen), "{:?}", server.peers());
            }
        }
        let labels = [("reporter", "destination"), ("connection_security_policy", "unknown")];
        wait::until("four plaintext connections in the metrics", SOON, || {
            mesh.node("n1").metrics().is_ok_and(|metrics| {
                (metrics.sum("istio_tcp_connections_closed_total", &labels) - 4.0).abs() < 0.5
            })
        })?;
        wait::ok("two lines about the plain pod", SOON, || {
            let lines = mesh.node("n1").access_log();
            let plain =
                lines.iter().filter(|entry| entry.is(&[("direction", "inbound"), ("src.workload", "plain")]));
            ensure!(plain.count() == 2, "{lines:?}");
            Ok(())
        })
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_tunnels_identity_is_in_metrics_and_log_of_the_destination() {
    in_every_mode(mesh, |mesh| {
        let server = Server::echo(mesh.pod("server"), 8080)?;
        for name in ["neighbor", "far"] {
            let pod = mesh.pod(name);
            ensure!(pod.dial(mesh.pod("server").addr(8080))?.ask(b"who am I")? == b"who am I");
            let identity = pod.spiffe();
            let labels = [
                ("reporter", "destination"),
                ("source_principal", identity.as_str()),
                ("source_workload", name),
                ("destination_workload", "server"),
                ("response_flags", "-"),
            ];
            wait::until("the connection in the metrics", SOON, || {
                mesh.node("n1").metrics().is_ok_and(|metrics| {
                    (metrics.sum("istio_tcp_connections_closed_total", &labels) - 1.0).abs() < 0.5
                })
            })?;
            let own = mesh.pod("server").addr(15008).to_string();
            let fields = [("direction", "inbound"), ("src.identity", &identity), ("dst.addr", &own)];
            wait::until("its line in the log", SOON, || {
                mesh.node("n1").access_log().iter().any(|entry| entry.is(&fields))
            })?;
        }
        drop(server);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_policy_lets_in_whom_it_names_and_nobody_else() {
    let build = || {
        let policy = "name: only-neighbor\nnamespace: demo\nscope: WorkloadSelector\naction: Allow\ndryRun: false\n\
                      rules:\n- - - principals: [!Exact cluster.local/ns/demo/sa/neighbor]\n      destinationPorts: [8080]";
        Mesh::builder()
            .pod(PodSpec::mesh("server").on("n1").selected_by("demo/only-neighbor"))
            .pod(PodSpec::mesh("neighbor").on("n1"))
            .pod(PodSpec::mesh("far").on("n2"))
            .pod(PodSpec::unknown("stranger").on("n2"))
            .policy(policy)
    };
    in_every_mode(build, |mesh| {
        let pod = mesh.pod("server");
        let (allowed, other) = (Server::echo(pod, 8080)?, Server::echo(pod, 8081)?);
        ensure!(mesh.pod("neighbor").dial(pod.addr(8080))?.ask(b"let me in")? == b"let me in");
        for (from, port) in [("neighbor", 8081), ("far", 8080), ("stranger", 8080)] {
            let denied = mesh.pod(from).dial(pod.addr(port)).and_then(|conn| conn.ask(b"let me in"));
            ensure!(denied.is_err(), "{from} got in at port {port}");
        }
        ensure!(allowed.peers().len() == 1 && other.peers().is_empty(), "the application was reached");
        wait::until("three denials in the metrics", SOON, || {
            mesh.node("n1").metrics().is_ok_and(|metrics| {
                let labels = [("reporter", "destination"), ("response_flags", "DENY")];
                (metrics.sum("istio_tcp_connections_closed_total", &labels) - 3.0).abs() < 0.5
            })
        })?;
        let denied = |entry: &&ztunnel_tests::observe::AccessEntry| {
            entry.get("error").contains("allow policies exist, but none allowed")
        };
        wait::ok("three lines about it", SOON, || {
            let lines = mesh.node("n1").access_log();
            ensure!(lines.iter().filter(denied).count() == 3, "{lines:?}");
            Ok(())
        })
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nobody_listening_is_an_error_at_once_and_not_a_hang() -> Result<()> {
    in_every_mode(mesh, |mesh| {
        for from in ["neighbor", "far", "stranger"] {
            let started = std::time::Instant::now();
            let ended = is_turned_away(mesh.pod(from), mesh.pod("server").addr(9), SOON);
            ensure!(ended && started.elapsed() < Duration::from_secs(3), "{from}: {:?}", started.elapsed());
        }
        Ok(())
    })
}
