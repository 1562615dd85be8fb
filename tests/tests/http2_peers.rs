// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 peers that are odd, and peers that are hostile: as the client of a pod's HBONE port, and as the HBONE port
//! that a pod's connections go to. What is legal works, what is not is refused, and nobody else notices.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::peer::frames::{self, ACK, END_HEADERS, END_STREAM, Frame, Kind, code, setting};
use ztunnel_tests::peer::{Authority, Credentials, RawPeer};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Mode, Pod, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(10);
const APP: u16 = 8080;

/// A captured pod whose HBONE port the peer dials, a neighbor who must not notice, and the peer.
fn served() -> MeshBuilder {
    Mesh::builder()
        .env("ZTUNNEL_WORKER_THREADS", "1")
        .pod(PodSpec::mesh("server").on("n1"))
        .pod(PodSpec::mesh("neighbor").on("n1"))
        .pod(PodSpec::unknown("peer").on("n2"))
}

/// One thing that a client does.
type Part = (&'static str, fn(&Client<'_>) -> Result<()>);

/// The peer as a client.
struct Client<'a> {
    mesh: &'a Mesh,
    credentials: Credentials,
    app: String,
}

impl<'a> Client<'a> {
    fn new(mesh: &'a Mesh) -> Result<Self> {
        let credentials = Authority::open(&mesh.ca_dir())?.issue("spiffe://cluster.local/ns/demo/sa/peer")?;
        Ok(Self { mesh, credentials, app: mesh.pod("server").addr(APP).to_string() })
    }

    fn dial(&self, settings: &[(u16, u32)]) -> Result<RawPeer> {
        RawPeer::dial(self.mesh.pod("peer"), self.mesh.pod("server").addr(15008), &self.credentials, settings)
    }

    /// A tunnel with one open stream.
    fn open(&self, settings: &[(u16, u32)]) -> Result<RawPeer> {
        let mut peer = self.dial(settings)?;
        peer.connect(1, &self.app)?;
        Ok(peer)
    }
}

/// Sends on a stream and expects the echo.
fn echo(peer: &mut RawPeer, stream: u32, text: &[u8]) -> Result<()> {
    peer.send(&[Frame::data(stream, text)])?;
    let answer = peer.read(stream, text.len())?;
    ensure!(answer == text, "another echo: {answer:?}");
    Ok(())
}

/// Ends our direction of a stream, and expects the other one to end.
fn finish(peer: &mut RawPeer, stream: u32) -> Result<()> {
    peer.send(&[Frame::data(stream, b"").with(END_STREAM)])?;
    ended(peer, stream)
}

fn ended(peer: &mut RawPeer, stream: u32) -> Result<()> {
    let last = peer.until("the end of the stream", |frame| {
        frame.stream == stream
            && (frame.has(END_STREAM) && frame.kind == Kind::Data || frame.kind == Kind::RstStream)
    })?;
    ensure!(last.kind == Kind::Data, "reset instead of an end: {last:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_client_may_be_as_odd_as_http2_allows() {
    in_every_mode(served, |mesh| {
        let server = Server::echo(mesh.pod("server"), APP)?;
        let client = Client::new(mesh)?;
        let parts: [Part; 7] = [
            ("windows of one byte", windows_of_one_byte),
            ("no window at first", no_window_at_first),
            ("settings that change in mid-stream", settings_in_mid_stream),
            ("headers in pieces", headers_in_pieces),
            ("trailers end a request", trailers_end_a_request),
            ("goodbye in mid-stream", goodbye_in_mid_stream),
            ("pings and priorities between", frames_between),
        ];
        for (name, part) in parts {
            part(&client).context(name)?;
        }
        server.expect_finished(parts.len(), SOON)
    })
    .unwrap();
}

fn windows_of_one_byte(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[(setting::INITIAL_WINDOW_SIZE, 1)])?;
    peer.send(&[Frame::data(1, b"drop by drop")])?;
    for expected in b"drop by drop" {
        let came = peer.read(1, 1)?;
        ensure!(came == [*expected], "{came:?} for a window of one byte");
        peer.send(&[Frame::window(1, 1)])?;
    }
    finish(&mut peer, 1)
}

fn no_window_at_first(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[(setting::INITIAL_WINDOW_SIZE, 0)])?;
    peer.send(&[Frame::data(1, b"patience")])?;
    let early = peer.settle()?;
    ensure!(early.iter().all(|frame| frame.kind != Kind::Data), "data without a window: {early:?}");
    peer.send(&[Frame::window(1, 3)])?;
    ensure!(peer.read(1, 3)? == b"pat");
    peer.send(&[Frame::window(1, 1000)])?;
    ensure!(peer.read(1, 5)? == b"ience");
    finish(&mut peer, 1)
}

fn settings_in_mid_stream(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[])?;
    echo(&mut peer, 1, b"before")?;
    let window = |size| Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, size)]);
    let many: Vec<Frame> = (0..1000).map(|n| window(65_535 - n % 7)).collect();
    for part in many.chunks(50) {
        peer.send(part)?;
        for _ in part {
            peer.until("an acknowledgement", |frame| frame.kind == Kind::Settings && frame.has(ACK))?;
        }
    }
    echo(&mut peer, 1, b"after a thousand")?;
    // Six and sixteen bytes are used: the window is below zero now.
    peer.send(&[window(0)])?;
    peer.send(&[Frame::data(1, b"wait")])?;
    let early = peer.settle()?;
    ensure!(early.iter().all(|frame| frame.kind != Kind::Data), "data beyond the window: {early:?}");
    peer.send(&[window(65_535), Frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, 0)])])?;
    ensure!(peer.read(1, 4)? == b"wait");
    finish(&mut peer, 1)
}

fn headers_in_pieces(client: &Client<'_>) -> Result<()> {
    let mut peer = client.dial(&[])?;
    let block = [frames::connect(&client.app), frames::field("baggage", "service.name=odd")].concat();
    // As many as there may be for a block of this size.
    peer.send(&Frame::pieces(1, &block, block.len().div_ceil(5)))?;
    peer.accepted(1)?;
    echo(&mut peer, 1, b"in pieces")?;
    finish(&mut peer, 1)
}

fn trailers_end_a_request(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[])?;
    echo(&mut peer, 1, b"and then")?;
    peer.send(&[Frame::headers(1, frames::field("x-sum", "1")).with(END_STREAM)])?;
    ended(&mut peer, 1)
}

fn goodbye_in_mid_stream(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[])?;
    peer.send(&[Frame::goaway(0, code::NO_ERROR)])?;
    echo(&mut peer, 1, b"still to say")?;
    finish(&mut peer, 1)?;
    // Nothing is left to be said on this connection.
    peer.end().map(drop)
}

fn frames_between(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[])?;
    let unknown = Frame::new(Kind::Other, 0xff, 1, *b"whatever");
    let priority = Frame::new(Kind::Priority, 0, 1, [0, 0, 0, 0, 16]);
    for round in 0..200 {
        peer.send(&[Frame::ping(round), unknown.clone(), priority.clone()])?;
        peer.until("a pong", |frame| frame.payload == round.to_be_bytes() && frame.has(ACK))?;
    }
    echo(&mut peer, 1, b"between pings")?;
    finish(&mut peer, 1)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_hostile_client_hurts_only_itself() {
    in_every_mode_alone(served, |mesh| {
        let server = Server::echo(mesh.pod("server"), APP)?;
        let client = Client::new(mesh)?;
        // Open all the time, through another tunnel to the same pod.
        let witness = mesh.pod("neighbor").dial(mesh.pod("server").addr(APP))?;
        let node = mesh.node("n1");
        let before = node.memory()?.resident;
        let parts: [Part; 10] = [
            ("endless headers", endless_headers),
            ("huge headers", huge_headers),
            ("more streams than allowed", too_many_streams),
            ("rapid resets", rapid_resets),
            ("resets while the application is awaited", resets_while_connecting),
            ("more bytes than allowed", more_than_the_window),
            ("pings without reading", pings_without_reading),
            ("settings without reading", settings_without_reading),
            ("half a frame", half_a_frame),
            ("frames that must not be", forbidden_frames),
        ];
        for (name, part) in parts {
            let started = Instant::now();
            part(&client).context(name)?;
            ensure!(witness.ask(b"unharmed")? == b"unharmed", "{name}");
            ensure!(started.elapsed() < SOON, "{name}: {:?}", started.elapsed());
        }
        let after = node.memory()?.resident;
        ensure!(after < before + (64 << 20), "{before} bytes resident before, {after} after");
        drop(witness);
        wait::until("every connection to be closed", SOON, || {
            node.metrics().is_ok_and(|metrics| metrics.open_connections().abs() < 0.5)
        })?;
        drop(server);
        Ok(())
    })
    .unwrap();
}

/// CONTINUATION without an end: VU#421644.
fn endless_headers(client: &Client<'_>) -> Result<()> {
    let mut peer = client.dial(&[])?;
    let start = Frame::new(Kind::Headers, 0, 1, frames::connect(&client.app));
    peer.send(&[start])?;
    let more = Frame::new(Kind::Continuation, 0, 1, frames::field("x", &"y".repeat(1000)));
    let taken = (0..20_000).take_while(|_| peer.send(std::slice::from_ref(&more)).is_ok()).count();
    ensure!(taken < 20_000, "20 MB of headers were taken");
    peer.end().map(drop)
}

fn huge_headers(client: &Client<'_>) -> Result<()> {
    let mut peer = client.open(&[])?;
    let huge = [frames::connect(&client.app), frames::field("baggage", &"x".repeat(100_000))].concat();
    peer.send(&Frame::pieces(3, &huge, 16_000))?;
    let answer = peer.until("an answer", |frame| frame.stream == 3)?;
    ensure!(!answer.is_ok(), "100 kB of headers were accepted");
    echo(&mut peer, 1, b"the other stream lives")?;
    finish(&mut peer, 1)
}

fn too_many_streams(client: &Client<'_>) -> Result<()> {
    let mut peer = client.dial(&[])?;
    let settings = peer.until("settings", |frame| frame.kind == Kind::Settings && !frame.has(ACK))?;
    let limit = settings
        .payload
        .chunks(6)
        .find(|value| value.starts_with(&[0, 3]))
        .and_then(|value| value.get(2..6)?.try_into().ok().map(u32::from_be_bytes));
    let limit = limit.context("no limit of streams in the settings")?;
    ensure!(limit <= 1000, "{limit} streams");
    for stream in 0..limit {
        peer.connect(1 + 2 * stream, &client.app)?;
    }
    let one_more = 1 + 2 * limit;
    peer.send(&[Frame::headers(one_more, frames::connect(&client.app))])?;
    let refused = peer.until("a refusal", |frame| frame.stream == one_more)?;
    ensure!(
        refused.kind == Kind::RstStream && refused.number(0) == Some(code::REFUSED_STREAM),
        "not refused: {refused:?}"
    );
    echo(&mut peer, 1, b"those who are in stay in")
}

/// CVE-2023-44487: streams that are reset as soon as they are asked for.
fn rapid_resets(client: &Client<'_>) -> Result<()> {
    let mut peer = client.dial(&[])?;
    let block = frames::connect(&client.app);
    for stream in 0..5000 {
        let id = 1 + 2 * stream;
        let both = [Frame::headers(id, block.clone()), Frame::reset(id, code::CANCEL)];
        if peer.send(&both).is_err() {
            // Enough is enough.
            peer.end()?;
            break;
        }
    }
    // Nothing of it is left working.
    let node = client.mesh.node("n1");
    wait::ok("the streams to be over", SOON, || {
        let open = node.metrics()?.open_connections();
        // The witness has a connection at either end.
        ensure!(open < 2.5, "{open} connections are open");
        Ok(())
    })
}

/// An application that takes no connection must not keep what is left of streams that nobody wants any more.
fn resets_while_connecting(client: &Client<'_>) -> Result<()> {
    const PORT: u16 = 8090;
    let (pod, node) = (client.mesh.pod("server"), client.mesh.node("n1"));
    let full = pod.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&pod.addr(PORT).into())?;
        socket.listen(0)?;
        Ok(socket)
    })?;
    let _first = pod.connect(pod.addr(PORT))?;
    let before = node.open_files()?;
    let mut peer = client.dial(&[])?;
    let block = frames::connect(&pod.addr(PORT).to_string());
    let mut stream = 1;
    for _ in 0..50 {
        let ids: Vec<u32> = (0..10).map(|n| stream + 2 * n).collect();
        peer.send(&ids.iter().map(|&id| Frame::headers(id, block.clone())).collect::<Vec<_>>())?;
        // They have been looked at: these are not the resets that are counted.
        peer.settle()?;
        peer.send(&ids.iter().map(|&id| Frame::reset(id, code::CANCEL)).collect::<Vec<_>>())?;
        stream += 20;
    }
    wait::ok("the sockets of streams that were reset to be closed", Duration::from_secs(3), || {
        let open = node.open_files()?;
        ensure!(open < before + 20, "{before} files before, {open} now");
        Ok(())
    })?;
    drop(full);
    Ok(())
}

fn more_than_the_window(client: &Client<'_>) -> Result<()> {
    let node = client.mesh.node("n1");
    let mut peer = client.open(&[])?;
    // Nobody takes the echo: the application stops to read, and the window of the stream fills.
    let piece = Frame::data(1, &vec![7; 16_000]);
    let sent = (0..2048).take_while(|_| peer.send(std::slice::from_ref(&piece)).is_ok()).count();
    let refused = peer.until("a reset", |frame| frame.kind == Kind::RstStream && frame.stream == 1)?;
    ensure!(refused.number(0) == Some(code::FLOW_CONTROL_ERROR), "{refused:?} after {sent} pieces");
    wait::until("a line about it", SOON, || {
        node.access_log().iter().any(|entry| entry.get("error").contains("flow-control"))
    })?;
    // The tunnel itself goes on; the echo that was not taken has used up its window.
    peer.send(&[Frame::window(0, 1 << 20)])?;
    peer.connect(3, &client.app)?;
    echo(&mut peer, 3, b"better now")?;
    finish(&mut peer, 3)
}

fn pings_without_reading(client: &Client<'_>) -> Result<()> {
    flood(client, Frame::ping)
}

fn settings_without_reading(client: &Client<'_>) -> Result<()> {
    flood(client, |_| Frame::settings(&[]))
}

/// Sends what has to be answered and reads no answer: at some point nothing more is taken.
fn flood(client: &Client<'_>, frame: fn(u64) -> Frame) -> Result<()> {
    let mut peer = client.open(&[])?;
    peer.patience(Duration::from_millis(500))?;
    let burst: Vec<Frame> = (0..1000).map(frame).collect();
    let bursts = (0..2000).take_while(|_| peer.send(&burst).is_ok()).count();
    ensure!(bursts < 2000, "two million answers were promised");
    Ok(())
}

fn half_a_frame(client: &Client<'_>) -> Result<()> {
    let node = client.mesh.node("n1");
    let cut = || node.access_log().iter().filter(|entry| entry.get("error").contains("h2 failed")).count();
    let before = cut();
    let mut peer = client.open(&[])?;
    echo(&mut peer, 1, b"whole")?;
    let bytes = Frame::data(1, b"only the beginning").encode();
    peer.bytes(&bytes[..12])?;
    drop(peer);
    wait::until("a line about the stream that was cut", SOON, || cut() > before)
}

fn forbidden_frames(client: &Client<'_>) -> Result<()> {
    let request = || frames::connect(&client.app);
    let cases = [
        ("a stream of the server", vec![Frame::headers(2, request())]),
        ("data without a stream", vec![Frame::data(0, b"x")]),
        ("data of an idle stream", vec![Frame::data(9, b"x")]),
        ("a promise from a client", vec![Frame::new(Kind::PushPromise, END_HEADERS, 1, [0, 0, 0, 2])]),
        ("settings of five bytes", vec![Frame::new(Kind::Settings, 0, 0, [0; 5])]),
        ("a window that overflows", vec![Frame::window(0, 0x7fff_ffff), Frame::window(0, 0x7fff_ffff)]),
        ("a window of nothing", vec![Frame::window(0, 0)]),
        ("too large a frame", vec![Frame::new(Kind::Data, 0, 1, vec![0; 2 << 20])]),
        ("something else within headers", {
            vec![Frame::new(Kind::Headers, 0, 1, request()), Frame::ping(1)]
        }),
        ("headers that are none", vec![Frame::headers(1, vec![0xff; 40])]),
    ];
    for (name, frames) in cases {
        let mut peer = client.dial(&[])?;
        // Refused while we write, or afterwards.
        peer.send(&frames).ok();
        let said = peer.end().context(name)?;
        ensure!(said != Some(code::NO_ERROR), "{name}: {said:?}");
    }
    Ok(())
}

/// A captured pod that dials, and pods that are HBONE without a ztunnel.
fn serving() -> MeshBuilder {
    let peer = |name| PodSpec::mesh(name).on("n1").not_enrolled().not_redirected();
    Mesh::builder()
        .env("ZTUNNEL_WORKER_THREADS", "1")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("server").on("n1"))
        .pod(peer("peer"))
        .pod(peer("silent"))
        .pod(peer("mute"))
        .pod(peer("full"))
}

/// One thing that a server does.
type Deed = (&'static str, fn(&Host<'_>) -> Result<()>);

/// The peer as the HBONE port of a pod.
struct Host<'a> {
    mesh: &'a Mesh,
    pod: &'a Pod,
    listener: TcpListener,
    credentials: Credentials,
}

impl<'a> Host<'a> {
    fn new(mesh: &'a Mesh, name: &str) -> Result<Self> {
        let pod = mesh.pod(name);
        let credentials = Authority::open(&mesh.ca_dir())?.issue(&pod.spiffe())?;
        Ok(Self { mesh, pod, listener: pod.listen(15008)?, credentials })
    }

    fn app(&self) -> SocketAddr {
        self.pod.addr(APP)
    }

    /// The application's connection, which waits for the peer's answer.
    fn dial(&self) -> Result<Conn> {
        Ok(self.mesh.pod("client").dial(self.app())?)
    }

    /// The tunnel that the pod's ztunnel opens next.
    fn tunnel(&self, settings: &[(u16, u32)]) -> Result<RawPeer> {
        RawPeer::accept(&self.listener, &self.credentials, settings)
    }

    /// An application's connection, accepted by the peer, and its stream.
    fn open(&self, settings: &[(u16, u32)]) -> Result<(Conn, RawPeer, u32)> {
        let conn = self.dial()?;
        let mut peer = self.tunnel(settings)?;
        let stream = peer.request()?;
        peer.send(&[Frame::headers(stream, frames::status(200))])?;
        Ok((conn, peer, stream))
    }

    /// Waits for a line of the access log about this pod.
    fn logged(&self, error: &str) -> Result<()> {
        let to = self.app().to_string();
        wait::ok(&format!("a line with `{error}`"), LONG, || {
            let lines = self.mesh.node("n1").access_log();
            let errors: Vec<&str> = lines
                .iter()
                .filter(|entry| entry.is(&[("direction", "outbound"), ("dst.hbone_addr", &to)]))
                .map(|entry| entry.get("error"))
                .collect();
            ensure!(
                errors.iter().any(|said| said.contains(error) && (said.is_empty() == error.is_empty())),
                "{errors:?}"
            );
            Ok(())
        })
    }
}

/// Beyond every time limit of the product.
const LONG: Duration = Duration::from_secs(25);

/// Bytes both ways over a stream.
fn both_ways(conn: &Conn, peer: &mut RawPeer, stream: u32) -> Result<()> {
    let mut app = conn;
    app.write_all(b"to the peer")?;
    ensure!(peer.read(stream, 11)? == b"to the peer");
    peer.send(&[Frame::data(stream, b"to the application")])?;
    let mut came = [0; 18];
    app.read_exact(&mut came)?;
    ensure!(came == *b"to the application");
    Ok(())
}

/// Both sides end the stream properly, and the peer leaves.
fn all_done(conn: &Conn, mut peer: RawPeer, stream: u32) -> Result<()> {
    conn.finish()?;
    ended(&mut peer, stream)?;
    peer.send(&[Frame::data(stream, b"").with(END_STREAM)])?;
    ensure!(conn.read_all()?.is_empty());
    peer.leave()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_server_may_be_as_odd_as_http2_allows() {
    in_every_mode(serving, |mesh| {
        let host = Host::new(mesh, "peer")?;
        let deeds: [Deed; 8] = [
            ("windows that open slowly", windows_that_open_slowly),
            ("settings come late", settings_come_late),
            ("an answer in pieces", an_answer_in_pieces),
            ("an interim answer first", an_interim_answer),
            ("the answer ends the stream", the_answer_ends_the_stream),
            ("trailers end the answer", trailers_end_the_answer),
            ("goodbye in mid-stream", a_server_leaves_in_mid_stream),
            ("goodbye before the answer", a_server_leaves_before_the_answer),
        ];
        for (name, deed) in deeds {
            deed(&host).context(name)?;
        }
        one_stream_at_a_time(&host).context("one stream at a time")?;
        no_more_than_now(&host).context("a limit that falls and rises")
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_answer_arrives_whole_although_its_server_wants_to_hear_no_more() {
    // How much the application has said by then is a matter of time.
    in_every_mode_alone(serving, |mesh| an_answer_before_the_end(&Host::new(mesh, "peer")?)).unwrap();
}

fn windows_that_open_slowly(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[(setting::INITIAL_WINDOW_SIZE, 1)])?;
    let mut app = &conn;
    app.write_all(b"drop by drop")?;
    for expected in b"drop by drop" {
        let came = peer.read(stream, 1)?;
        ensure!(came == [*expected], "{came:?} for a window of one byte");
        peer.send(&[Frame::window(stream, 1)])?;
    }
    peer.send(&[Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)])])?;
    both_ways(&conn, &mut peer, stream)?;
    all_done(&conn, peer, stream)
}

fn settings_come_late(host: &Host<'_>) -> Result<()> {
    let first = host.dial()?;
    let mut peer = RawPeer::accept_silently(&host.listener, &host.credentials)?;
    let stream = peer.request()?;
    // One stream is asked for meanwhile: more might be too many.
    let second = host.dial()?;
    let early = peer.settle()?;
    ensure!(early.iter().all(|frame| frame.kind != Kind::Headers), "a second stream: {early:?}");
    peer.send(&[Frame::settings(&[])])?;
    let other = peer.request()?;
    for accepted in [stream, other] {
        peer.send(&[Frame::headers(accepted, frames::status(200))])?;
    }
    both_ways(&first, &mut peer, stream)?;
    both_ways(&second, &mut peer, other)?;
    second.finish()?;
    ended(&mut peer, other)?;
    peer.send(&[Frame::data(other, b"").with(END_STREAM)])?;
    ensure!(second.read_all()?.is_empty());
    all_done(&first, peer, stream)
}

fn an_answer_in_pieces(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    let answer = [frames::status(200), frames::field("x", "y")].concat();
    peer.send(&Frame::pieces(stream, &answer, answer.len().div_ceil(5)))?;
    both_ways(&conn, &mut peer, stream)?;
    all_done(&conn, peer, stream)
}

fn an_interim_answer(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    for code in [100, 103, 200] {
        peer.send(&[Frame::headers(stream, frames::status(code))])?;
    }
    both_ways(&conn, &mut peer, stream)?;
    all_done(&conn, peer, stream)
}

fn the_answer_ends_the_stream(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    peer.send(&[Frame::headers(stream, frames::status(200)).with(END_STREAM)])?;
    ensure!(conn.read_all()?.is_empty(), "bytes out of nothing");
    // The other direction is still open.
    let mut app = &conn;
    app.write_all(b"one way")?;
    ensure!(peer.read(stream, 7)? == b"one way");
    conn.finish()?;
    ended(&mut peer, stream)?;
    peer.leave()
}

fn trailers_end_the_answer(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    both_ways(&conn, &mut peer, stream)?;
    peer.send(&[Frame::headers(stream, frames::field("x-sum", "1")).with(END_STREAM)])?;
    ensure!(conn.read_all()?.is_empty());
    conn.finish()?;
    ended(&mut peer, stream)?;
    peer.leave()
}

/// As Envoy ends a stream whose answer is complete, whatever the client has still to say: RFC 9113, section 8.1.
fn an_answer_before_the_end(host: &Host<'_>) -> Result<()> {
    const ANSWER: usize = 3 << 20;
    let (conn, mut peer, stream) = host.open(&[])?;
    let piece = Frame::data(stream, &vec![7; 16 << 10]);
    std::thread::scope(|scope| {
        // The application says far more than anybody takes, and reads nothing before it has failed to.
        let speaker = scope.spawn(|| {
            let mut app = &conn;
            let said = (0..1024).take_while(|_| app.write_all(&[1; 16 << 10]).is_ok()).count();
            let mut heard = Vec::new();
            let error = app.read_to_end(&mut heard).err();
            (said, heard.len(), error)
        });
        peer.read(stream, 1)?;
        for _ in 0..ANSWER / piece.payload.len() {
            peer.send(std::slice::from_ref(&piece))?;
        }
        peer.send(&[Frame::data(stream, b"").with(END_STREAM), Frame::reset(stream, code::NO_ERROR)])?;
        let (said, heard, error) = speaker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ensure!(heard == ANSWER, "{heard} of {ANSWER} bytes arrived, after {said} pieces: {error:?}");
        Ok(())
    })?;
    peer.leave()
}

fn a_server_leaves_in_mid_stream(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    both_ways(&conn, &mut peer, stream)?;
    peer.send(&[Frame::goaway(stream, code::NO_ERROR)])?;
    peer.settle()?;
    // What is open goes on, what is new goes elsewhere.
    let (other, another, its) = host.open(&[])?;
    both_ways(&conn, &mut peer, stream)?;
    all_done(&other, another, its)?;
    conn.finish()?;
    ended(&mut peer, stream)?;
    peer.send(&[Frame::data(stream, b"").with(END_STREAM)])?;
    ensure!(conn.read_all()?.is_empty());
    peer.end().map(drop)
}

fn a_server_leaves_before_the_answer(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut first = host.tunnel(&[])?;
    first.request()?;
    // It has not looked at the request: another tunnel may.
    first.send(&[Frame::goaway(0, code::NO_ERROR)])?;
    let mut second = host.tunnel(&[])?;
    let stream = second.request()?;
    // Nor has this one.
    second.send(&[Frame::reset(stream, code::REFUSED_STREAM)])?;
    let mut third = host.tunnel(&[])?;
    let stream = third.request()?;
    third.send(&[Frame::headers(stream, frames::status(200))])?;
    both_ways(&conn, &mut third, stream)?;
    first.end()?;
    second.end()?;
    all_done(&conn, third, stream)
}

/// However many connections come at once, a peer that takes one stream never sees two.
fn one_stream_at_a_time(host: &Host<'_>) -> Result<()> {
    const CONNECTIONS: usize = 4;
    let conns: Vec<Conn> = (0..CONNECTIONS).map(|_| host.dial()).collect::<Result<_>>()?;
    let mut tunnels = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut peer = host.tunnel(&[(setting::MAX_CONCURRENT_STREAMS, 1)])?;
        let stream = peer.request()?;
        let more = peer.settle()?;
        ensure!(more.iter().all(|frame| frame.kind != Kind::Headers), "a second stream: {more:?}");
        peer.send(&[Frame::headers(stream, frames::status(200)), Frame::data(stream, b"hello")])?;
        tunnels.push((peer, stream));
    }
    for conn in &conns {
        let mut hello = [0; 5];
        let mut app = conn;
        app.read_exact(&mut hello)?;
        conn.finish()?;
    }
    for (mut peer, stream) in tunnels {
        ended(&mut peer, stream)?;
        peer.send(&[Frame::data(stream, b"").with(END_STREAM)])?;
        peer.leave()?;
    }
    conns.iter().try_for_each(|conn| {
        ensure!(conn.read_all()?.is_empty());
        Ok(())
    })
}

fn no_more_than_now(host: &Host<'_>) -> Result<()> {
    let (first, mut peer, one) = host.open(&[])?;
    both_ways(&first, &mut peer, one)?;
    let limit = |streams| Frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, streams)]);
    peer.send(&[limit(1)])?;
    peer.settle()?;
    // The tunnel is full now: another one for the next.
    let (second, other, two) = host.open(&[(setting::MAX_CONCURRENT_STREAMS, 1)])?;
    peer.send(&[limit(10)])?;
    peer.settle()?;
    // And now it has room again.
    let third = host.dial()?;
    let three = peer.request()?;
    peer.send(&[Frame::headers(three, frames::status(200))])?;
    both_ways(&third, &mut peer, three)?;
    third.finish()?;
    ended(&mut peer, three)?;
    peer.send(&[Frame::data(three, b"").with(END_STREAM)])?;
    ensure!(third.read_all()?.is_empty());
    all_done(&second, other, two)?;
    all_done(&first, peer, one)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_hostile_server_hurts_only_those_who_call_it() {
    in_every_mode_alone(serving, |mesh| {
        let app = Server::echo(mesh.pod("server"), APP)?;
        let witness = mesh.pod("client").dial(mesh.pod("server").addr(APP))?;
        // Those who make others wait are waited for at the same time.
        let waiting: [(&str, Deed); 3] = [
            ("mute", ("no answer to the request", no_answer)),
            ("silent", ("no word at all", no_word)),
            ("full", ("no stream is allowed", no_stream)),
        ];
        std::thread::scope(|scope| {
            // Time limits know nothing of the fast path: once is enough to wait for them.
            let waiting = waiting.into_iter().filter(|_| mesh.mode() == Mode::Off);
            let waiting: Vec<_> = waiting
                .map(|(pod, (name, deed))| {
                    scope.spawn(move || Host::new(mesh, pod).and_then(|host| deed(&host)).context(name))
                })
                .collect();
            let host = Host::new(mesh, "peer")?;
            let deeds: [Deed; 8] = [
                ("another answer than 200", refusals),
                ("a reset instead of an answer", a_reset_instead),
                ("an answer that is too large", a_huge_answer),
                ("an endless answer", an_endless_answer),
                ("a promise", a_promise),
                ("half a frame", a_server_dies_in_a_frame),
                ("more bytes than allowed", a_server_ignores_the_window),
                ("pings without reading", a_server_floods),
            ];
            for (name, deed) in deeds {
                let started = Instant::now();
                deed(&host).context(name)?;
                ensure!(witness.ask(b"unharmed")? == b"unharmed", "{name}");
                ensure!(started.elapsed() < SOON, "{name}: {:?}", started.elapsed());
            }
            for thread in waiting {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            ensure!(witness.ask(b"unharmed")? == b"unharmed");
            Ok(())
        })?;
        drop(app);
        Ok(())
    })
    .unwrap();
}

/// The application is told at once, and not as if all were well.
fn turned_away(host: &Host<'_>, conn: &Conn, error: &str) -> Result<()> {
    ensure!(conn.ends_within(LONG), "the application's connection stays open");
    host.logged(error)
}

fn no_answer(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    turned_away(host, &conn, "no answer to CONNECT in time")?;
    peer.until("the request to be withdrawn", |frame| frame.kind == Kind::RstStream && frame.stream == stream)
        .map(drop)
}

fn no_word(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let peer = RawPeer::accept_silently(&host.listener, &host.credentials)?;
    turned_away(host, &conn, "http2 handshake failed: no settings in time")?;
    drop(peer);
    Ok(())
}

fn no_stream(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    // Asked for before the settings were known, refused as the settings say.
    for _ in 0..3 {
        let mut peer = host.tunnel(&[(setting::MAX_CONCURRENT_STREAMS, 0)])?;
        match peer.request() {
            Ok(stream) => peer.send(&[Frame::reset(stream, code::REFUSED_STREAM)])?,
            Err(_) => break,
        }
        peer.end()?;
    }
    turned_away(host, &conn, "h2 failed: ")
}

fn refusals(host: &Host<'_>) -> Result<()> {
    for (code, said) in [
        (503, "http status: 503 Service Unavailable"),
        (401, "http status: 401 Unauthorized"),
        (204, "http status: 204 No Content"),
        (302, "http status: 302 Found"),
    ] {
        let conn = host.dial()?;
        let mut peer = host.tunnel(&[])?;
        let stream = peer.request()?;
        peer.send(&[Frame::headers(stream, frames::status(code))])?;
        turned_away(host, &conn, said)?;
        peer.leave()?;
    }
    Ok(())
}

fn a_reset_instead(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    peer.send(&[Frame::reset(stream, code::PROTOCOL_ERROR)])?;
    turned_away(host, &conn, "h2 failed: stream error received: unspecific protocol error detected")?;
    peer.leave()
}

fn a_huge_answer(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    let huge = [frames::status(200), frames::field("x", &"y".repeat(100_000))].concat();
    peer.send(&Frame::pieces(stream, &huge, 16_000))?;
    turned_away(host, &conn, "h2 failed: ")?;
    peer.send(&[Frame::goaway(0x7fff_ffff, code::NO_ERROR)]).ok();
    peer.end().map(drop)
}

fn an_endless_answer(host: &Host<'_>) -> Result<()> {
    let conn = host.dial()?;
    let mut peer = host.tunnel(&[])?;
    let stream = peer.request()?;
    peer.send(&[Frame::new(Kind::Headers, 0, stream, frames::status(200))])?;
    let more = Frame::new(Kind::Continuation, 0, stream, frames::field("x", &"y".repeat(1000)));
    let taken = (0..20_000).take_while(|_| peer.send(std::slice::from_ref(&more)).is_ok()).count();
    ensure!(taken < 20_000, "20 MB of headers were taken");
    turned_away(host, &conn, "h2 failed: ")
}

fn a_promise(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    let promise = [vec![0, 0, 0, 2], frames::connect("10.0.0.1:80")].concat();
    peer.send(&[Frame::new(Kind::PushPromise, END_HEADERS, stream, promise)])?;
    ensure!(peer.end()? == Some(code::PROTOCOL_ERROR));
    turned_away(host, &conn, "h2 failed: ")
}

fn a_server_dies_in_a_frame(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    both_ways(&conn, &mut peer, stream)?;
    let bytes = Frame::data(stream, b"only the beginning").encode();
    peer.bytes(&bytes[..14])?;
    drop(peer);
    let error = conn.read_all().err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::ConnectionReset), "a cut connection looks complete: {error:?}");
    host.logged("h2 failed: ")
}

fn a_server_ignores_the_window(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    // The application does not read.
    let piece = Frame::data(stream, &vec![7; 16_000]);
    let sent = (0..2048).take_while(|_| peer.send(std::slice::from_ref(&piece)).is_ok()).count();
    let refused = peer.until("a reset", |frame| frame.kind == Kind::RstStream && frame.stream == stream)?;
    ensure!(refused.number(0) == Some(code::FLOW_CONTROL_ERROR), "{refused:?} after {sent} pieces");
    let error = conn.read_all().err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::ConnectionReset), "a cut connection looks complete: {error:?}");
    host.logged("flow-control")?;
    peer.leave()
}

fn a_server_floods(host: &Host<'_>) -> Result<()> {
    let (conn, mut peer, stream) = host.open(&[])?;
    both_ways(&conn, &mut peer, stream)?;
    peer.patience(Duration::from_millis(500))?;
    let burst: Vec<Frame> = (0..1000).map(Frame::ping).collect();
    let bursts = (0..2000).take_while(|_| peer.send(&burst).is_ok()).count();
    ensure!(bursts < 2000, "two million answers were promised");
    Ok(())
}
