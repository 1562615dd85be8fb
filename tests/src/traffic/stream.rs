// SPDX-License-Identifier: Apache-2.0
//! Exchanges over one connection, written once for both ends.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Chunks, Conn, Pattern};
use crate::pod::Pod;

/// Largest single write or read.
const LARGEST: usize = 128 << 10;

/// What one end of a [`duplex`] sends and expects.
#[derive(Debug, Clone, Copy)]
pub struct Sides {
    /// What this end sends.
    pub send: (Pattern, u64),
    /// What it expects.
    pub expect: (Pattern, u64),
}

impl Sides {
    /// The client's view of an exchange of so many bytes to and from the server.
    #[must_use]
    pub fn client(seed: u64, to_server: u64, to_client: u64) -> Self {
        Self { send: (Pattern(seed), to_server), expect: (Pattern(!seed), to_client) }
    }

    /// The other end's view.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { send: self.expect, expect: self.send }
    }
}

/// Sends a stream in odd chunks.
///
/// # Errors
/// The connection broke.
pub fn send(conn: &Conn, (pattern, length): (Pattern, u64)) -> Result<()> {
    let mut chunks = Chunks::new(pattern.0);
    let mut buffer = vec![0; LARGEST];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(LARGEST);
        let size = chunks.next(left.min(LARGEST));
        pattern.fill(at, &mut buffer[..size]);
        let mut writer = conn;
        writer.write_all(&buffer[..size]).with_context(|| format!("send at {at} of {length}"))?;
        at += size as u64;
    }
    Ok(())
}

/// Receives exactly this stream, not its end, in odd chunks.
///
/// # Errors
/// A byte is wrong, or the stream ends early.
pub fn receive(conn: &Conn, (pattern, length): (Pattern, u64)) -> Result<()> {
    let mut chunks = Chunks::new(!pattern.0);
    let mut buffer = vec![0; LARGEST];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(LARGEST);
        let size = chunks.next(left.min(LARGEST));
        let mut reader = conn;
        let size =
            reader.read(&mut buffer[..size]).with_context(|| format!("receive at {at} of {length}"))?;
        if size == 0 {
            bail!("the stream ended at {at} of {length}");
        }
        if let Some(wrong) = pattern.first_wrong(at, &buffer[..size]) {
            bail!("a wrong byte at {wrong} of {length}");
        }
        at += size as u64;
    }
    Ok(())
}

/// Expects the end of the stream, with nothing before it.
///
/// # Errors
/// Something else came.
pub fn receive_end(conn: &Conn) -> Result<()> {
    let mut byte = [0];
    let mut reader = conn;
    match reader.read(&mut byte).context("wait for the end")? {
        0 => Ok(()),
        _ => bail!("a byte after the end"),
    }
}

/// Both directions at once; this end closes its direction when it has sent all.
///
/// # Errors
/// A byte is wrong, missing or too many, in either direction.
pub fn duplex(conn: &Conn, sides: Sides) -> Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send(conn, sides.send)?;
            conn.finish().context("finish")
        });
        let received = receive(conn, sides.expect).and_then(|()| receive_end(conn));
        if received.is_err() {
            // Nobody will read what is still to be sent.
            conn.stream().shutdown(Shutdown::Both).unwrap_or_default();
        }
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        received.and(sent)
    })
}

/// This end speaks first and closes its direction, then listens: with the other end [`listen_first`].
///
/// # Errors
/// A byte is wrong, missing or too many.
pub fn speak_first(conn: &Conn, sides: Sides) -> Result<()> {
    send(conn, sides.send)?;
    conn.finish().context("finish first")?;
    receive(conn, sides.expect)?;
    receive_end(conn)
}

/// This end listens up to the end of the other's direction, then speaks into the half that is left.
///
/// # Errors
/// A byte is wrong, missing or too many.
pub fn listen_first(conn: &Conn, sides: Sides) -> Result<()> {
    receive(conn, sides.expect)?;
    receive_end(conn)?;
    send(conn, sides.send)?;
    conn.finish().context("finish second")
}

/// True if a connection is refused, or ends soon after it was opened without a byte from us.
#[must_use]
pub fn is_turned_away(from: &Pod, to: SocketAddr, within: Duration) -> bool {
    match from.dial(to) {
        Ok(conn) => conn.ends_within(within),
        Err(error) => error.kind() != ErrorKind::TimedOut,
    }
}
