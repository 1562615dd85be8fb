// SPDX-License-Identifier: Apache-2.0
//! A bidirectional gRPC call whose messages are bytes.
//!
//! A client library keeps the buffer of the largest message for as long as the call lives. Here that would be the
//! whole mesh, for half an hour: this one gives every message away in the buffer that it was read into.
//!
//! Source: gRPC over HTTP/2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;
use tower_service::Service as _;

use super::channel::Channel;

/// A message may not be larger.
const MAX_MESSAGE: usize = 200 << 20;
/// What a server says is kept up to here.
const MAX_SAID: usize = 1024;
/// Length of what stands before every message: whether it is compressed, and its size.
const PREFIX: usize = 5;
/// `UNKNOWN` of gRPC: what a call that ends without a status ended with.
const UNKNOWN: i32 = 2;

/// `INTERNAL` of gRPC: the server broke the rules.
const INTERNAL: i32 = 13;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Of gRPC; 0 is success.
    pub code: i32,
    /// What the server said, or what broke.
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

/// Messages of ours, on their way.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Vec<u8>>);

/// A way to send messages in a call that is still to be made. It holds `room` of them.
#[must_use]
pub fn requests(room: usize) -> (mpsc::Sender<Vec<u8>>, Requests) {
    let (sender, receiver) = mpsc::channel(room);
    (sender, Requests(receiver))
}

impl Body for Requests {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| {
            let message = message?;
            let mut frame = BytesMut::with_capacity(PREFIX + message.len());
            frame.put_u8(0);
            // Ours are far below 4 GiB.
            frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            frame.put_slice(&message);
            Some(Ok(Frame::data(frame.freeze())))
        })
    }
}

/// A call that the server has accepted.
#[derive(Debug)]
pub struct Call {
    body: Incoming,
    buffer: BytesMut,
    /// Closed when dropped, with the call.
    _channel: Channel,
}

impl Call {
    /// Makes a call. Returns when the server has accepted it.
    ///
    /// # Errors
    /// It refused, or the connection broke.
    pub async fn start(
        mut channel: Channel,
        address: &Uri,
        method: &'static str,
        metadata: HeaderMap,
        requests: Requests,
    ) -> Result<Self, Status> {
        let mut parts = address.clone().into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static(method));
        let mut request = Request::new(requests);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() =
            Uri::from_parts(parts).map_err(|error| broken(&format!("no usable address: {error}")))?;
        *request.headers_mut() = metadata;
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let send = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request.map(tonic::body::Body::new)).await
        };
        let response = send.await.map_err(|error| broken(&causes(&error)))?;
        let (head, body) = response.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(broken(&format!("HTTP status {}", head.status)));
        }
        // A refusal comes without a body, and its status in the headers.
        match status(&head.headers) {
            Some(refusal) => Err(refusal),
            None => Ok(Self { body, buffer: BytesMut::new(), _channel: channel }),
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// The end: how the server ended the call, or what broke.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn message(&mut self) -> Result<Bytes, Status> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            match self.body.frame().await {
                None => return Err(broken("the call ended without a status")),
                Some(Err(error)) => return Err(broken(&causes(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Err(status(&trailers).unwrap_or_else(|| broken("trailers without a status")));
                    }
                },
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, rest)) = self.buffer.split_at_checked(PREFIX) else { return Ok(None) };
        if prefix[0] != 0 {
            return Err(Status {
                code: INTERNAL,
                message: "a compressed message, which nobody asked for".into(),
            });
        }
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            let message = format!("a message of {length} bytes, more than {MAX_MESSAGE}");
            return Err(Status { code: INTERNAL, message });
        }
        if rest.len() < length {
            // At once and exactly, so that a large one is neither moved while it grows nor kept beyond its use.
            let missing = length - rest.len();
            if self.buffer.capacity() < PREFIX + length {
                self.buffer.reserve(missing);
            }
            return Ok(None);
        }
        let rest = self.buffer.split_off(PREFIX + length);
        let mut message = std::mem::replace(&mut self.buffer, BytesMut::from(&rest[..]));
        message.advance(PREFIX);
        Ok(Some(message.freeze()))
    }
}

fn broken(message: &str) -> Status {
    Status { code: UNKNOWN, message: message.to_owned() }
}

/// The status in headers or trailers, if there is one.
fn status(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok());
    let said = headers.get("grpc-message").map(|said| unescape(said.as_bytes())).unwrap_or_default();
    Some(Status { code: code.unwrap_or(UNKNOWN), message: said })
}

/// A message's percent-encoding undone; what cannot be shown is replaced, and what is too much is cut.
fn unescape(said: &[u8]) -> String {
    let mut bytes = Vec::new();
    let mut rest = said;
    while let [first, tail @ ..] = rest
        && bytes.len() < MAX_SAID
    {
        let hex = |digit: &u8| char::from(*digit).to_digit(16);
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                let code = hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0);
                (u8::try_from(code).unwrap_or(b'?'), tail)
            }
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error with everything beneath it, each thing once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_shown_without_harm() {
        assert_eq!(unescape(b"a%20b%0Ac%C3%BC%"), "a b c\u{fc}%");
        assert_eq!(unescape(&[b'x'; 5000]).len(), MAX_SAID);
        assert_eq!(unescape(b"%zz%f"), "%zz%f");
    }

    #[test]
    fn a_status_without_a_number_is_unknown() {
        let mut headers = HeaderMap::new();
        assert_eq!(status(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("x"));
        assert_eq!(status(&headers), Some(Status { code: UNKNOWN, message: String::new() }));
    }
}
