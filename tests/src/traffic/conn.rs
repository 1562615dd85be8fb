// SPDX-License-Identifier: Apache-2.0
//! A non-blocking socket with deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

/// A wait longer than this is a failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// A connection, used as an event loop would. Both directions may be used at once through `&Conn`.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    patience: Duration,
    /// Set when whoever owns this connection gives up: every wait ends then.
    stop: Arc<AtomicBool>,
}

impl Conn {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        Self::until(stream, Arc::default())
    }

    /// Takes over a connected socket; every wait ends once `stop` is set.
    pub(super) fn until(stream: TcpStream, stop: Arc<AtomicBool>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, patience: PATIENCE, stop })
    }

    /// Another limit for every single wait.
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// The socket itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Who is on the other end, IPv4 unmapped.
    ///
    /// # Errors
    /// It is not connected any more.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr().map(canonical)
    }

    /// Our end.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr().map(canonical)
    }

    /// No more bytes from us; the other direction stays open.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Ends the connection with a reset.
    ///
    /// # Errors
    /// The option cannot be set.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came in time.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut this = self;
        this.read_to_end(&mut all)?;
        Ok(all)
    }

    /// Sends `request` and reads an answer of the same length.
    ///
    /// # Errors
    /// The connection broke, or no full answer came in time.
    pub fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut this = self;
        this.write_all(request)?;
        let mut answer = vec![0; request.len()];
        this.read_exact(&mut answer)?;
        Ok(answer)
    }

    /// True once the other side has closed or reset; false if nothing happened within `limit`.
    #[must_use]
    pub fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || self.wait(PollFlags::POLLIN, left).is_err() {
                        return false;
                    }
                }
                Err(_) => return true,
            }
        }
    }

    fn wait(&self, what: PollFlags, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while !self.stop.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(ErrorKind::TimedOut, "nothing happened on the connection"));
            }
            let mut ready = [PollFd::new(self.stream.as_fd(), what)];
            match poll(&mut ready, PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(ErrorKind::ConnectionAborted, "the server was stopped"))
    }
}

/// An IPv4 address that came through a dual-stack socket is an IPv4 address.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl Read for &Conn {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN, self.patience)?;
                }
                other => return other,
            }
        }
    }
}

impl Write for &Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.stream).write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, self.patience)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
