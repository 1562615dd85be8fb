// SPDX-License-Identifier: Apache-2.0
//! Every byte at its place, every end where it belongs: bulk both ways, half-closes, resets, refusals.

use std::io::Write as _;
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
