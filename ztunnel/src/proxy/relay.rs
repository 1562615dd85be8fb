// SPDX-License-Identifier: Apache-2.0
//! ⑥ Copies both ways until both ends are done, and carries every way of ending across.
//!
//! | one side | the other side |
//! |--|--|
//! | FIN, END_STREAM | END_STREAM, FIN; the other direction goes on |
//! | RST, RST_STREAM(CANCEL) | RST_STREAM(CANCEL), RST: both directions end |
//! | RST_STREAM(NO_ERROR) | FIN: the peer is done and wants no more |
//! | the tunnel breaks, another RST_STREAM | RST, and an error in the access log |
//!
//! Buffers exist only while there is data: a direction that waits holds none. Memory is bounded by flow control on
//! both sides: what the receiver does not take, the sender is not allowed to send.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tracing::debug;
use ztunnel_core::report::{CopyStage, H2Stage, Outcome};

use super::leftover::{Sent, throw_away};
use super::splice::{self, Stopped};
use crate::fastpath::Valve;
use crate::sys::sockopt::unacknowledged;
use crate::sys::timer;

/// Sizes of one read: it grows when data fills it, and shrinks again when it does not.
const SMALLEST_READ: usize = 4 << 10;
const LARGEST_READ: usize = 256 << 10;

/// Size of one write: what is redirected in one piece must fit into the fast path's credit.
const LARGEST_WRITE: usize = 256 << 10;
/// How long to wait for a receiver that has not read what the fast path gave it: at first, and at most.
const VALVE_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_VALVE_PAUSE: Duration = Duration::from_millis(64);

/// How long to wait for a message that was announced before we end our direction.
const LONGEST_GATE_WAIT: Duration = Duration::from_secs(5);

/// Counts the bytes of both directions while they flow.
pub trait Meter {
    /// From the downstream socket to the upstream one.
    fn sent(&self, bytes: usize);
    /// From the upstream socket to the downstream one.
    fn received(&self, bytes: usize);
}

/// What ended a relay early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Reading from the downstream side or writing upstream failed.
    #[error("send: {0}")]
    Send(io::Error),
    /// Reading from the upstream side or writing downstream failed.
    #[error("receive: {0}")]
    Receive(io::Error),
    /// The tunnel failed.
    #[error("h2 failed: {0}")]
    Http2(h2::Error),
}

impl RelayError {
    /// As it is reported to the operator.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Send(error) => Outcome::copy(CopyStage::Send, error),
            Self::Receive(error) => Outcome::copy(CopyStage::Receive, error),
            Self::Http2(error) => Outcome::H2 { stage: H2Stage::Stream, error: error.to_string() },
        }
    }
}

/// Why one direction stopped before its end.
enum Broken {
    /// One of the peers reset: pass it on. Not an error, connections end like that every day.
    Reset,
    /// Something failed on the way.
    Failed(RelayError),
}

/// The stream of a tunnel that carries one connection.
#[derive(Debug)]
pub struct TunnelStream {
    /// Towards the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
}

/// How a relay that did not fail came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both directions ended, and on the downstream socket (the only one, of a tunnel) our FIN came first.
    OursFirst,
    /// Both directions ended, and the peer's FIN came first.
    TheirsFirst,
    /// One of the peers reset.
    Reset,
}

/// Relays between two TCP connections.
///
/// # Errors
/// What failed, if it was neither an end nor a reset. Both sockets are reset then.
pub async fn tcp(
    mut downstream: Side<'_>,
    mut upstream: Side<'_>,
    meter: &impl Meter,
) -> Result<End, RelayError> {
    let result = {
        let (mut down_read, mut down_write) = downstream.split();
        let (mut up_read, mut up_write) = upstream.split();
        let sent = copy(&mut down_read, &mut up_write, |n| meter.sent(n), RelayError::Send);
        let received = copy(&mut up_read, &mut down_write, |n| meter.received(n), RelayError::Receive);
        tokio::try_join!(sent, received)
    };
    finish(result.map(|_| downstream.end()), || {
        reset(downstream.socket);
        reset(upstream.socket);
    })
}

/// Relays between the application's (or client's) connection and a tunnel. `sent` is TCP to tunnel.
///
/// # Errors
/// What failed, if it was neither an end nor a reset. The socket and the stream are reset then.
pub async fn tunnel(mut side: Side<'_>, stream: TunnelStream, meter: &impl Meter) -> Result<End, RelayError> {
    let TunnelStream { mut send, mut receive } = stream;
    let result = {
        let (mut read, mut write) = side.split();
        let is_received = Cell::new(false);
        let sent = async {
            if into_tunnel(&mut read, &mut send, |n| meter.sent(n)).await? == Sent::Refused {
                Box::pin(answer_arrives(&mut read, &is_received)).await;
            }
            Ok(())
        };
        let received = async {
            out_of_tunnel(&mut receive, &mut write, |n| meter.received(n)).await?;
            is_received.set(true);
            Ok(())
        };
        // What has come before a reset is delivered before the reset is looked at.
        tokio::try_join!(biased; received, sent)
    };
    finish(result.map(|_| side.end()), || {
        send.send_reset(Reason::CANCEL);
        reset(side.socket);
    })
}

fn finish(result: Result<End, Broken>, cut: impl FnOnce()) -> Result<End, RelayError> {
    match result {
        Ok(end) => Ok(end),
        Err(broken) => {
            cut();
            match broken {
                Broken::Reset => Ok(End::Reset),
                Broken::Failed(error) => Err(error),
            }
        }
    }
}

/// Makes the close of this socket a reset, so that a cut connection never looks like a complete one.
pub fn reset(socket: &TcpStream) {
    // It can only fail on a socket that is gone already.
    drop(SockRef::from(socket).set_linger(Some(Duration::ZERO)));
}

/// The size of the next read, from the size of the last one.
struct ReadSize(usize);

impl ReadSize {
    fn adapt(&mut self, read: usize) {
        if read >= self.0 {
            self.0 = (self.0 * 4).min(LARGEST_READ);
        } else if read < self.0 / 8 {
            self.0 = (self.0 / 4).max(SMALLEST_READ);
        }
    }
}

/// How a socket is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// A short read has emptied the socket: that saves the question whether there is more.
    ShortIsAll,
    /// A short read says nothing: the socket may be on the fast path, which gives it two queues, and one read takes
    /// from one of them. Read until the kernel says that there is no more.
    UntilEmpty,
}

/// Reads once; empty at the end of input. Holds a buffer only while the socket is readable.
fn poll_read(read: &mut Reader<'_>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    loop {
        // The cheap question first: nothing is allocated for a socket that has nothing to say.
        std::task::ready!(read.half.as_ref().poll_read_ready(cx))?;
        let mut buffer = BytesMut::with_capacity(read.size.0);
        let result = match read.reads {
            // Forgets the readiness at a short read.
            Reads::ShortIsAll => std::task::ready!(pin!(read.half.read_buf(&mut buffer)).poll(cx)),
            // Keeps it until the kernel has nothing more.
            Reads::UntilEmpty => read.half.as_ref().try_read_buf(&mut buffer),
        };
        match result {
            Ok(count) => {
                read.size.adapt(count);
                let progress = read.progress;
                progress.ended.set(count == 0);
                progress.bytes.set(progress.bytes.get() + count as u64);
                return Poll::Ready(Ok(buffer.freeze()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// How far a socket has been read.
#[derive(Debug, Default)]
struct Progress {
    bytes: Cell<u64>,
    ended: Cell<bool>,
    /// Our own FIN was sent before the end was read.
    ended_after_ours: Cell<bool>,
}

/// The reading half of a socket.
struct Reader<'a> {
    half: ReadHalf<'a>,
    reads: Reads,
    size: ReadSize,
    progress: &'a Progress,
}

impl Reader<'_> {
    /// Reads come back full, and nothing can be in another queue than TCP's.
    fn is_bulk(&self) -> bool {
        self.reads == Reads::ShortIsAll && self.size.0 == LARGEST_READ
    }

    fn note(&self, bytes: usize, count: impl Fn(usize)) {
        self.progress.bytes.set(self.progress.bytes.get() + bytes as u64);
        count(bytes);
    }
}

/// One of the two sockets of a relay, and how to treat it.
#[derive(Debug)]
pub struct Side<'a> {
    socket: &'a mut TcpStream,
    reads: Reads,
    valve: Option<Valve>,
    progress: Progress,
}

impl<'a> Side<'a> {
    /// A socket towards another node.
    pub fn plain(socket: &'a mut TcpStream) -> Self {
        Self { socket, reads: Reads::ShortIsAll, valve: None, progress: Progress::default() }
    }

    /// A socket towards an application of this node.
    pub fn application(socket: &'a mut TcpStream, reads: Reads, valve: Option<Valve>) -> Self {
        Self { socket, reads, valve, progress: Progress::default() }
    }

    fn end(&self) -> End {
        if self.progress.ended_after_ours.get() { End::OursFirst } else { End::TheirsFirst }
    }

    fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (read, write) = self.socket.split();
        let progress = &self.progress;
        let reader = Reader { half: read, reads: self.reads, size: ReadSize(SMALLEST_READ), progress };
        (reader, Writer { half: write, valve: self.valve.take(), progress })
    }
}

/// The writing half of a socket.
struct Writer<'a> {
    half: WriteHalf<'a>,
    valve: Option<Valve>,
    /// Of the reading half of the same socket.
    progress: &'a Progress,
}

impl Writer<'_> {
    /// Writes all of `data`. A fast path that may take no more has no event for "it has been read", so we ask again, ever
    /// less often; a receiver that reads costs no such question.
    async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        let mut pause = VALVE_PAUSE;
        while !data.is_empty() {
            let part = &data[..data.len().min(LARGEST_WRITE)];
            if self.valve.as_mut().is_some_and(|valve| !valve.admits(part.len())) {
                // Rare, so on the heap: every connection would carry room for it.
                Box::pin(timer::sleep(pause)).await;
                pause = (pause * 2).min(LONGEST_VALVE_PAUSE);
                continue;
            }
            pause = VALVE_PAUSE;
            match self.half.write(part).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => data = &data[written..],
            }
        }
        Ok(())
    }

    /// Sends FIN. A peer that is gone already needs none.
    async fn shut(&mut self) -> io::Result<()> {
        if let Some(valve) = self.valve.take() {
            Box::pin(settle(&valve, self.progress)).await;
        }
        self.progress.ended_after_ours.set(!self.progress.ended.get());
        match self.half.shutdown().await {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }
}

/// Waits until nothing that was redirected is unread on either side.
async fn settle(valve: &Valve, progress: &Progress) {
    wait_until(|| valve.is_drained()).await;
    // Who has read the end of the other direction has read everything in it.
    if progress.ended.get() {
        return;
    }
    let position = valve.close_gate();
    let is_read = wait_until(|| progress.ended.get() || progress.bytes.get() >= position);
    // A redirect that the kernel announced and then failed would never be read.
    if tokio::time::timeout(LONGEST_GATE_WAIT, is_read).await.is_err() {
        debug!("a redirected message never came");
    }
}

/// Asks again and again, ever less often.
async fn wait_until(mut holds: impl FnMut() -> bool) {
    let mut pause = VALVE_PAUSE;
    while !holds() {
        timer::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_VALVE_PAUSE);
    }
}

async fn copy(
    read: &mut Reader<'_>,
    write: &mut Writer<'_>,
    count: impl Fn(usize),
    failed: impl Fn(io::Error) -> RelayError,
) -> Result<(), Broken> {
    loop {
        let chunk = match poll_fn(|cx| poll_read(read, cx)).await {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => chunk,
            Err(error) => return Err(broken(error, &failed)),
        };
        count(chunk.len());
        write.write_all(&chunk).await.map_err(|error| broken(error, &failed))?;
        if read.is_bulk() && write.valve.is_none() {
            let moving = splice::bulk(read.half.as_ref(), write.half.as_ref(), |n| read.note(n, &count));
            match Box::pin(moving).await.map_err(|error| broken(error, &failed))? {
                Stopped::End => {
                    read.progress.ended.set(true);
                    break;
                }
                Stopped::Small => read.size = ReadSize(SMALLEST_READ),
            }
        }
    }
    write.shut().await.map_err(|error| broken(error, &failed))
}

/// Waits until the application has got what the peer said, whatever it goes on to send.
async fn answer_arrives(read: &mut Reader<'_>, is_received: &Cell<bool>) {
    let socket = SockRef::from(read.half.as_ref()).try_clone();
    let is_delivered = || {
        is_received.get()
            && socket.as_ref().is_ok_and(|socket| matches!(unacknowledged(socket), Ok(0) | Err(_)))
    };
    throw_away(|cx| poll_read(read, cx).map_ok(|chunk| chunk.len()), is_delivered).await;
}

async fn into_tunnel(
    read: &mut Reader<'_>,
    send: &mut SendStream<Bytes>,
    count: impl Fn(usize),
) -> Result<Sent, Broken> {
    loop {
        let chunk = poll_fn(|cx| {
            // A peer that wants no more says so even while the application is silent.
            match send.poll_reset(cx) {
                Poll::Ready(Ok(Reason::NO_ERROR)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(reason)) => return Poll::Ready(Err(refused_by_peer(reason))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(tunnel_broken(error))),
                Poll::Pending => {}
            }
            poll_read(read, cx).map_ok(Some).map_err(|error| broken(error, RelayError::Send))
        })
        .await?;
        let Some(chunk) = chunk else { return Ok(Sent::Refused) };
        if chunk.is_empty() {
            return send.send_data(Bytes::new(), true).map(|()| Sent::All).map_err(tunnel_broken);
        }
        count(chunk.len());
        if send_all(send, chunk).await? == Sent::Refused {
            return Ok(Sent::Refused);
        }
    }
}

/// Sends `data` as the peer's window allows.
async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<Sent, Broken> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut granted = send.capacity();
        while granted == 0 {
            granted = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(granted)) => granted,
                Some(Err(error)) => return Err(tunnel_broken(error)),
                None => return closed(send).await,
            };
        }
        let part = data.split_to(granted.min(data.len()));
        send.send_data(part, false).map_err(tunnel_broken)?;
    }
    Ok(Sent::All)
}

/// Why the stream is no longer open for sending: the peer's reset, or ours for what the peer did.
async fn closed(send: &mut SendStream<Bytes>) -> Result<Sent, Broken> {
    poll_fn(|cx| {
        Poll::Ready(match send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR)) => Ok(Sent::Refused),
            Poll::Ready(Ok(reason)) => Err(refused_by_peer(reason)),
            Poll::Ready(Err(error)) => Err(tunnel_broken(error)),
            Poll::Pending => Err(Broken::Reset),
        })
    })
    .await
}

async fn out_of_tunnel(
    receive: &mut RecvStream,
    write: &mut Writer<'_>,
    count: impl Fn(usize),
) -> Result<(), Broken> {
    while let Some(chunk) = receive.data().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => break,
            Err(error) => return Err(tunnel_broken(error)),
        };
        count(chunk.len());
        write.write_all(&chunk).await.map_err(|error| broken(error, RelayError::Receive))?;
        receive.flow_control().release_capacity(chunk.len()).map_err(tunnel_broken)?;
    }
    write.shut().await.map_err(|error| broken(error, RelayError::Receive))
}

fn broken(error: io::Error, failed: impl Fn(io::Error) -> RelayError) -> Broken {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::NotConnected
        | Kind::UnexpectedEof => Broken::Reset,
        _ => Broken::Failed(failed(error)),
    }
}

/// RFC 9113, section 8.1: NO_ERROR asks us to stop sending; CANCEL and STREAM_CLOSED are a peer that went away.
fn refused_by_peer(reason: Reason) -> Broken {
    match reason {
        Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED => Broken::Reset,
        reason => Broken::Failed(RelayError::Http2(reason.into())),
    }
}

fn tunnel_broken(error: h2::Error) -> Broken {
    match error.reason() {
        Some(reason) if error.is_reset() => refused_by_peer(reason),
        _ => Broken::Failed(RelayError::Http2(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_with_bulk_and_shrink_with_small_messages() {
        let mut size = ReadSize(SMALLEST_READ);
        for _ in 0..10 {
            size.adapt(size.0);
        }
        assert_eq!(size.0, LARGEST_READ);
        for _ in 0..10 {
            size.adapt(64);
        }
        assert_eq!(size.0, SMALLEST_READ);
    }
}
