// SPDX-License-Identifier: Apache-2.0
//! Somebody else on the node uses sockmaps as well: before us, after us, in the middle of a stream.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::sock::SockMapFd;
use aya::maps::{MapError, SockHash};
use aya::programs::{CgroupAttachMode, SkMsg, SkSkb, SockOps};
use aya::{Ebpf, EbpfLoader};
use ztunnel_tests::cgroup::Cgroup;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_effect;
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Pattern, Server};
use ztunnel_tests::{Mesh, Mode, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

fn mesh(mode: Mode) -> Mesh {
    start(Mesh::builder().mode(mode))
}

fn start(builder: MeshBuilder) -> Mesh {
    let mesh = builder
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .start()
        .unwrap();
    in_effect(&mesh, mesh.mode()).unwrap();
    mesh
}

/// The other user: its programs let everything pass. Gone when dropped.
struct Foreign(Ebpf);

impl Foreign {
    fn load() -> Result<Self> {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/foreign.o");
        let mut object = EbpfLoader::new()
            .load_file(&object)
            .with_context(|| format!("load {} (`cargo xtask build-ebpf` makes it)", object.display()))?;
        let map = |object: &Ebpf, name: &str| -> Result<SockMapFd> {
            let map = object.map(name).with_context(|| format!("no map {name}"))?;
            Ok(SockHash::<_, u64>::try_from(map)?.fd().try_clone()?)
        };
        let (bytes, parsed) = (map(&object, "BYTES")?, map(&object, "PARSED")?);
        let messages = map(&object, "MESSAGES")?;
        let parser: &mut SkSkb = object.program_mut("foreign_parser").context("no program")?.try_into()?;
        parser.load()?;
        parser.attach(&parsed)?;
        let verdict: &mut SkSkb = object.program_mut("foreign_bytes").context("no program")?.try_into()?;
        verdict.load()?;
        verdict.attach(&bytes)?;
        verdict.attach(&parsed)?;
        let message: &mut SkMsg = object.program_mut("foreign_message").context("no program")?.try_into()?;
        message.load()?;
        message.attach(&messages)?;
        Ok(Self(object))
    }

    /// Takes part in one socket, by the map `MESSAGES` (what it sends), `BYTES` or `PARSED` (what it receives).
    fn join(&mut self, map: &str, key: u64, socket: &TcpStream) -> Result<(), MapError> {
        let map = self.0.map_mut(map).expect("the object has this map");
        SockHash::<_, u64>::try_from(map)?.insert(key, socket.as_raw_fd(), 0)
    }

    fn leave(&mut self, map: &str, key: u64) -> Result<(), MapError> {
        let map = self.0.map_mut(map).expect("the object has this map");
        SockHash::<_, u64>::try_from(map)?.remove(&key)
    }

    /// Puts every connection that programs of this group open into `MESSAGES`, before anybody above it is asked.
    fn enter_from(&mut self, cgroup: &Cgroup) -> Result<()> {
        let enter: &mut SockOps = self.0.program_mut("foreign_enter").context("no program")?.try_into()?;
        enter.load()?;
        enter.attach(File::open(cgroup.path())?, CgroupAttachMode::Single)?;
        Ok(())
    }
}

/// What flows both ways at once, again and again, and at the end once more.
const BLOCK: Sides = Sides { send: (Pattern(71), 700_001), expect: (Pattern(72), 600_007) };

fn block(conn: &Conn, sides: Sides) -> Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream::send(conn, sides.send));
        stream::receive(conn, sides.expect)?;
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Serves blocks as long as the client asks for more.
fn serve_blocks(mut conn: &Conn) -> Result<()> {
    loop {
        let mut more = [0];
        conn.read_exact(&mut more)?;
        if more == [0] {
            return stream::duplex(conn, BLOCK.reversed());
        }
        block(conn, BLOCK.reversed())?;
    }
}

/// Asks for blocks until `enough`, and a few more.
fn ask_for_blocks(mut conn: &Conn, enough: &AtomicBool) -> Result<()> {
    for left in (0..3).rev() {
        while left == 2 && !enough.load(Ordering::Acquire) {
            conn.write_all(&[1])?;
            block(conn, BLOCK)?;
        }
        conn.write_all(&[1])?;
        block(conn, BLOCK)?;
    }
    conn.write_all(&[0])?;
    stream::duplex(conn, BLOCK)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_foreign_verdict_that_joins_in_mid_stream_changes_no_byte() {
    // Without the fast path as well: what goes wrong there would be between the kernel and the foreign user.
    for mode in [Mode::Off, Mode::Full] {
        let mesh = mesh(mode);
        let node = mesh.node("n1");
        let mut foreign = Foreign::load().unwrap();
        // Not with a parser: one that joins while bytes are waiting stalls the stream, without a fast path as well.
        for (round, name) in (0..).zip(["near", "far", "near", "far"]) {
            let server = Server::start(mesh.pod(name), 8080, |conn| serve_blocks(&conn)).unwrap();
            let redirected = || node.fastpath_counter("redirected_bytes").unwrap_or(0);
            let before = redirected();
            let conn = mesh.pod("client").dial(mesh.pod(name).addr(8080)).unwrap();
            let joined = AtomicBool::new(false);
            let result = std::thread::scope(|scope| {
                let streaming = scope.spawn(|| ask_for_blocks(&conn, &joined));
                let flows = || mode == Mode::Off || redirected() > before + (256 << 10);
                let joining = wait::until("bytes on the fast path", SOON, flows)
                    .and_then(|()| Ok(foreign.join("BYTES", round, conn.stream())?));
                joined.store(true, Ordering::Release);
                let streamed = streaming.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                joining.and(streamed)
            });
            result.unwrap_or_else(|error| panic!("{mode}, {name}: {error:#}"));
            server.expect_finished(1, LONG).unwrap();
        }
        if mode == Mode::Full {
            assert!(node.fastpath_counter("passed/foreign").unwrap() > 0, "{}", node.status().unwrap());
        }
        drop(foreign);
        mesh.stop().unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn where_a_foreign_verdict_was_nothing_is_redirected_any_more() {
    let mesh = mesh(Mode::Full);
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("near"), 8080).unwrap();
    let mut foreign = Foreign::load().unwrap();
    for map in ["BYTES", "PARSED"] {
        let conn = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
        // Each question and each answer crosses two hops: four messages, of which the client receives one.
        let counts = || {
            let count = |name| node.fastpath_counter(name).unwrap();
            let before = (count("redirected_messages"), count("passed/foreign"));
            for round in 0..50_u8 {
                assert_eq!(conn.ask(&[round; 700]).unwrap(), [round; 700]);
            }
            (count("redirected_messages") - before.0, count("passed/foreign") - before.1)
        };
        let (redirected, passed) = counts();
        assert!(redirected >= 190 && passed == 0, "{redirected} of 200, with nobody else");
        foreign.join(map, 1, conn.stream()).unwrap();
        let (redirected, passed) = counts();
        assert!(redirected >= 140 && passed == 50, "{redirected} of 200, {passed} passed, in {map}");
        // What it took may still be on its way when it has gone.
        foreign.leave(map, 1).unwrap();
        let (redirected, passed) = counts();
        assert!(redirected >= 140 && passed == 50, "{redirected} of 200, {passed} passed, after {map}");
    }
    drop((foreign, server));
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_foreign_message_program_that_comes_later_is_turned_away_and_disturbs_nothing() {
    let mesh = mesh(Mode::Full);
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("near"), 8080).unwrap();
    let mut foreign = Foreign::load().unwrap();
    let conn = mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap();
    let before = node.fastpath_counter("redirected_messages").unwrap();
    for round in 0..100_u8 {
        let refused = foreign.join("MESSAGES", 1, conn.stream()).unwrap_err();
        let MapError::SyscallError(refused) = refused else { panic!("{refused}") };
        assert_eq!(refused.io_error.raw_os_error(), Some(nix::libc::EBUSY));
        assert_eq!(conn.ask(&[round; 900]).unwrap(), [round; 900]);
    }
    let redirected = node.fastpath_counter("redirected_messages").unwrap() - before;
    assert!(redirected >= 390, "{redirected} of 400 messages took the fast path");
    drop((foreign, server));
    mesh.stop().unwrap();
}

/// Reads a request's head and answers with the pattern.
fn serve(conn: &Conn, body: (Pattern, u64)) -> Result<()> {
    let mut reader = BufReader::new(conn);
    let mut line = String::new();
    while line.trim_end() != "" || line.is_empty() {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "an early end of the request");
    }
    let mut writer = conn;
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.1)?;
    stream::send(conn, body)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn sockets_that_a_foreign_message_program_holds_stay_on_tcp_and_the_log_says_why() {
    const BODY: (Pattern, u64) = (Pattern(81), 3 << 20 | 1);
    let logging = "info,ztunnel::fastpath=debug";
    let mesh = start(Mesh::builder().mode(Mode::Full).env("EBPF_DEBUG", "true").env("RUST_LOG", logging));
    let (node, client) = (mesh.node("n1"), mesh.pod("client"));
    let mut foreign = Foreign::load().unwrap();
    foreign.enter_from(client.cgroup()).unwrap();
    for name in ["near", "far"] {
        let server = Server::start(mesh.pod(name), 8080, |conn| serve(&conn, BODY)).unwrap();
        let url = format!("http://{}:8080/", mesh.pod(name).ip4());
        let output = client.command("curl").args(["-sS", "-m", "60", &url]).output().unwrap();
        assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout.len() as u64, BODY.1);
        assert_eq!(BODY.0.first_wrong(0, &output.stdout), None, "a wrong byte");
        server.expect_finished(1, SOON).unwrap();
    }
    assert_eq!(node.fastpath_counter("not_paired/busy").unwrap(), 2, "{}", node.status().unwrap());
    wait::until("both log lines with the reason", SOON, || {
        let log = node.access_log();
        let by_tcp = [("direction", "outbound"), ("path", "tcp"), ("path.reason", "busy")];
        log.iter().filter(|entry| entry.is(&by_tcp)).count() == 2
    })
    .unwrap();
    // And with EBPF_DEBUG so do the programs.
    wait::until("both lines of the programs", SOON, || {
        node.stdout().matches("not paired: busy").count() == 2
    })
    .unwrap();
    drop(foreign);
    mesh.stop().unwrap();
}
