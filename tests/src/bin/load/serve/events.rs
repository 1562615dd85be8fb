// SPDX-License-Identifier: Apache-2.0
//! All connections on one thread, edge-triggered epoll.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Service;
use super::inbox::Inbox;
use crate::events::Ready;
use crate::frame;
use crate::threads::CHUNK;

/// One accepted connection.
struct Conn {
    stream: TcpStream,
    service: Service,
    inbox: Inbox,
    /// Bytes to be sent, and how many of them are.
    out: Vec<u8>,
    sent: usize,
    /// Bytes of the stream, for sink and source.
    count: u64,
    /// Ends once everything is sent.
    closing: bool,
}

#[derive(PartialEq, Eq)]
enum Turn {
    More,
    /// A read that did not fill its buffer.
    Short,
    Wait,
    Done,
}

/// Serves until killed. Numbers below the listeners' count are listeners, all others connections.
pub(crate) fn run(listeners: Vec<(Service, TcpListener)>) -> Result<()> {
    let mut ready = Ready::new()?;
    for (number, (_, listener)) in listeners.iter().enumerate() {
        listener.set_nonblocking(true).context("non-blocking")?;
        ready.watch(listener, number)?;
    }
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let mut turn = Vec::new();
    loop {
        ready.wait(Duration::from_secs(1), &mut turn)?;
        for &number in &turn {
            if let Some((service, listener)) = listeners.get(number) {
                accept(*service, listener, |conn| {
                    let slot = free.pop().unwrap_or_else(|| {
                        conns.push(None);
                        conns.len() - 1
                    });
                    ready.watch(&conn.stream, listeners.len() + slot)?;
                    conns[slot] = Some(conn);
                    Ok(())
                })?;
                continue;
            }
            let slot = number - listeners.len();
            let Some(conn) = conns[slot].as_mut() else { continue };
            match conn.turn(&mut buffer) {
                Ok(Turn::More) => ready.mark(number),
                Ok(Turn::Short) => ready.short(number),
                Ok(Turn::Wait) => {}
                Ok(Turn::Done) => {
                    conns[slot] = None;
                    free.push(slot);
                }
                Err(error) => {
                    eprintln!("load serve: {error:#}");
                    conns[slot] = None;
                    free.push(slot);
                }
            }
        }
    }
}

fn accept(service: Service, listener: &TcpListener, mut take: impl FnMut(Conn) -> Result<()>) -> Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accept"),
        };
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        stream.set_nonblocking(true).context("non-blocking")?;
        let (inbox, out) = (Inbox::default(), Vec::new());
        take(Conn { stream, service, inbox, out, sent: 0, count: 0, closing: false })?;
    }
}

impl Conn {
    fn turn(&mut self, buffer: &mut [u8]) -> Result<Turn> {
        if !self.flush()? {
            return Ok(Turn::Wait);
        }
        if self.closing {
            return Ok(Turn::Done);
        }
        if self.service == Service::Source {
            return Ok(self.source());
        }
        let read = match self.stream.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
            Err(error) => return Err(error).context("read"),
        };
        if read == 0 {
            if matches!(self.service, Service::Sink | Service::CheckedSink) {
                self.out.extend(self.count.to_be_bytes());
            }
            self.closing = true;
            return Ok(if self.flush()? { Turn::Done } else { Turn::Wait });
        }
        self.take(&buffer[..read])?;
        let flushed = self.flush()?;
        if flushed && self.closing {
            return Ok(Turn::Done);
        }
        // A short read means that there is no more, as tokio and nginx have it.
        Ok(match (flushed, read == buffer.len()) {
            (true, true) => Turn::More,
            (true, false) => Turn::Short,
            (false, _) => Turn::Wait,
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        match self.service {
            Service::Answer => {
                self.inbox.push(bytes);
                let mut answer = Vec::new();
                while let Some(request) = self.inbox.next()? {
                    request.write_answer(&mut answer);
                    self.out.append(&mut answer);
                    self.closing |= request.close;
                }
            }
            Service::Sink => self.count += bytes.len() as u64,
            Service::CheckedSink => {
                if !frame::is_stream(self.count, bytes) {
                    bail!("sink: wrong bytes after {} bytes", self.count);
                }
                self.count += bytes.len() as u64;
            }
            Service::Echo => self.out.extend_from_slice(bytes),
            Service::Source => {}
        }
        Ok(())
    }

    /// Nobody reads any more: that is how a source ends.
    fn source(&mut self) -> Turn {
        match self.stream.write(frame::stream(self.count, CHUNK)) {
            Ok(wrote) => {
                self.count += wrote as u64;
                Turn::More
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Turn::Wait,
            Err(_) => Turn::Done,
        }
    }

    /// True when nothing is left to send.
    fn flush(&mut self) -> Result<bool> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(wrote) => self.sent += wrote,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("write"),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }
}
