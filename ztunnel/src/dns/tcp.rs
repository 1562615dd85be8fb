// SPDX-License-Identifier: Apache-2.0
//! Queries that come over connections (RFC 7766): many at a time, answered in any order, each message after its length.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, warn};

use super::serve::{self, Served};
use super::{MAX_CONNECTIONS, Place};
use crate::proxy::PodContext;
use crate::proxy::phase::{Phase, PhaseWatch};
use crate::telemetry::dns::Transport;

/// How long a client may take for its next message, from its first byte to its last, and for taking an answer.
const IDLE: Duration = Duration::from_secs(5);
/// Queries of one connection that may wait; more are not read.
const MAX_PIPELINED: usize = 32;
/// After a failed accept: out of descriptors is not over in a moment.
const PAUSE: Duration = Duration::from_millis(50);

/// A message after its length.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(2 + message.len());
    // No message is longer: it came in a datagram, or after a length of two bytes.
    frame.extend(u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes());
    frame.extend(message);
    frame
}

/// The next complete message.
fn unframe(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length))
}

/// Serves one listener until the pod drains and the last connection has ended, or the pod is cut.
pub(super) async fn run(context: Arc<PodContext>, listener: std::net::TcpListener, phase: PhaseWatch) {
    let (mut draining, mut cut) = (phase.clone(), phase.clone());
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "cannot listen for DNS"),
    };
    let mut connections = JoinSet::new();
    let serving = async {
        loop {
            tokio::select! {
                biased;
                () = draining.reached(Phase::Draining) => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let place = context.dns.as_ref().and_then(|dns| Place::take(&dns.connections, MAX_CONNECTIONS));
                        if let Some(place) = place {
                            connections.spawn_local(connection(Arc::clone(&context), stream, peer, place, phase.clone()));
                        } else {
                            debug!(pod = %context.pod, "too many DNS connections, closing the newest");
                        }
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a DNS connection, pausing");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        biased;
        () = cut.reached(Phase::Cut) => {}
        () = serving => {}
    }
}

async fn connection(
    context: Arc<PodContext>,
    mut stream: TcpStream,
    peer: SocketAddr,
    _place: Place,
    phase: PhaseWatch,
) {
    let (reader, writer) = stream.split();
    let mut connection = Connection {
        context,
        reader,
        writer,
        received: BytesMut::new(),
        waiting: JoinSet::new(),
        deadline: Instant::now() + IDLE,
        is_last: false,
    };
    if let Err(error) = connection.serve(phase).await {
        debug!(%error, %peer, "a DNS connection ends");
    }
}

struct Connection<'a> {
    context: Arc<PodContext>,
    reader: ReadHalf<'a>,
    writer: WriteHalf<'a>,
    /// Less than one message, once [`Connection::take`] has looked.
    received: BytesMut,
    waiting: JoinSet<Option<Vec<u8>>>,
    /// When the client has been silent for too long.
    deadline: Instant,
    /// Nothing more is read.
    is_last: bool,
}

impl Connection<'_> {
    async fn serve(&mut self, mut phase: PhaseWatch) -> io::Result<()> {
        loop {
            self.take().await?;
            let is_waiting = !self.waiting.is_empty();
            if self.is_last && !is_waiting {
                return Ok(());
            }
            let wants_more = !self.is_last && self.waiting.len() < MAX_PIPELINED;
            tokio::select! {
                Some(done) = self.waiting.join_next() => {
                    if let Some(response) = done.ok().flatten() {
                        self.write(&response).await?;
                    }
                }
                read = self.reader.read_buf(&mut self.received), if wants_more => {
                    self.is_last = read? == 0;
                }
                () = sleep_until(self.deadline), if !is_waiting => return Ok(()),
                () = phase.reached(Phase::Draining), if !self.is_last => self.is_last = true,
            }
        }
    }

    /// Serves every message that is complete.
    async fn take(&mut self) -> io::Result<()> {
        while self.waiting.len() < MAX_PIPELINED
            && let Some(message) = unframe(&mut self.received)
        {
            self.deadline = Instant::now() + IDLE;
            let Some(dns) = &self.context.dns else { return Ok(()) };
            match serve::now(&self.context, dns, &message, Transport::Tcp) {
                Served::Now(response) => self.write(&response).await?,
                Served::Never => return Err(io::Error::new(io::ErrorKind::InvalidData, "no DNS query")),
                Served::Later => {
                    let context = Arc::clone(&self.context);
                    self.waiting.spawn_local(async move {
                        let dns = context.dns.as_ref()?;
                        serve::later(&context, dns, &message, Transport::Tcp).await
                    });
                }
            }
        }
        if self.received.is_empty() {
            // An idle connection holds no memory.
            self.received = BytesMut::new();
        }
        Ok(())
    }

    async fn write(&mut self, response: &[u8]) -> io::Result<()> {
        timeout(IDLE, self.writer.write_all(&framed(response))).await??;
        self.deadline = Instant::now() + IDLE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_when_they_are_complete() {
        let mut buffer = BytesMut::from(&b"\x00\x02ab\x00\x00\x00\x03c"[..]);
        assert_eq!(unframe(&mut buffer).unwrap(), b"ab"[..]);
        assert_eq!(unframe(&mut buffer).unwrap(), b""[..]);
        assert_eq!(unframe(&mut buffer), None);
        buffer.extend(b"de");
        assert_eq!(unframe(&mut buffer).unwrap(), b"cde"[..]);
        assert!(unframe(&mut buffer).is_none() && buffer.is_empty());
        assert_eq!(framed(b"ab"), b"\x00\x02ab");
    }
}
