// SPDX-License-Identifier: Apache-2.0
//! One gRPC call, seen from the server, with nothing between the test and the wire: a message may be sent in part,
//! a call may end in any way, and a connection may be cut.
//!
//! Source: gRPC over HTTP/2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).

use std::future::poll_fn;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::Notify;

/// Status codes of gRPC.
pub const OK: u32 = 0;
/// The client sent something that makes no sense.
pub const INVALID_ARGUMENT: u32 = 3;
/// The client sent too much.
pub const RESOURCE_EXHAUSTED: u32 = 8;
/// There is no such method.
pub const UNIMPLEMENTED: u32 = 12;
/// Come back later.
pub const UNAVAILABLE: u32 = 14;
/// The client did not say who it is.
pub const UNAUTHENTICATED: u32 = 16;

/// istiod takes no larger message unless told otherwise.
pub const MAX_REQUEST: usize = 4 << 20;

/// A call that has arrived and is not answered yet.
#[derive(Debug)]
pub struct Call {
    path: String,
    metadata: HeaderMap,
    requests: Requests,
    respond: SendResponse<Bytes>,
    cut: Arc<Notify>,
}

/// The messages of the client.
#[derive(Debug)]
pub struct Requests {
    receive: RecvStream,
    buffer: BytesMut,
}

/// The way back to the client.
#[derive(Debug)]
pub struct Responses {
    send: SendStream<Bytes>,
    cut: Arc<Notify>,
}

impl Call {
    pub(super) fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>, cut: Arc<Notify>) -> Self {
        let (head, receive) = request.into_parts();
        let requests = Requests { receive, buffer: BytesMut::new() };
        Self { path: head.uri.path().to_owned(), metadata: head.headers, requests, respond, cut }
    }

    /// The method: `/package.Service/Method`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// All metadata that came with it.
    #[must_use]
    pub fn metadata(&self) -> &HeaderMap {
        &self.metadata
    }

    /// Ends it with a status before anything was answered.
    pub fn refuse(mut self, status: u32, message: &str) {
        let mut response = head();
        *response.headers_mut() = trailers(status, message);
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        // Nobody is there any more: then nobody misses the answer.
        drop(self.respond.send_response(response, true));
    }

    /// Accepts it: headers go out, messages may flow in both directions.
    ///
    /// # Errors
    /// The client is gone.
    pub fn accept(mut self) -> Result<(Requests, Responses)> {
        let send = self.respond.send_response(head(), false).context("accept a call")?;
        Ok((self.requests, Responses { send, cut: self.cut }))
    }
}

impl Requests {
    /// The next message; none at the end.
    ///
    /// # Errors
    /// The stream broke, or what came is no gRPC message.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            let Some(data) = self.receive.data().await else {
                ensure!(self.buffer.is_empty(), "the stream ended inside a message");
                return Ok(None);
            };
            let data = data?;
            self.receive.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }

    fn buffered(&mut self) -> Result<Option<Bytes>> {
        let Some((head, rest)) = self.buffer.split_at_checked(5) else { return Ok(None) };
        ensure!(head[0] == 0, "a compressed message");
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length)?;
        if length > MAX_REQUEST {
            bail!(TooLarge(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// A request beyond [`MAX_REQUEST`].
#[derive(Debug)]
pub struct TooLarge(pub usize);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "grpc: received message larger than max ({} vs. {MAX_REQUEST})", self.0)
    }
}

impl std::error::Error for TooLarge {}

impl Responses {
    /// Sends one message.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.write(frame(message)).await
    }

    /// Sends the first `bytes` bytes of one message, then cuts the connection.
    ///
    /// # Errors
    /// The client is gone already.
    pub async fn send_part_and_cut(&mut self, message: &[u8], bytes: usize) -> Result<()> {
        let mut frame = frame(message);
        frame.truncate(bytes);
        let sent = self.write(frame).await;
        self.cut();
        sent
    }

    /// Cuts the connection below the call, and every other call on it.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Ends the call.
    pub fn finish(mut self, status: u32, message: &str) {
        // Nobody is there any more: then nobody misses the end.
        drop(self.send.send_trailers(trailers(status, message)));
    }

    /// Until the client has gone.
    pub async fn closed(&mut self) {
        drop(poll_fn(|context| self.send.poll_reset(context)).await);
    }

    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len().min(1 << 20));
            let room = poll_fn(|context| self.send.poll_capacity(context)).await;
            let room = room.context("the client is gone")??;
            self.send.send_data(bytes.split_to(room.min(bytes.len())), false)?;
        }
        Ok(())
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(status: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    if !message.is_empty() {
        let escaped: String =
            message.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        if let Ok(message) = HeaderValue::from_str(&escaped) {
            trailers.insert("grpc-message", message);
        }
    }
    trailers
}
