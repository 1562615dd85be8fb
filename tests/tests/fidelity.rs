// SPDX-License-Identifier: Apache-2.0
//! Every byte at its place, every end where it belongs: bulk both ways, half-closes, resets, refusals.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, PodSpec, in_every_mode, times, wait};

const SOON: Duration = Duration::from_secs(10);
const BULK: Duration = Duration::from_secs(60);

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::plain("plain").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

/// An exchange, with one function for each end.
type Exchange = fn(&Conn, Sides) -> Result<()>;

/// Runs an exchange between the client and a pod.
fn exchange(mesh: &Mesh, pod: &str, sides: Sides, ends: (Exchange, Exchange)) -> Result<()> {
    let (client, server) = ends;
    let pod = mesh.pod(pod);
    let running = Server::start(pod, 8080, move |conn| server(&conn, sides.reversed()))?;
    client(&mesh.pod("client").dial(pod.addr(8080))?, sides).with_context(|| {
        format!("the client's end, towards {}; the server: {:?}", pod.name(), running.complaints())
    })?;
    running.expect_finished(1, BULK)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn bulk_both_ways_at_once_in_odd_chunks_arrives_byte_by_byte() {
    let mebibytes = times("ZTUNNEL_TESTS_BULK_MIB", 64);
    in_every_mode(mesh, |mesh| {
        let sides = Sides::client(0xb1, mebibytes << 20 | 1, mebibytes << 20 | 3);
        exchange(mesh, "near", sides, (stream::duplex, stream::duplex))?;
        let sides = Sides::client(0xb2, mebibytes << 18 | 5, mebibytes << 18 | 7);
        exchange(mesh, "far", sides, (stream::duplex, stream::duplex))?;
        exchange(mesh, "plain", sides, (stream::duplex, stream::duplex))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_order_of_half_closes_keeps_the_other_half_open() {
    const LENGTHS: [(u64, u64); 5] = [(1, 1), (300_001, 200_003), (0, 100_001), (100_003, 0), (0, 0)];
    let rounds = usize::try_from(times("ZTUNNEL_TESTS_HALF_CLOSES", 3)).unwrap();
    in_every_mode(mesh, |mesh| {
        for pod in ["near", "far", "plain"] {
            for (seed, (to_server, to_client)) in (1..).zip(LENGTHS.repeat(rounds)) {
                let sides = Sides::client(seed, to_server, to_client);
                exchange(mesh, pod, sides, (stream::speak_first, stream::listen_first))?;
                exchange(mesh, pod, sides, (stream::listen_first, stream::speak_first))?;
                exchange(mesh, pod, sides, (stream::duplex, stream::duplex))?;
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn requests_and_answers_of_all_sizes_follow_each_other() {
    in_every_mode(mesh, |mesh| {
        for pod in ["near", "far"] {
            let server = Server::echo(mesh.pod(pod), 8080)?;
            let conn = mesh.pod("client").dial(mesh.pod(pod).addr(8080))?;
            for size in [1, 2, 63, 64, 65, 1023, 4096, 16_384, 16_385, 65_535, 65_536, 65_537] {
                for round in 0..5 {
                    let mut request = vec![0; size];
                    ztunnel_tests::traffic::Pattern(size as u64).fill(round, &mut request);
                    ensure!(conn.ask(&request)? == request, "{pod}: another answer of {size} bytes");
                }
            }
            drop(conn);
            server.expect_finished(1, SOON)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_reset_on_either_side_ends_the_other_soon() {
    in_every_mode_alone(mesh, |mesh| {
        for pod in ["near", "far"] {
            let pod = mesh.pod(pod);
            // The server gives up after a while: the client, in the middle of sending, must learn of it.
            let server = Server::start(pod, 8080, |conn| {
                stream::receive(&conn, Sides::client(7, 100_000, 0).reversed().expect)?;
                Ok(conn.reset()?)
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8080))?;
            let started = Instant::now();
            let sent = stream::send(&conn, (ztunnel_tests::traffic::Pattern(7), 1 << 30));
            ensure!(sent.is_err() && started.elapsed() < SOON, "{sent:?} after {:?}", started.elapsed());
            server.expect_finished(1, SOON)?;
            drop(server);
            // The client gives up: the server must learn of it.
            let server = Server::start(pod, 8081, |conn| {
                ensure!(conn.ends_within(SOON), "the server never learns that the client has gone");
                Ok(())
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8081))?;
            stream::send(&conn, (ztunnel_tests::traffic::Pattern(8), 100_000))?;
            conn.reset()?;
            server.expect_finished(1, SOON)?;
        }
        wait::until("no connection left in the metrics", SOON, || {
            mesh.nodes()
                .all(|node| node.metrics().is_ok_and(|metrics| metrics.open_connections().abs() < 0.5))
        })
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn bytes_sent_right_before_the_end_arrive() {
    let rounds = times("ZTUNNEL_TESTS_ENDS", 100);
    in_every_mode(mesh, |mesh| {
        for pod in ["near", "far"] {
            let pod = mesh.pod(pod);
            let sides = Sides::client(9, 5000, 0);
            let server = Server::start(pod, 8080, move |conn| {
                stream::receive(&conn, sides.reversed().expect)?;
                stream::receive_end(&conn)
            })?;
            for _ in 0..rounds {
                let conn = mesh.pod("client").dial(pod.addr(8080))?;
                let mut bytes = vec![0; 5000];
                sides.send.0.fill(0, &mut bytes);
                (&conn).write_all(&bytes)?;
                // Closed at once, with nothing read: what was sent must still arrive, and its end.
                drop(conn);
            }
            let rounds = usize::try_from(rounds)?;
            server.expect_finished(rounds, SOON)?;
        }
        Ok(())
    })
    .unwrap();
}

/// Who dials whom: through tunnels on one node and between two, out of the mesh in the clear, and into it.
const WAYS: [(&str, &str); 4] =
    [("client", "near"), ("client", "far"), ("client", "plain"), ("stranger", "near")];

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_end_arrives_as_an_end_and_a_reset_as_a_reset_whoever_begins() {
    fn outcome(conn: &Conn) -> Result<usize, ErrorKind> {
        let mut reader = conn;
        reader.read(&mut [0; 16]).map_err(|error| error.kind())
    }
    const CUT: Result<usize, ErrorKind> = Err(ErrorKind::ConnectionReset);
    in_every_mode_alone(mesh, |mesh| {
        for (from, to) in WAYS {
            let to = mesh.pod(to);
            let dial =
                |port| mesh.pod(from).dial(to.addr(port)).with_context(|| format!("{from} to {}", to.name()));
            let resets = Server::start(to, 8080, |conn| {
                ensure!(outcome(&conn) == Ok(5), "no question");
                Ok(conn.reset()?)
            })?;
            let conn = dial(8080)?;
            (&conn).write_all(b"reset")?;
            ensure!(outcome(&conn) == CUT, "{from} to {}: the server's reset", to.name());
            // With bytes on the way: what was sent may arrive, an end may not.
            let ends = Server::start(to, 8081, |conn| {
                ensure!(outcome(&conn) == Ok(5), "no question");
                (&conn).write_all(b"and an answer")?;
                Ok(conn.finish()?)
            })?;
            let conn = dial(8081)?;
            (&conn).write_all(b"ended")?;
            ensure!(conn.read_all()? == b"and an answer", "{from} to {}: the server's end", to.name());
            let is_reset = Server::start(to, 8082, |conn| {
                ensure!(outcome(&conn) == Ok(5), "no question");
                (&conn).write_all(b"go on")?;
                let found = outcome(&conn);
                ensure!(found == CUT, "the client's reset came as {found:?}");
                Ok(())
            })?;
            let conn = dial(8082)?;
            (&conn).write_all(b"hello")?;
            ensure!(outcome(&conn) == Ok(5));
            conn.reset()?;
            let is_ended = Server::start(to, 8083, |conn| {
                ensure!(outcome(&conn) == Ok(5), "no question");
                let found = outcome(&conn);
                ensure!(found == Ok(0), "the client's end came as {found:?}");
                Ok((&conn).write_all(b"a late answer")?)
            })?;
            let conn = dial(8083)?;
            (&conn).write_all(b"hello")?;
            conn.finish()?;
            ensure!(conn.read_all()? == b"a late answer", "{from} to {}: after our end", to.name());
            for server in [resets, ends, is_reset, is_ended] {
                let of = || format!("{from} to {}", to.name());
                server.expect_finished(1, SOON).with_context(of)?;
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_socket_of_ours_looks_after_its_peer() {
    let build = || mesh().env("KEEPALIVE_TIME", "77s").env("USER_TIMEOUT_ENABLED", "true");
    in_every_mode_alone(build, |mesh| {
        let servers = ["near", "far", "plain"].map(|name| Server::echo(mesh.pod(name), 8080));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let mut open = Vec::new();
        for (from, to) in WAYS {
            let conn = mesh.pod(from).dial(mesh.pod(to).addr(8080))?;
            ensure!(conn.ask(b"hello")? == b"hello");
            open.push(conn);
        }
        // Accepted from the application, towards peers, from peers, towards applications.
        for (pod, ours, count) in [
            ("client", &["sport = :15001", "dport = :15008", "dport = :8080"][..], 6),
            ("near", &["sport = :15008", "sport = :15006", "dport = :8080"][..], 4),
        ] {
            // While bytes are on their way, another timer is shown.
            wait::ok("keepalive", SOON, || {
                let mut found = 0;
                for filter in ours {
                    let args = ["-tnoH", "state", "established", filter];
                    let output = mesh.pod(pod).command("ss").args(args).output()?;
                    found += String::from_utf8_lossy(&output.stdout).matches("timer:(keepalive,").count();
                }
                ensure!(found == count, "{pod}: {found} sockets with keepalive, not {count}");
                Ok(())
            })?;
        }
        drop((open, servers));
        Ok(())
    })
    .unwrap();
}
