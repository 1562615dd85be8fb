// SPDX-License-Identifier: Apache-2.0
//! Peers that dial a captured pod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::peer::frames::{self, ACK, END_HEADERS, END_STREAM, Frame, Kind, code, setting};
use ztunnel_tests::peer::{Authority, Credentials, RawPeer};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, PodSpec, in_every_mode, wait};

use super::{APP, SOON, ended};

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
