// SPDX-License-Identifier: Apache-2.0
//! Streams of bytes, event-driven.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Ready;
use crate::tally::{Tally, Window};
use crate::threads::CHUNK;
use crate::{Plan, frame, threads};

/// How long the sink may take to count after the last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// One stream: upload until the window is over and the sink has counted, or download until it is over.
struct Stream {
    socket: TcpStream,
    /// Bytes sent or received.
    at: u64,
    /// Bytes sent before the window, and when that was.
    before: Option<(u64, Instant)>,
    closed: bool,
    count: [u8; 8],
    counted: usize,
}

/// What a stream says after its turn.
#[derive(PartialEq, Eq)]
enum Turn {
    More,
    /// A read that did not fill its buffer.
    Short,
    Wait,
    Done,
}

/// Streams in one direction.
pub(crate) fn bulk(plan: &Plan) -> Result<Tally> {
    let port = if plan.download { 2 } else { 1 };
    let mut ready = Ready::new()?;
    let mut streams = Vec::new();
    for number in 0..plan.conns {
        let socket = threads::connect(plan, port)?;
        socket.set_nonblocking(true).context("non-blocking")?;
        ready.watch(&socket, number)?;
        streams.push(Some(Stream { socket, at: 0, before: None, closed: false, count: [0; 8], counted: 0 }));
    }
    let window = plan.begin();
    let mut tally = Tally::default();
    let mut buffer = vec![0; CHUNK];
    let mut turn = Vec::new();
    let mut woken = false;
    while streams.iter().any(Option::is_some) {
        let over = window.is_over(Instant::now());
        if over && Instant::now() > window.to + PATIENCE {
            tally.error("the streams did not end");
            break;
        }
        if over && !woken {
            // A stream that waits for room has to learn that it is over.
            woken = true;
            (0..plan.conns).for_each(|number| ready.mark(number));
        }
        ready.wait(Duration::from_millis(50), &mut turn)?;
        for &number in &turn {
            let Some(stream) = streams[number].as_mut() else { continue };
            let moved = if plan.download {
                stream.download(plan, &window, &mut tally, &mut buffer)
            } else {
                stream.upload(&window, &mut tally)
            };
            match moved {
                Ok(Turn::More) => ready.mark(number),
                Ok(Turn::Short) => ready.short(number),
                Ok(Turn::Wait) => {}
                Ok(Turn::Done) => streams[number] = None,
                Err(error) => {
                    tally.error(format!("{error:#}"));
                    streams[number] = None;
                }
            }
        }
    }
    Ok(tally)
}

impl Stream {
    fn upload(&mut self, window: &Window, tally: &mut Tally) -> Result<Turn> {
        let now = Instant::now();
        if self.closed {
            return self.read_count(tally, window);
        }
        if window.is_over(now) {
            self.socket.shutdown(Shutdown::Write).context("half-close")?;
            self.closed = true;
            return Ok(Turn::More);
        }
        if self.before.is_none() && window.counts(now) {
            self.before = Some((self.at, now));
        }
        let bytes = frame::stream(self.at, CHUNK);
        match self.socket.write(bytes) {
            Ok(wrote) => self.at += wrote as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
            Err(error) => return Err(error).context("write"),
        }
        Ok(Turn::More)
    }

    fn read_count(&mut self, tally: &mut Tally, window: &Window) -> Result<Turn> {
        match self.socket.read(&mut self.count[self.counted..]) {
            Ok(0) => bail!("the sink went away without its count"),
            Ok(read) => self.counted += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
            Err(error) => return Err(error).context("read of the sink's count"),
        }
        if self.counted < self.count.len() {
            return Ok(Turn::More);
        }
        let (before, from) = self.before.unwrap_or((0, window.from));
        tally.seconds = Some(tally.seconds.unwrap_or(0.0).max(from.elapsed().as_secs_f64()));
        tally.bytes += self.at - before;
        tally.bytes_total += self.at;
        threads::check_count(u64::from_be_bytes(self.count), self.at)?;
        Ok(Turn::Done)
    }

    fn download(
        &mut self,
        plan: &Plan,
        window: &Window,
        tally: &mut Tally,
        buffer: &mut [u8],
    ) -> Result<Turn> {
        if window.is_over(Instant::now()) {
            return Ok(Turn::Done);
        }
        let read = match self.socket.read(buffer) {
            Ok(0) => bail!("the stream ended early"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
            Err(error) => return Err(error).context("read"),
        };
        if plan.verify && !frame::is_stream(self.at, &buffer[..read]) {
            bail!("wrong bytes after {} bytes", self.at);
        }
        self.at += read as u64;
        tally.bytes_total += read as u64;
        if window.counts(Instant::now()) {
            tally.bytes += read as u64;
        }
        Ok(if read < buffer.len() { Turn::Short } else { Turn::More })
    }
}
