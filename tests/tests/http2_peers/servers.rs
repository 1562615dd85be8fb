// SPDX-License-Identifier: Apache-2.0
//! Peers that a captured pod dials.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::peer::frames::{self, END_HEADERS, END_STREAM, Frame, Kind, code, setting};
use ztunnel_tests::peer::{Authority, Credentials, RawPeer};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Mode, Pod, PodSpec, in_every_mode, wait};

use super::{APP, SOON, ended};

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
