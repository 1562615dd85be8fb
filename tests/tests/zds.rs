// SPDX-License-Identifier: Apache-2.0
//! The conversation with the node agent: broken packets, pods that come and go, agents that restart.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use ztunnel_tests::agent::raw::{RawConnection, RawListener};
use ztunnel_tests::agent::{Enrolled, wire};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Netns, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);

/// Two pods, a ztunnel, and the test in the place of the node agent.
fn raw() -> (Mesh, RawListener) {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b")).build().unwrap();
    let node = mesh.node("n1");
    node.agent().pause();
    let listener = RawListener::bind(node.agent().path()).unwrap();
    node.launch().unwrap();
    (mesh, listener)
}

fn accept(listener: &RawListener) -> RawConnection {
    let connection = listener.accept(SOON).unwrap().unwrap();
    connection.expect_hello().unwrap();
    connection
}

fn add(connection: &RawConnection, pod: &Enrolled) -> String {
    let netns = pod.netns.clone().unwrap();
    connection.ask(&pod.packet(), &[netns.handle()]).unwrap()
}

fn started(node: &Node) -> f64 {
    node.metrics().unwrap().sum("workload_manager_proxies_started_total", &[])
}

/// Asks the pod's server from another pod; true if it answers.
fn answers(mesh: &Mesh, from: &str, to: &str) -> bool {
    let asked = mesh.pod(from).dial(mesh.pod(to).addr(8080)).and_then(|conn| conn.ask(b"hello"));
    asked.is_ok_and(|answer| answer == b"hello")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn readiness_follows_the_snapshot_and_the_connection() {
    let (mesh, listener) = raw();
    let node = mesh.node("n1");
    let connection = accept(&listener);
    assert_eq!(add(&connection, &mesh.pod("a").enrolled()), "");
    assert!(!node.is_ready(), "ready before the snapshot is complete");
    assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
    node.wait_ready(SOON).unwrap();
    // Nothing unsolicited: the agent would hang up.
    assert!(connection.receive(Duration::from_millis(300)).is_err(), "ztunnel spoke without being asked");
    drop(connection);
    wait::until("not ready without an agent", SOON, || !node.is_ready()).unwrap();
    let again = accept(&listener);
    assert_eq!(again.ask(&wire::keep("uid-a"), &[]).unwrap(), "");
    assert_eq!(again.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
    node.wait_ready(SOON).unwrap();
    assert!((started(node) - 1.0).abs() < 0.5, "a kept pod was started again");
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_unreadable_packet_is_answered_and_the_connection_starts_anew() {
    let (mesh, listener) = raw();
    let node = mesh.node("n1");
    let a = mesh.pod("a").enrolled();
    let netns = mesh.pod("a").netns();
    let two = [netns.handle(), mesh.pod("b").netns().handle()];
    let long = wire::keep(&"x".repeat(1100));
    for (what, packet, descriptors) in [
        ("no protobuf", b"\xff\xff\xff\xff".to_vec(), &two[..0]),
        ("an unknown request", vec![0x22, 0x00], &two[..0]),
        ("an add without a descriptor", a.packet(), &two[..0]),
        ("an add with two descriptors", a.packet(), &two[..]),
        ("a keep with a descriptor", wire::keep("uid-a"), &two[..1]),
        ("more than 1024 bytes", long, &two[..0]),
    ] {
        let connection = accept(&listener);
        let answer = connection.ask(&packet, descriptors).unwrap();
        assert!(answer.starts_with("failure to read message"), "{what}: {answer:?}");
        assert_eq!(connection.receive(SOON).unwrap(), None, "{what}: the connection must end");
        assert_eq!(node.exit_status(), None, "{what}: ztunnel must go on");
    }
    let connection = accept(&listener);
    assert_eq!(add(&connection, &a), "");
    assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
    node.wait_ready(SOON).unwrap();
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn breaking_the_protocol_ends_the_process_with_an_error() {
    /// Breaks the protocol and gives the answer.
    type Offend = fn(&RawConnection, &Mesh) -> String;
    let cases: [(&str, Offend); 3] = [
        ("an add without saying who it is", |connection, mesh| {
            connection.ask(&wire::add_without_info("u"), &[mesh.pod("a").netns().handle()]).unwrap()
        }),
        ("a keep after the snapshot", |connection, _| {
            assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
            connection.ask(&wire::keep("u"), &[]).unwrap()
        }),
        ("a second snapshot", |connection, _| {
            assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
            connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap()
        }),
    ];
    for (what, offend) in cases {
        let (mesh, listener) = raw();
        let connection = accept(&listener);
        let answer = offend(&connection, &mesh);
        assert!(answer.starts_with("failure to process message"), "{what}: {answer:?}");
        let status = mesh.node("n1").wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(1), "{what}");
        mesh.stop().unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_descriptor_that_is_no_namespace_fails_that_pod_alone() {
    let (mesh, listener) = raw();
    let node = mesh.node("n1");
    let connection = accept(&listener);
    let nonsense = File::open("/dev/null").unwrap();
    let bogus = wire::add("uid-x", "x", "demo", "x");
    let answer = connection.ask(&bogus, &[nonsense.as_fd()]).unwrap();
    assert!(answer.starts_with("failure to start proxy"), "{answer:?}");
    assert_eq!(add(&connection, &mesh.pod("a").enrolled()), "");
    assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
    let response = node.get(15021, "/healthz/ready").unwrap();
    assert_eq!(response.status, 500, "ready with a pod pending: {}", response.body);
    assert_eq!(connection.ask(&wire::del("uid-x"), &[]).unwrap(), "");
    node.wait_ready(SOON).unwrap();
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_whose_ports_are_taken_is_pending_until_they_are_free_or_it_is_deleted() {
    let (mesh, listener) = raw();
    let node = mesh.node("n1");
    let connection = accept(&listener);
    let squatters = [mesh.pod("a").listen(15008).unwrap(), mesh.pod("b").listen(15001).unwrap()];
    for name in ["a", "b"] {
        let answer = add(&connection, &mesh.pod(name).enrolled());
        assert!(answer.starts_with("failure to start proxy"), "{name}: {answer:?}");
    }
    assert_eq!(connection.ask(&wire::SNAPSHOT_SENT, &[]).unwrap(), "");
    let not_ready = || node.get(15021, "/healthz/ready").unwrap();
    assert_eq!(not_ready().status, 500, "ready with two pods pending");
    assert_eq!(connection.ask(&wire::del("uid-b"), &[]).unwrap(), "");
    assert_eq!(not_ready().status, 500, "ready with a pod pending");
    drop(squatters);
    // Tried again every five seconds.
    node.wait_ready(SOON).unwrap();
    assert!((started(node) - 1.0).abs() < 0.5, "a deleted pod was started");
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_whose_namespace_is_gone_harms_nobody() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b")).start().unwrap();
    let server = Server::echo(mesh.pod("b"), 8080).unwrap();
    // A pod that is gone from the machine before the agent has told: only the descriptor holds its namespace.
    let gone = Netns::create(&format!("{}-gone", mesh.prefix())).unwrap();
    let pod = Enrolled {
        uid: "uid-gone".to_owned(),
        name: "gone".to_owned(),
        namespace: "demo".to_owned(),
        service_account: "gone".to_owned(),
        netns: Some(gone.clone()),
    };
    let path = gone.path();
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(mesh.node("n1").agent().add(pod).unwrap(), Some(String::new()));
    drop(gone);
    assert!(answers(&mesh, "a", "b"));
    assert_eq!(mesh.node("n1").agent().delete("uid-gone").unwrap(), [String::new()]);
    assert_eq!(mesh.node("n1").agent().delete("uid-never-seen").unwrap(), [String::new()]);
    assert!(mesh.node("n1").is_ready() && answers(&mesh, "a", "b"));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_deleted_pods_connections_are_cut_and_a_new_add_serves_it_again() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b").on("n2")).start().unwrap();
    let server = Server::echo(mesh.pod("b"), 8080).unwrap();
    let agent = mesh.node("n1").agent();
    for round in 1..=3 {
        let open = mesh.pod("a").dial(mesh.pod("b").addr(8080)).unwrap();
        assert_eq!(open.ask(b"before").unwrap(), b"before");
        assert_eq!(agent.delete("uid-a").unwrap(), [String::new()]);
        assert!(open.ends_within(SOON), "round {round}: a deleted pod's connection goes on");
        // Each worker closes its own listeners, in the background.
        let refused = || {
            let dialed = mesh.pod("a").dial(mesh.pod("b").addr(8080));
            dialed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        wait::until("closed ports", SOON, refused).unwrap();
        assert_eq!(agent.add(mesh.pod("a").enrolled()).unwrap(), Some(String::new()));
        assert!(answers(&mesh, "a", "b"), "round {round}: not served again");
        // The same pod again is acknowledged and changes nothing.
        assert_eq!(agent.add(mesh.pod("a").enrolled()).unwrap(), Some(String::new()));
        assert!(answers(&mesh, "a", "b"));
    }
    assert!((started(mesh.node("n1")) - 4.0).abs() < 0.5, "{} starts", started(mesh.node("n1")));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_restarted_agents_snapshot_is_reconciled_without_cutting_what_stays() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b")).pod(PodSpec::mesh("c"));
    let mesh = mesh.start().unwrap();
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    let stays = mesh.pod("a").dial(mesh.pod("c").addr(8080)).unwrap();
    let goes = mesh.pod("b").dial(mesh.pod("c").addr(8080)).unwrap();
    assert_eq!(goes.ask(b"hello").unwrap(), b"hello");
    node.agent().pause();
    wait::until("not ready without an agent", SOON, || !node.is_ready()).unwrap();
    assert_eq!(stays.ask(b"no agent").unwrap(), b"no agent");
    assert!(answers(&mesh, "a", "c"), "new connections must work without an agent");
    node.agent().edit(|pods| {
        pods.remove("uid-b");
        // The agent has lost sight of this pod's namespace: it says keep.
        pods.get_mut("uid-c").unwrap().netns = None;
    });
    node.agent().resume().unwrap();
    node.wait_ready(Duration::from_secs(20)).unwrap();
    assert!(goes.ends_within(SOON), "a pod that is missing from the snapshot is still served");
    assert_eq!(stays.ask(b"after").unwrap(), b"after", "a pod that stays was cut");
    assert!(answers(&mesh, "a", "c"));
    assert!((started(node) - 3.0).abs() < 0.5, "pods that stay were started again");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_with_a_new_namespace_is_served_in_the_new_one() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b").not_enrolled());
    let mesh = mesh.start().unwrap();
    let agent = mesh.node("n1").agent();
    // A sandbox that was made again: the UID stays, the namespace is another.
    let renewed = Enrolled { netns: Some(mesh.pod("b").netns().clone()), ..mesh.pod("a").enrolled() };
    assert_eq!(agent.add(renewed).unwrap(), Some(String::new()));
    let listens = |name: &str| mesh.pod(name).run(|| std::net::TcpStream::connect("127.0.0.1:15006").is_ok());
    wait::until("listeners in the new namespace only", SOON, || listens("b") && !listens("a")).unwrap();
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn without_shared_ports_all_workers_take_from_the_same_sockets() {
    let mesh = Mesh::builder().env("INPOD_PORT_REUSE", "false").env("ZTUNNEL_WORKER_THREADS", "3");
    let mesh = mesh.pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b")).start().unwrap();
    let server = Server::echo(mesh.pod("b"), 8080).unwrap();
    assert!((0..20).all(|_| answers(&mesh, "a", "b")));
    let holders = mesh.pod("b").command("ss").args(["-tlnH", "sport = :15008"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&holders.stdout).lines().count(), 1, "one listener");
    drop(server);
    mesh.stop().unwrap();
}
