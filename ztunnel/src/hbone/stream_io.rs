// SPDX-License-Identifier: Apache-2.0
//! The stream of a tunnel as a byte stream, for what is carried inside it: another tunnel.
//!
//! Flow control bounds both directions: what is not taken here, the peer may not send, and the other way round.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::relay::TunnelStream;

/// One stream of a tunnel. Dropped before both of its directions have ended, it is reset.
#[derive(Debug)]
pub(super) struct StreamIo {
    stream: TunnelStream,
    /// Received, and not taken yet.
    received: Bytes,
    ended: bool,
}

impl StreamIo {
    pub(super) fn new(stream: TunnelStream) -> Self {
        Self { stream, received: Bytes::new(), ended: false }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let receive = &mut this.stream.receive;
        while this.received.is_empty() {
            match ready!(receive.poll_data(cx)) {
                Some(Ok(chunk)) => this.received = chunk,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.received.len().min(buffer.remaining());
        buffer.put_slice(&this.received[..taken]);
        this.received.advance(taken);
        Poll::Ready(receive.flow_control().release_capacity(taken).map_err(broken))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let send = &mut self.get_mut().stream.send;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(data.len());
        let mut granted = send.capacity();
        while granted == 0 {
            granted = match ready!(send.poll_capacity(cx)) {
                Some(Ok(granted)) => granted,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let taken = granted.min(data.len());
        let sent = send.send_data(Bytes::copy_from_slice(&data[..taken]), false);
        Poll::Ready(sent.map(|()| taken).map_err(broken))
    }

    /// The tunnel flushes what it is given.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends our direction, and is done when the peer's has ended too: a stream that is dropped before that takes back what it
    /// has not sent yet.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let TunnelStream { send, receive } = &mut this.stream;
        if !std::mem::replace(&mut this.ended, true) {
            send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        // Whoever shuts down reads no more.
        while let Some(chunk) = ready!(receive.poll_data(cx)) {
            receive.flow_control().release_capacity(chunk.map_err(broken)?.len()).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: h2::Error) -> io::Error {
    let kind = match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) if error.is_reset() => {
            io::ErrorKind::ConnectionReset
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
