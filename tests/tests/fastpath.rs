// SPDX-License-Identifier: Apache-2.0
//! The fast path where it is most likely to go wrong: races, switches in mid-stream, peers that never read, twins.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::{in_effect, in_every_mode_alone};
use ztunnel_tests::node::ADMIN;
use ztunnel_tests::traffic::edges::{self, EdgeServer};
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Pattern, Server};
use ztunnel_tests::{Mesh, Mode, Netns, Node, PodSpec, in_every_mode, times, wait};

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
}

fn full() -> Mesh {
    let mesh = mesh().mode(Mode::Full).start().unwrap();
    in_effect(&mesh, Mode::Full).unwrap();
    mesh
}

fn switch(node: &Node, state: &str) {
    let response = node.post(ADMIN, &format!("/accel?state={state}")).unwrap();
    assert_eq!(response.status, 200, "{}", response.body);
}

/// Both ends write as soon as they can, some small messages each, then check all that came.
fn race(conn: &Conn, sides: Sides) -> Result<()> {
    let mut at = 0;
    while at < sides.send.1 {
        let size = usize::try_from((sides.send.1 - at).min(37))?;
        let mut message = vec![0; size];
        sides.send.0.fill(at, &mut message);
        let mut writer = conn;
        writer.write_all(&message)?;
        at += size as u64;
    }
    stream::receive(conn, sides.expect)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_full_mode_carries_messages_in_the_kernel_and_says_so() {
    let mesh = full();
    let server = Server::echo(mesh.pod("near"), 8080).unwrap();
    let node = mesh.node("n1");
    let before = node.fastpath_counter("redirected_messages").unwrap();
    let conn = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
    for _ in 0..100 {
        assert_eq!(conn.ask(&[7; 500]).unwrap(), [7; 500]);
    }
    // Each request and each answer crosses two local hops.
    let redirected = node.fastpath_counter("redirected_messages").unwrap() - before;
    assert!(redirected >= 200, "{redirected} of 400 messages took the fast path: {}", node.status().unwrap());
    drop(conn);
    wait::until("both log lines with path=ebpf", SOON, || {
        let log = node.access_log();
        log.iter().filter(|entry| entry.is(&[("path", "ebpf"), ("bytes_sent", "50000")])).count() == 2
    })
    .unwrap();
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn first_writes_of_both_ends_that_race_with_the_pairing_keep_their_order() {
    let rounds = times("ZTUNNEL_TESTS_RACES", 300);
    in_every_mode(mesh, |mesh| {
        for name in ["near", "far"] {
            let pod = mesh.pod(name);
            let sides = Sides::client(11, 1500, 1700);
            let server = Server::start(pod, 8080, move |conn| race(&conn, sides.reversed()))?;
            std::thread::scope(|scope| -> Result<()> {
                let clients: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| -> Result<()> {
                            (0..rounds).try_for_each(|round| {
                                let conn = mesh.pod("client").dial(pod.addr(8080))?;
                                race(&conn, sides).with_context(|| format!("{name}, round {round}"))
                            })
                        })
                    })
                    .collect();
                clients.into_iter().try_for_each(|client| {
                    client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })?;
            server.expect_finished(usize::try_from(4 * rounds)?, SOON)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn switching_off_and_on_in_mid_stream_changes_no_byte() {
    let mesh = full();
    let sides = Sides::client(21, 24 << 20, 16 << 20 | 1);
    let done = AtomicBool::new(false);
    let mut switches = 0;
    std::thread::scope(|scope| {
        let streams: Vec<_> = [("near", 8080), ("near", 8081), ("far", 8080)]
            .map(|(name, port)| {
                let mesh = &mesh;
                scope.spawn(move || -> Result<()> {
                    let pod = mesh.pod(name);
                    let server =
                        Server::start(pod, port, move |conn| stream::duplex(&conn, sides.reversed()))?;
                    stream::duplex(&mesh.pod("client").dial(pod.addr(port))?, sides)?;
                    server.expect_finished(1, LONG)
                })
            })
            .into();
        let switcher = scope.spawn(|| {
            let mut switches = 0;
            while !done.load(Ordering::Acquire) {
                for node in mesh.nodes() {
                    switch(node, if switches % 2 == 0 { "off" } else { "on" });
                }
                switches += 1;
            }
            switches
        });
        let results: Vec<_> = streams.into_iter().map(|stream| stream.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        switches = switcher.join().unwrap();
        results.into_iter().collect::<Result<Vec<()>>>().unwrap();
    });
    assert!(switches > 10, "only {switches} switches while the streams ran");
    mesh.stop().unwrap();
}

/// Waits a moment for `condition`: long enough for a proxy that does not wait for the reader.
fn give_time(condition: impl FnMut() -> bool) {
    drop(wait::until("the proxy to be done", Duration::from_secs(1), condition));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn bytes_that_wait_unread_survive_the_end_of_both_directions() {
    const WAITING: (Pattern, u64) = (Pattern(61), 60_000);
    in_every_mode(mesh, |mesh| {
        let node = mesh.node("n1");
        let both_logged = || node.access_log().len() >= 2;
        for name in ["near", "far"] {
            let pod = mesh.pod(name);
            // The client has finished and reads late.
            let server = Server::start(pod, 8080, |conn| {
                stream::receive_end(&conn)?;
                stream::send(&conn, WAITING)
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8080))?;
            conn.finish()?;
            give_time(both_logged);
            stream::receive(&conn, WAITING).with_context(|| format!("{name}: finished first, read late"))?;
            stream::receive_end(&conn)?;
            server.expect_finished(1, SOON)?;
            // The client finishes while bytes wait, and reads after that.
            let server = Server::start(pod, 8081, |conn| {
                stream::send(&conn, WAITING)?;
                conn.finish()?;
                stream::receive_end(&conn)
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8081))?;
            give_time(|| false);
            conn.finish()?;
            give_time(|| server.finished() == 1);
            stream::receive(&conn, WAITING).with_context(|| format!("{name}: finished with bytes unread"))?;
            stream::receive_end(&conn)?;
            server.expect_finished(1, SOON)?;
            // The same two with the server as the late reader.
            let server = Server::start(pod, 8082, |conn| {
                conn.finish()?;
                give_time(|| false);
                stream::receive(&conn, WAITING).context("the server finished first, read late")?;
                stream::receive_end(&conn)
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8082))?;
            stream::receive_end(&conn)?;
            stream::send(&conn, WAITING)?;
            conn.finish()?;
            server.expect_finished(1, SOON)?;
            let server = Server::start(pod, 8083, |conn| {
                give_time(|| false);
                conn.finish()?;
                give_time(|| false);
                stream::receive(&conn, WAITING).context("the server finished with bytes unread")?;
                stream::receive_end(&conn)
            })?;
            let conn = mesh.pod("client").dial(pod.addr(8083))?;
            stream::send(&conn, WAITING)?;
            conn.finish()?;
            stream::receive_end(&conn)?;
            server.expect_finished(1, SOON)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn applications_that_read_by_edges_are_never_left_waiting() {
    in_every_mode_alone(mesh, |mesh| {
        let servers = [EdgeServer::start(mesh.pod("near"), 8080)?, EdgeServer::start(mesh.pod("far"), 8080)?];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients: Vec<_> = ["near", "near", "far"]
                .map(|name| {
                    scope.spawn(move || edges::ask(mesh.pod("client"), mesh.pod(name).addr(8080), 1500))
                })
                .into();
            // One message in the kernel and the next by TCP, again and again, also within one read.
            let switcher = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    for state in ["off", "on"] {
                        mesh.nodes().for_each(|node| switch(node, state));
                    }
                }
            });
            let results: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            done.store(true, Ordering::Release);
            switcher.join().unwrap();
            results.into_iter().collect::<Result<()>>()
        })?;
        drop(servers);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn in_a_rolling_update_two_ztunnels_share_the_pods_and_the_kernel() {
    for mode in [Mode::Off, Mode::Full] {
        let mesh = mesh().mode(mode).start().unwrap();
        in_effect(&mesh, mode).unwrap();
        let node = mesh.node("n1");
        let server = Server::echo(mesh.pod("near"), 8080).unwrap();
        let dial = || mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
        let old = dial();
        assert_eq!(old.ask(b"with one").unwrap(), b"with one");
        let home = Netns::create(&format!("{}-next", mesh.prefix())).unwrap();
        let next = node.successor(&home).unwrap();
        // Both serve: whoever gets a connection, and whoever holds a socket in the kernel, no byte is lost.
        let sides = Sides::client(51, 2 << 20, 2 << 20 | 1);
        let checked =
            Server::start(mesh.pod("near"), 8081, move |conn| stream::duplex(&conn, sides.reversed()))
                .unwrap();
        for _ in 0..8 {
            let conn = mesh.pod("client").dial(mesh.pod("near").addr(8081)).unwrap();
            stream::duplex(&conn, sides).unwrap();
            assert_eq!(dial().ask(b"with two").unwrap(), b"with two");
        }
        checked.expect_finished(8, SOON).unwrap();
        assert_eq!(old.ask(b"still here").unwrap(), b"still here");
        node.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        drop(old);
        assert!(node.wait_exit(SOON).unwrap().success());
        for _ in 0..50 {
            assert_eq!(dial().ask(b"with the next").unwrap(), b"with the next", "{mode}");
        }
        drop((server, checked, next));
        mesh.stop().unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_switch_works_for_new_messages_at_once_and_for_one_pod() {
    let mesh = full();
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("near"), 8080).unwrap();
    let conn = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
    let redirected = |conn: &Conn| {
        let before = node.fastpath_counter("redirected_messages").unwrap();
        for _ in 0..20 {
            assert_eq!(conn.ask(b"message").unwrap(), b"message");
        }
        node.fastpath_counter("redirected_messages").unwrap() - before
    };
    assert!(redirected(&conn) > 0);
    switch(node, "off");
    assert_eq!(redirected(&conn), 0, "the node is switched off");
    switch(node, "on");
    let fresh = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
    assert!(redirected(&fresh) > 0, "the node is switched on again");
    for pod in ["client", "near"] {
        let response = node.post(ADMIN, &format!("/accel?state=off&pod=demo/{pod}")).unwrap();
        assert_eq!(response.status, 200, "{}", response.body);
    }
    assert_eq!(redirected(&fresh), 0, "both pods are switched off");
    assert_ne!(node.post(ADMIN, "/accel?state=maybe").unwrap().status, 200);
    assert_ne!(node.post(ADMIN, "/accel?state=off&pod=demo/nobody").unwrap().status, 200);
    drop(server);
    mesh.stop().unwrap();
}

/// Pages of memory that TCP holds on this machine.
fn tcp_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let pages = line.split(' ').skip_while(|word| *word != "mem").nth(1);
    pages.and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Writes until nothing more is taken for a while; gives the bytes taken.
fn fill(conn: &Conn, pattern: Pattern, most: u64) -> Result<u64> {
    let mut stream = conn.stream();
    let mut chunk = vec![0; 16 << 10];
    let (mut at, mut last) = (0, Instant::now());
    while at < most && last.elapsed() < Duration::from_secs(1) {
        pattern.fill(at, &mut chunk);
        match stream.write(&chunk) {
            Ok(length) => {
                at += length as u64;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_peer_that_never_reads_costs_bounded_memory_and_slows_nobody() {
    const BOUND: u64 = 64 << 20;
    in_every_mode_alone(mesh, |mesh| {
        let release = std::sync::Arc::new(AtomicBool::new(false));
        let pattern = Pattern(31);
        let released = std::sync::Arc::clone(&release);
        let pod = mesh.pod("near");
        let lazy = Server::start(pod, 8080, move |conn| {
            wait::until("the release", LONG, || released.load(Ordering::Acquire))?;
            let mut reader = &conn;
            let (mut buffer, mut at) = (vec![0; 1 << 16], 0_u64);
            loop {
                let length = reader.read(&mut buffer)?;
                if length == 0 {
                    reader.write_all(&at.to_le_bytes())?;
                    return Ok(());
                }
                let wrong = pattern.first_wrong(at, &buffer[..length]);
                ensure!(wrong.is_none(), "a wrong byte at {wrong:?}");
                at += length as u64;
            }
        })?;
        let neighbor = Server::echo(pod, 8081)?;
        let lively = mesh.pod("client").dial(pod.addr(8081))?;
        let before = (tcp_memory(), mesh.node("n1").memory()?.resident);
        let conn = mesh.pod("client").dial(pod.addr(8080))?;
        let taken = fill(&conn, pattern, BOUND)?;
        ensure!(taken < BOUND, "a peer that never reads was sent {taken} bytes, with no end");
        let after = (tcp_memory(), mesh.node("n1").memory()?.resident);
        ensure!(after.0 < before.0 + BOUND, "TCP holds {} bytes more", after.0 - before.0);
        ensure!(after.1 < before.1 + BOUND, "ztunnel holds {} bytes more", after.1 - before.1);
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            ensure!(lively.ask(b"are you there")? == b"are you there");
            times.push(started.elapsed());
        }
        times.sort();
        ensure!(times[100] < Duration::from_millis(50), "a neighbor waits {:?}", times[100]);
        // Now it reads: all of it is there.
        release.store(true, Ordering::Release);
        conn.finish()?;
        ensure!(conn.read_all()? == taken.to_le_bytes(), "not all {taken} bytes arrived");
        lazy.expect_finished(1, SOON)?;
        drop(neighbor);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn many_short_connections_leave_full_speed_and_nothing_else_behind() {
    let rounds = times("ZTUNNEL_TESTS_SHORT", 8000);
    let mesh = full();
    let pod = mesh.pod("near");
    let server = Server::echo(pod, 8080).unwrap();
    // Where the scheduler puts the threads makes a factor of five: the best of many tries is what the path can do.
    let once = || {
        let conn = mesh.pod("client").dial(pod.addr(8080)).unwrap();
        let started = Instant::now();
        let before = mesh.node("n1").fastpath_counter("redirected_messages").unwrap();
        for _ in 0..500 {
            assert_eq!(conn.ask(&[1; 64]).unwrap(), [1; 64]);
        }
        (started.elapsed(), mesh.node("n1").fastpath_counter("redirected_messages").unwrap() - before)
    };
    let rate = || (0..12).map(|_| once()).min().unwrap();
    let (files, first) = (mesh.node("n1").open_files().unwrap(), rate());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..rounds / 4 {
                    let conn = mesh.pod("client").dial(pod.addr(8080)).unwrap();
                    assert_eq!(conn.ask(b"short").unwrap(), b"short");
                }
            });
        }
    });
    let node = mesh.node("n1");
    wait::until("every short connection to be closed", SOON, || {
        node.metrics().is_ok_and(|metrics| metrics.open_connections().abs() < 0.5)
    })
    .unwrap();
    let last = rate();
    assert!(last.0 < first.0 * 3, "slower after {rounds} connections: {first:?}, then {last:?}");
    assert!(
        last.1 * 10 >= first.1 * 9,
        "less redirected after {rounds} connections: {first:?}, then {last:?}"
    );
    let now = node.open_files().unwrap();
    assert!(now < files + 50, "{files} open files before, {now} after");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connections_with_identical_addresses_in_two_pods_are_never_crossed() {
    in_every_mode_alone(mesh, |mesh| {
        let servers = [("client", "I am client"), ("near", "I am near"), ("far", "I am far")];
        let running: Vec<_> = servers
            .iter()
            .map(|(name, text)| Server::banner(mesh.pod(name), 8080, text))
            .collect::<Result<_>>()?;
        for round in 0..100_u16 {
            let from = SocketAddr::from(([127, 0, 0, 1], 20_000 + round));
            let to = SocketAddr::from(([127, 0, 0, 1], 8080));
            // All of them at once, from the same port to the same port.
            let conns: Vec<Conn> = servers
                .iter()
                .map(|(name, _)| Ok(Conn::new(mesh.pod(name).connect_from(from, to)?)?))
                .collect::<Result<_>>()?;
            for (conn, (name, text)) in conns.iter().zip(servers) {
                let said = conn.read_all()?;
                ensure!(said == text.as_bytes(), "{name} heard {:?}", String::from_utf8_lossy(&said));
            }
        }
        drop(running);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_source_port_to_two_destinations_keeps_both_apart() {
    in_every_mode(mesh, |mesh| {
        let near = Server::banner(mesh.pod("near"), 8080, "I am near")?;
        let far = Server::banner(mesh.pod("far"), 8080, "I am far")?;
        let client = mesh.pod("client");
        for round in 0..100_u16 {
            let from = SocketAddr::new(client.ip4(), 20_000 + round);
            let one = Conn::new(client.connect_from(from, mesh.pod("near").addr(8080))?)?;
            let other = Conn::new(client.connect_from(from, mesh.pod("far").addr(8080))?)?;
            ensure!(other.read_all()? == b"I am far" && one.read_all()? == b"I am near", "crossed");
        }
        drop((near, far));
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_automatic_mode_leaves_workloads_that_do_not_qualify_alone() {
    let mesh = mesh().mode(Mode::Auto).env("EBPF_FULL_WORKLOADS", "demo/ne*").start().unwrap();
    let node = mesh.node("n1");
    let levels = node.status().unwrap()["pods"].clone();
    let level = |name: &str| {
        let pods = levels.as_array().into_iter().flatten();
        let pod = pods.into_iter().find(|pod| pod["name"] == name);
        pod.map(|pod| (pod["level"].clone(), pod["reason"].clone())).unwrap()
    };
    assert_eq!(level("near"), ("full".into(), "qualified".into()));
    assert_eq!(level("client"), ("off".into(), "not_qualified".into()));
    let server = Server::echo(mesh.pod("near"), 8080).unwrap();
    let conn = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
    for _ in 0..10 {
        assert_eq!(conn.ask(b"hello").unwrap(), b"hello");
    }
    drop(conn);
    // The client's own hop goes by TCP, the server's by the fast path.
    wait::until("one log line of each path", SOON, || {
        let log = node.access_log();
        let has =
            |direction, path| log.iter().any(|entry| entry.is(&[("direction", direction), ("path", path)]));
        has("outbound", "tcp") && has("inbound", "ebpf")
    })
    .unwrap();
    drop(server);
    mesh.stop().unwrap();
}
