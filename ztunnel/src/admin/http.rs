// SPDX-License-Identifier: Apache-2.0
//! A small HTTP/1.1 server: one handler, bounded headers, bounded clients, and it survives running out of descriptors.
//!
//! An answer is whole, or a stream of chunks that a thread of its own makes while the client reads: what is large is
//! never in memory as a whole, and a client that stops reading stops nobody else.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, warn};

use super::guests::Guests;
use crate::sys::priority;

/// An answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How long a client may take over its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client may leave what we sent unread.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Clients of one listener at the same time; the next ones wait in the kernel's queue.
const MAX_CLIENTS: usize = 256;
/// Chunks of a stream that wait for the client.
const CHUNKS: usize = 4;
/// Bytes per chunk, about.
const CHUNK: usize = 64 << 10;
/// How long a client may take to read an answer that is streamed: a little at a time is not progress.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// 127.0.0.1 and ::1.
    Localhost,
    /// Every address.
    Everywhere,
}

/// Binds a server's sockets: IPv6 where the namespace has it, IPv4 in any case.
///
/// # Errors
/// `failed to bind to address …` with the reason.
pub fn bind(port: u16, reach: Reach) -> io::Result<Vec<TcpListener>> {
    let addresses: Vec<SocketAddr> = match reach {
        Reach::Localhost => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        Reach::Everywhere => {
            vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
        }
    };
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in addresses {
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            // Without IPv6 there is nothing to listen on; IPv4 is covered by a dual-stack socket already.
            Err(error) if address.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse => {}
            Err(_) if reach == Reach::Everywhere && !listeners.is_empty() => {}
            Err(error) => {
                let text = format!("failed to bind to address {address}: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// What accepts clients.
pub trait Listen: 'static {
    /// A client.
    type Client: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The next one, and its address if it has one.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Client, Option<IpAddr>)>>;
}

impl Listen for TcpListener {
    type Client = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        let (socket, peer) = self.accept().await?;
        // A socket without this option is served as well.
        SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD_TIMEOUT)).ok();
        Ok((socket, Some(peer.ip())))
    }
}

impl Listen for UnixListener {
    type Client = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        Ok((self.accept().await?.0, None))
    }
}

/// Serves `handler` on every listener, for as long as it is polled. Call inside a `LocalSet`.
pub async fn serve<L, H, F>(listeners: Vec<L>, handler: H)
where
    L: Listen,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<Body>> + 'static,
{
    let handler = Rc::new(handler);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        servers.spawn_local(accept(listener, Rc::clone(&handler)));
    }
    while servers.join_next().await.is_some() {}
}

async fn accept<L, H, F>(listener: L, handler: Rc<H>)
where
    L: Listen,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<Body>> + 'static,
{
    let (clients, guests) = (Arc::new(Semaphore::new(MAX_CLIENTS)), Guests::default());
    // Never closed: the server ends when its task is dropped.
    while let Ok(client) = Arc::clone(&clients).acquire_owned().await {
        match listener.next().await {
            Ok((socket, from)) => {
                let Some(guest) = guests.admit(from) else {
                    debug!(?from, "an address has more connections to the admin ports than it may have");
                    continue;
                };
                let handler = Rc::clone(&handler);
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| {
                        let response = handler(request);
                        async move { Ok::<_, Infallible>(response.await) }
                    });
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .half_close(true)
                        .max_buf_size(8 << 10)
                        .serve_connection(TokioIo::new(socket), service);
                    if let Err(error) = served.await {
                        debug!(%error, "an admin connection ended badly");
                    }
                    drop((client, guest));
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection, pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A 200 answer of the given content type that `write` makes on a thread of its own, of low priority. Where `write` fails,
/// or panics, the client's connection breaks: what is half an answer must not look like a whole one.
pub fn streamed(
    content_type: &'static str,
    write: impl FnOnce(Chunks) -> io::Result<()> + Send + 'static,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let thread = thread::Builder::new().name("ztunnel-answer".into()).spawn(move || {
        priority::yield_to_others();
        let until = Instant::now() + ANSWER_TIMEOUT;
        let chunks = Chunks { sender: sender.clone(), pending: Vec::with_capacity(CHUNK), until };
        match write(chunks) {
            // Whether anybody is there to hear it does not matter.
            Ok(()) => drop(sender.blocking_send(Piece::End)),
            // The client went away, or stopped reading.
            Err(error) => debug!(%error, "an answer was not read to its end"),
        }
    });
    match thread {
        Ok(_) => with_type(content_type, Streamed(receiver).boxed_unsync()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot start a thread: {error}\n")),
    }
}

/// A part of a streamed answer.
#[derive(Debug)]
enum Piece {
    Chunk(Bytes),
    /// That was all.
    End,
}

/// Where the thread of a streamed answer writes to. Waits while the client does not read.
#[derive(Debug)]
pub struct Chunks {
    sender: mpsc::Sender<Piece>,
    pending: Vec<u8>,
    until: Instant,
}

impl Chunks {
    fn send(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK));
        let sent = self.sender.blocking_send(Piece::Chunk(chunk.into()));
        sent.map_err(|_closed| io::ErrorKind::BrokenPipe.into())
    }
}

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// The reading end of [`Chunks`].
struct Streamed(mpsc::Receiver<Piece>);

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| match piece {
            Some(Piece::Chunk(chunk)) => Some(Ok(Frame::data(chunk))),
            Some(Piece::End) => None,
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

/// A 200 answer of the given content type.
pub fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    with_type(content_type, Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// A pretty JSON answer.
pub fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            typed("application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn what_is_half_an_answer_does_not_look_whole() {
        let answer = |fail: bool| {
            streamed("text/plain", move |mut chunks| {
                chunks.write_all(&[7; 3 * CHUNK])?;
                chunks.flush()?;
                if fail { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
            })
        };
        let whole = answer(false).into_body().collect().await.map(|body| body.to_bytes().len());
        assert_eq!(whole.unwrap(), 3 * CHUNK);
        let half = answer(true).into_body().collect().await.map(|body| body.to_bytes().len());
        assert_eq!(half.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
