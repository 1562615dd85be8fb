// SPDX-License-Identifier: Apache-2.0
//! The harness tests itself: pods without a ztunnel, and the node agent with a scripted one.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{IoSliceMut, Read as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use ztunnel_tests::agent::wire;
use ztunnel_tests::cleanup;
use ztunnel_tests::observe::Sniffer;
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Pattern, Server};
use ztunnel_tests::{Mesh, PodSpec};

const SOON: Duration = Duration::from_secs(10);

fn two_nodes() -> Mesh {
    Mesh::builder()
        .pod(PodSpec::unknown("a").on("n1"))
        .pod(PodSpec::unknown("b").on("n1"))
        .pod(PodSpec::unknown("c").on("n2"))
        .build()
        .unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn pods_reach_each_other_over_both_families_and_nothing_is_left() {
    let mesh = two_nodes();
    let prefix = mesh.prefix().to_owned();
    for server in ["b", "c"] {
        let pod = mesh.pod(server);
        let server = Server::echo(pod, 8080).unwrap();
        for to in [pod.addr(8080), pod.addr6(8080)] {
            assert_eq!(mesh.pod("a").dial(to).unwrap().ask(b"hello").unwrap(), b"hello");
        }
        let clients: Vec<IpAddr> = server.peers().iter().map(std::net::SocketAddr::ip).collect();
        assert_eq!(clients, [mesh.pod("a").ip4(), mesh.pod("a").ip6()]);
    }
    mesh.stop().unwrap();
    assert_eq!(cleanup::leaks(&prefix), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_panic_leaves_nothing_behind() {
    let prefix = std::sync::Arc::new(parking_lot::Mutex::new(String::new()));
    let seen = std::sync::Arc::clone(&prefix);
    let panicked = std::thread::spawn(move || {
        let mesh = two_nodes();
        mesh.prefix().clone_into(&mut seen.lock());
        let mut child = mesh.pod("a").command("sleep").arg("1000").spawn().unwrap();
        assert!(child.try_wait().unwrap().is_some(), "on purpose");
    });
    assert!(panicked.join().is_err());
    assert_eq!(cleanup::leaks(&prefix.lock()), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn streams_are_checked_byte_by_byte_in_every_order_of_closing() {
    let mesh = two_nodes();
    let sides = Sides::client(1, 3_000_001, 2_000_003);
    for (port, client, server) in [
        (1, stream::duplex as fn(&Conn, Sides) -> _, stream::duplex as fn(&Conn, Sides) -> _),
        (2, stream::speak_first, stream::listen_first),
        (3, stream::listen_first, stream::speak_first),
    ] {
        let running =
            Server::start(mesh.pod("c"), port, move |conn| server(&conn, sides.reversed())).unwrap();
        client(&mesh.pod("a").dial(mesh.pod("c").addr(port)).unwrap(), sides).unwrap();
        running.expect_finished(1, SOON).unwrap();
    }
    let wrong = Server::start(mesh.pod("c"), 4, |conn| stream::send(&conn, (Pattern(2), 5000))).unwrap();
    let conn = mesh.pod("a").dial(mesh.pod("c").addr(4)).unwrap();
    let error = stream::receive(&conn, (Pattern(1), 5000)).unwrap_err();
    assert!(error.to_string().contains("a wrong byte at 0"), "{error:#}");
    drop(wrong);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_sniffer_sees_what_crosses_between_nodes_and_only_that() {
    let mesh = two_nodes();
    let needle = b"find this in the wire";
    let sniffer = Sniffer::start(mesh.wire(), needle).unwrap();
    let near = Server::echo(mesh.pod("b"), 7001).unwrap();
    mesh.pod("a").dial(mesh.pod("b").addr(7001)).unwrap().ask(needle).unwrap();
    let far = Server::echo(mesh.pod("c"), 7002).unwrap();
    for to in [mesh.pod("c").addr(7002), mesh.pod("c").addr6(7002)] {
        mesh.pod("a").dial(to).unwrap().ask(needle).unwrap();
    }
    sniffer.wait_for_packets().unwrap();
    let capture = sniffer.stop();
    assert_eq!(capture.bytes_with_port(7001), 0, "traffic within a node crossed the wire");
    assert!(capture.bytes_with_port(7002) > 0);
    assert_eq!(capture.sightings.len(), 4, "both directions of two connections: {:?}", capture.sightings);
    assert_eq!(capture.between(mesh.pod("a").ip4(), mesh.pod("c").ip4()).count(), 2);
    drop((near, far));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_captured_pod_without_a_proxy_reaches_nobody() {
    let mesh =
        Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::unknown("b")).pod(PodSpec::plain("c")).build();
    let mesh = mesh.unwrap();
    let server = Server::echo(mesh.pod("b"), 8080).unwrap();
    let captured = Server::echo(mesh.pod("a"), 8080).unwrap();
    for (from, to) in [("a", "b"), ("b", "a")] {
        for to in [mesh.pod(to).addr(8080), mesh.pod(to).addr6(8080)] {
            let error = mesh.pod(from).dial(to).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{from} to {to}");
        }
    }
    assert!(mesh.pod("c").dial(mesh.pod("b").addr(8080)).is_ok());
    drop((server, captured));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn programs_run_in_the_pod_and_in_its_cgroup() {
    let mesh = two_nodes();
    let output = mesh.pod("b").command("ip").args(["-4", "-o", "addr", "show", "eth0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(&mesh.pod("b").ip4().to_string()), "{output:?}");
    let mut child = mesh.pod("b").command("sleep").arg("1000").spawn().unwrap();
    ztunnel_tests::wait::until("the program in its cgroup", SOON, || {
        mesh.pod("b").cgroup().processes().contains(&child.id())
    })
    .unwrap();
    mesh.pod("b").cgroup().kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// Has something of everything, until a signal ends the process.
fn wait_with_a_mesh() -> ! {
    let mesh = two_nodes();
    let mut sleeper = mesh.pod("a").command("sleep").arg("1000").spawn().unwrap();
    sleeper.wait().unwrap();
    // Killed by the cleanup, which ends this process next.
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_signal_removes_everything() {
    const CHILD: &str = "ZTUNNEL_TESTS_WAIT_FOR_A_SIGNAL";
    if std::env::var_os(CHILD).is_some() {
        wait_with_a_mesh();
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "a_signal_removes_everything"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let prefix = format!("zt{}-0", child.id());
    let pod = std::path::Path::new("/run/netns").join(format!("{prefix}-c"));
    ztunnel_tests::wait::until("the mesh of the child", SOON, || pod.exists()).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(cleanup::leaks(&prefix), Vec::<String>::new());
}

/// A ztunnel that plays its part of ZDS: says hello, acknowledges everything.
struct Scripted(Socket);

impl Scripted {
    fn connect(path: &std::path::Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.send(&wire::HELLO).unwrap();
        Self(socket)
    }

    /// The next request, and how many descriptors came with it.
    fn next(&self) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; 1024];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let length = message.bytes;
        let mut descriptors = 0;
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                for raw in received {
                    descriptors += 1;
                    nix::unistd::close(raw).unwrap();
                }
            }
        }
        bytes.truncate(length);
        (bytes, descriptors)
    }

    fn ack(&self) {
        self.0.send(&[0x0a, 0x00]).unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_node_agent_keeps_to_the_protocol() {
    let mesh =
        Mesh::builder().pod(PodSpec::mesh("a")).pod(PodSpec::mesh("b").not_enrolled()).build().unwrap();
    let agent = mesh.node("n1").agent();
    let expected_add = mesh.pod("a").enrolled().packet();
    for round in 1..=2 {
        let ztunnel = Scripted::connect(agent.path());
        assert_eq!(ztunnel.next(), (expected_add.clone(), 1));
        ztunnel.ack();
        assert_eq!(ztunnel.next(), (wire::SNAPSHOT_SENT.to_vec(), 0));
        ztunnel.ack();
        agent.wait_snapshots(round, SOON).unwrap();
        std::thread::scope(|scope| {
            let added = scope.spawn(|| agent.add(mesh.pod("b").enrolled()));
            assert_eq!(ztunnel.next(), (mesh.pod("b").enrolled().packet(), 1));
            ztunnel.ack();
            assert_eq!(added.join().unwrap().unwrap(), Some(String::new()));
            let deleted = scope.spawn(|| agent.delete("uid-b"));
            assert_eq!(ztunnel.next(), (wire::del("uid-b"), 0));
            ztunnel.ack();
            assert_eq!(deleted.join().unwrap().unwrap(), [String::new()]);
        });
        agent.pause();
        assert_eq!((&ztunnel.0).read(&mut [0; 8]).unwrap(), 0, "a restarting agent hangs up");
        agent.resume().unwrap();
    }
    agent.edit(|pods| pods.values_mut().for_each(|pod| pod.netns = None));
    let ztunnel = Scripted::connect(agent.path());
    assert_eq!(ztunnel.next(), (wire::keep("uid-a"), 0));
}
