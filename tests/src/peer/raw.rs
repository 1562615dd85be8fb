// SPDX-License-Identifier: Apache-2.0
//! A peer that speaks frames: as the client of a pod's HBONE port, or as the HBONE port itself.
//!
//! Blocking, with a limit on every wait. SETTINGS and PING are answered on the way, as everybody must; everything else
//! is the test's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use super::certificates::{Credentials, client_config, server_config};
use super::frames::{ACK, Frame, Kind, PREFACE, code};
use crate::pod::Pod;

/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(20);

/// Both directions of TLS.
trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// One HTTP/2 connection.
pub struct RawPeer {
    tls: Box<dyn Duplex>,
    socket: TcpStream,
    received: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for RawPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawPeer").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl RawPeer {
    /// Opens a connection to a pod's HBONE port and says the preface, with these settings.
    ///
    /// # Errors
    /// TCP or TLS failed.
    pub fn dial(
        from: &Pod,
        to: SocketAddr,
        credentials: &Credentials,
        settings: &[(u16, u32)],
    ) -> Result<Self> {
        let socket = limited(from.connect(to).context("connect")?)?;
        let config = Arc::new(client_config(Some(credentials))?);
        let tls = ClientConnection::new(config, ServerName::IpAddress(to.ip().into()))?;
        let mut peer = Self::over(StreamOwned::new(tls, socket.try_clone()?), socket);
        peer.bytes(PREFACE)?;
        peer.send(&[Frame::settings(settings)])?;
        Ok(peer)
    }

    /// Takes the next connection to an HBONE port, reads the client's preface, and says the settings.
    ///
    /// # Errors
    /// Nobody came, or TLS failed.
    pub fn accept(
        listener: &TcpListener,
        credentials: &Credentials,
        settings: &[(u16, u32)],
    ) -> Result<Self> {
        let mut peer = Self::accept_silently(listener, credentials)?;
        peer.send(&[Frame::settings(settings)])?;
        Ok(peer)
    }

    /// Takes the next connection and reads the client's preface, but says nothing.
    ///
    /// # Errors
    /// Nobody came, or TLS failed.
    pub fn accept_silently(listener: &TcpListener, credentials: &Credentials) -> Result<Self> {
        let socket = limited(next_connection(listener)?)?;
        let tls = ServerConnection::new(Arc::new(server_config(credentials)?))?;
        let mut peer = Self::over(StreamOwned::new(tls, socket.try_clone()?), socket);
        while peer.received.len() < PREFACE.len() {
            ensure!(peer.more()?, "the client left before its preface");
        }
        ensure!(peer.received.drain(..PREFACE.len()).eq(PREFACE.iter().copied()), "no preface");
        Ok(peer)
    }

    fn over(tls: impl Duplex + 'static, socket: TcpStream) -> Self {
        Self { tls: Box::new(tls), socket, received: Vec::new(), ended: false }
    }

    /// Sends frames in one piece.
    ///
    /// # Errors
    /// The connection is gone, or the other side takes nothing for too long.
    pub fn send(&mut self, frames: &[Frame]) -> io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        self.bytes(&bytes)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes)?;
        self.tls.flush()
    }

    /// The next frame, or none once the connection has ended, in whichever way.
    ///
    /// # Errors
    /// Nothing came in time.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received) {
                let answer = match frame.kind {
                    Kind::Settings if !frame.has(ACK) => Some(Frame::new(Kind::Settings, ACK, 0, [])),
                    Kind::Ping if !frame.has(ACK) => {
                        Some(Frame::new(Kind::Ping, ACK, 0, frame.payload.clone()))
                    }
                    _ => None,
                };
                if let Some(answer) = answer {
                    // Who cannot be answered will be seen to have ended.
                    self.send(&[answer]).ok();
                }
                return Ok(Some(frame));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Frames up to the one that is looked for.
    ///
    /// # Errors
    /// The connection ended first, or it did not come in time; the error says what came instead.
    pub fn until(&mut self, what: &str, mut wanted: impl FnMut(&Frame) -> bool) -> Result<Frame> {
        let deadline = Instant::now() + LIMIT;
        let mut passed = Vec::new();
        while Instant::now() < deadline {
            match self.next_frame().with_context(|| format!("waiting for {what}, after {passed:?}"))? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                Some(frame) => passed.push(frame),
                None => bail!("the connection ended instead of {what}, after {passed:?}"),
            }
            if passed.len() > 40 {
                passed.drain(..20);
            }
        }
        bail!("waited in vain for {what}; last came {passed:?}")
    }

    /// Asks for a stream and waits for 200.
    ///
    /// # Errors
    /// Another answer.
    pub fn connect(&mut self, stream: u32, authority: &str) -> Result<()> {
        self.send(&[Frame::headers(stream, super::frames::connect(authority))])?;
        self.accepted(stream)
    }

    /// Waits for the 200 of a stream.
    ///
    /// # Errors
    /// Another answer.
    pub fn accepted(&mut self, stream: u32) -> Result<()> {
        let answer = self.until("an answer", |frame| {
            frame.stream == stream && matches!(frame.kind, Kind::Headers | Kind::RstStream)
        })?;
        ensure!(answer.is_ok(), "not 200: {answer:?}");
        Ok(())
    }

    /// The request that the client makes next: its stream.
    ///
    /// # Errors
    /// None comes.
    pub fn request(&mut self) -> Result<u32> {
        Ok(self.until("a request", |frame| frame.kind == Kind::Headers)?.stream)
    }

    /// Bytes of a stream, until there are so many. Windows are the test's affair.
    ///
    /// # Errors
    /// They do not come.
    pub fn read(&mut self, stream: u32, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let frame = self.until("data", |frame| frame.stream == stream && frame.kind == Kind::Data)?;
            bytes.extend(frame.payload);
        }
        Ok(bytes)
    }

    /// Waits until what was sent so far has been looked at, and gives every frame that came meanwhile.
    ///
    /// # Errors
    /// The connection ended.
    pub fn settle(&mut self) -> Result<Vec<Frame>> {
        const MARK: u64 = 0x7365_7474_6c65;
        self.send(&[Frame::ping(MARK)])?;
        let mut came = Vec::new();
        self.until("a pong", |frame| {
            came.push(frame.clone());
            frame.kind == Kind::Ping && frame.has(ACK) && frame.payload == MARK.to_be_bytes()
        })?;
        came.pop();
        Ok(came)
    }

    /// Reads to the end of the connection; gives the code of a GOAWAY that came before it.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn end(&mut self) -> Result<Option<u32>> {
        let deadline = Instant::now() + LIMIT;
        let mut said = None;
        while Instant::now() < deadline {
            match self.next_frame()? {
                None => return Ok(said),
                Some(frame) if frame.kind == Kind::GoAway => said = frame.number(4),
                Some(_) => {}
            }
        }
        bail!("the connection does not end")
    }

    /// Says goodbye, and waits until the client has left: then it will open another connection for the next stream.
    ///
    /// # Errors
    /// It stays.
    pub fn leave(mut self) -> Result<()> {
        self.send(&[Frame::goaway(0x7fff_ffff, code::NO_ERROR)])?;
        self.end().map(drop)
    }

    /// Another limit on single waits.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn patience(&mut self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit))?;
        self.socket.set_write_timeout(Some(limit))
    }

    /// Reads once; false at the end.
    fn more(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut buffer = [0; 16 << 10];
        match self.tls.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(read) => self.received.extend(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("nothing came in time")
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.ended = true,
        }
        Ok(!self.ended)
    }
}

fn limited(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Waits for somebody, with a limit.
fn next_connection(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    crate::wait::some("a connection to the peer", LIMIT, || match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        other => Some(other),
    })?
    .map(|(socket, _)| socket)
    .context("accept")
}
