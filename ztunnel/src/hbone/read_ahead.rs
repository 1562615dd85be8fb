// SPDX-License-Identifier: Apache-2.0
//! Reads a tunnel's socket far ahead while it carries bulk.
//!
//! rustls asks for one TLS record at a time, at most 16 KiB: at full speed a system call, and often an acknowledgement
//! of its own, for each. While reads come back full, this takes up to [`AHEAD`] bytes at once and hands them on in
//! pieces. A tunnel that carries messages is read directly, and an idle one holds no buffer: those in use are lent by
//! the worker's thread.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read in bulk.
const AHEAD: usize = 256 << 10;
/// Buffers that a thread keeps for the next tunnel in bulk.
const SPARES: usize = 2;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A byte stream that is read ahead. Writes pass through.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    /// What was read and not yet handed on: `start..end` of it.
    held: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// The last read filled all the room it was given.
    bulk: bool,
}

impl<S> ReadAhead<S> {
    /// Reads `inner` directly until it carries bulk.
    pub fn new(inner: S) -> Self {
        Self { inner, held: None, start: 0, end: 0, bulk: false }
    }

    fn give_back(&mut self) {
        if let Some(buffer) = self.held.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARES {
                    spare.push(buffer);
                }
            });
        }
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn borrow_buffer() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice())
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start == this.end && !this.bulk {
            let (room, before) = (out.remaining(), out.filled().len());
            ready!(Pin::new(&mut this.inner).poll_read(cx, out))?;
            this.bulk = room > 0 && out.filled().len() - before == room;
            return Poll::Ready(Ok(()));
        }
        if this.start == this.end {
            let buffer = this.held.get_or_insert_with(borrow_buffer);
            let mut ahead = ReadBuf::new(buffer);
            match Pin::new(&mut this.inner).poll_read(cx, &mut ahead) {
                Poll::Ready(Ok(())) => (this.start, this.end) = (0, ahead.filled().len()),
                // Nothing to wait with: the buffer is for whoever has something to read.
                Poll::Pending => {
                    this.give_back();
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
            this.bulk = this.end > out.remaining();
        }
        let held = this.held.as_deref().unwrap_or_default();
        let part = out.remaining().min(this.end - this.start);
        out.put_slice(&held[this.start..this.start + part]);
        this.start += part;
        if this.start == this.end && !this.bulk {
            this.give_back();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_keep_their_order_whatever_the_sizes_of_reads_and_writes() {
        let (mut near, far) = tokio::io::duplex(300_000);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            let mut rest = sent.as_slice();
            for size in [1, 4096, 70_000, 5, 16_384, 200_000].into_iter().cycle() {
                let part = rest.len().min(size);
                near.write_all(&rest[..part]).await.unwrap();
                rest = &rest[part..];
                if rest.is_empty() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        let mut reader = ReadAhead::new(far);
        let mut found = Vec::new();
        for size in [4096, 16_389, 10, 4096, 65_000].into_iter().cycle() {
            let mut part = vec![0; size];
            let read = reader.read(&mut part).await.unwrap();
            if read == 0 {
                break;
            }
            found.extend_from_slice(&part[..read]);
        }
        writer.await.unwrap();
        assert!(found == expected);
    }

    #[tokio::test]
    async fn who_waits_holds_no_buffer() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&[7; 10_000]).await.unwrap();
        let mut reader = ReadAhead::new(far);
        let mut part = [0; 4096];
        for _ in 0..3 {
            assert!(reader.read(&mut part).await.unwrap() > 0);
        }
        let waited = tokio::time::timeout(std::time::Duration::from_millis(1), reader.read(&mut part)).await;
        assert!(waited.is_err() && reader.held.is_none());
    }
}
