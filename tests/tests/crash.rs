// SPDX-License-Identifier: Apache-2.0
//! ztunnel killed under load: clients get errors, nothing crosses the wire in the clear, nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ztunnel_tests::observe::Sniffer;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Mode, PodSpec, modes, times, wait};

const SOON: Duration = Duration::from_secs(10);
const NEEDLE: &[u8] = b"this must never cross the wire in the clear";

fn mesh(mode: Mode) -> Mesh {
    Mesh::builder()
        .mode(mode)
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .start()
        .unwrap()
}

/// Programs, maps and links that the kernel holds for bpf(2), by identifier and name.
fn bpf_objects() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for program in aya::programs::loaded_programs().flatten() {
        found.insert(format!("program {} {}", program.id(), program.name_as_str().unwrap_or_default()));
    }
    for map in aya::maps::loaded_maps().flatten() {
        found.insert(format!("map {} {}", map.id(), map.name_as_str().unwrap_or_default()));
    }
    found
}

/// What the kernel holds now and did not hold `before`, once it had time to free it.
fn new_bpf_objects(before: &BTreeSet<String>) -> Vec<String> {
    let now = || -> Vec<String> { bpf_objects().difference(before).cloned().collect() };
    // Freed after a grace period.
    drop(wait::until("no new bpf object", SOON, || now().is_empty()));
    now()
}

/// Clients that connect, ask and connect again until told to stop.
fn load(mesh: &Mesh, stop: &AtomicBool, answers: &AtomicU64, errors: &AtomicU64) {
    std::thread::scope(|scope| {
        for name in ["near", "far", "near", "far"] {
            scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    let asked = mesh.pod("client").dial(mesh.pod(name).addr(8080)).and_then(|conn| {
                        for _ in 0..20 {
                            conn.ask(NEEDLE)?;
                            answers.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    });
                    if asked.is_err() {
                        errors.fetch_add(1, Ordering::Relaxed);
                        // As a client that backs off would; also keeps the log of a dead proxy short.
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
}

fn killed_under_load(mode: Mode, kills: u64) {
    let rounds = times("ZTUNNEL_TESTS_KILLS", kills);
    let before = bpf_objects();
    let mesh = mesh(mode);
    modes::in_effect(&mesh, mode).unwrap();
    if mode == Mode::Full {
        assert_ne!(bpf_objects(), before, "the kernel does not show what it holds");
    }
    let servers =
        [Server::echo(mesh.pod("near"), 8080).unwrap(), Server::echo(mesh.pod("far"), 8080).unwrap()];
    let (stop, answers, errors) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let sniffer = Sniffer::start(mesh.wire(), NEEDLE).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| load(&mesh, &stop, &answers, &errors));
        // Set also when an assertion fails: the clients must end then as well.
        let _stopper = StopOnDrop(&stop);
        let more = |counter: &AtomicU64, what: &str| {
            let from = counter.load(Ordering::Relaxed);
            wait::until(what, SOON, || counter.load(Ordering::Relaxed) > from + 3).unwrap();
        };
        for round in 0..rounds {
            let node = mesh.node(if round % 3 == 2 { "n2" } else { "n1" });
            more(&answers, "answers before the kill");
            node.kill().unwrap();
            more(&errors, "clients that notice");
            node.start().unwrap();
            more(&answers, "answers after the restart");
        }
    });
    let capture = sniffer.stop();
    assert!(capture.bytes_with_port(15008) > 0, "the sniffer saw nothing");
    assert_eq!(capture.sightings, [], "plaintext on the wire");
    assert_eq!(capture.bytes_with_port(8080), 0, "a connection without a tunnel on the wire");
    // Listeners of the dead are gone: exactly those of one ztunnel are left, and descriptors do not pile up.
    let files = mesh.node("n1").open_files().unwrap();
    assert!(files < 400, "{files} open files after {rounds} kills");
    drop(servers);
    mesh.stop().unwrap();
    assert_eq!(new_bpf_objects(&before), Vec::<String>::new(), "left in the kernel");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn killed_under_load_without_the_fast_path() {
    killed_under_load(Mode::Off, 50);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn killed_under_load_with_the_whole_fast_path() {
    killed_under_load(Mode::Full, 20);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn while_ztunnel_is_dead_a_captured_pod_is_refused_and_not_let_through() {
    for mode in [Mode::Off, Mode::Full] {
        let mesh = mesh(mode);
        let far = Server::echo(mesh.pod("far"), 8080).unwrap();
        let open = mesh.pod("client").dial(mesh.pod("far").addr(8080)).unwrap();
        assert_eq!(open.ask(NEEDLE).unwrap(), NEEDLE);
        let sniffer = Sniffer::start(mesh.wire(), NEEDLE).unwrap();
        mesh.node("n1").kill().unwrap();
        assert!(open.ends_within(SOON), "{mode}: an open connection hangs");
        for to in [mesh.pod("far").addr(8080), mesh.pod("far").addr6(8080)] {
            let refused = mesh.pod("client").dial(to).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{mode}");
        }
        drop((&open).write_all(NEEDLE));
        mesh.node("n1").start().unwrap();
        let again = mesh.pod("client").dial(mesh.pod("far").addr(8080)).unwrap();
        assert_eq!(again.ask(NEEDLE).unwrap(), NEEDLE);
        let capture = sniffer.stop();
        assert!(capture.bytes_with_port(15008) > 0, "the sniffer saw nothing");
        assert_eq!(capture.sightings, [], "{mode}: plaintext on the wire");
        drop((far, again));
        mesh.stop().unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn sigterm_lets_connections_finish_and_then_ends_with_success() {
    let mesh = mesh(Mode::Off);
    let far = Server::echo(mesh.pod("far"), 8080).unwrap();
    let open = mesh.pod("client").dial(mesh.pod("far").addr(8080)).unwrap();
    assert_eq!(open.ask(b"before").unwrap(), b"before");
    mesh.node("n1").signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    // New connections are refused at once, the open one goes on until the deadline (2 s here).
    wait::until("no new connections", SOON, || mesh.pod("client").dial(mesh.pod("far").addr(8080)).is_err())
        .unwrap();
    assert_eq!(open.ask(b"during the drain").unwrap(), b"during the drain");
    drop(open);
    assert!(mesh.node("n1").wait_exit(SOON).unwrap().success());
    drop(far);
    mesh.stop().unwrap();
}
