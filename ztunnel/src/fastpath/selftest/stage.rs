// SPDX-License-Identifier: Apache-2.0
//! Where the self-test plays: a network namespace with one enrolled pod, listeners, two ends.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use ztunnel_common::{Control, Pod, level, role};

use super::super::loader::Kernel;
use super::super::pair::{self, Path};
use crate::sys::bpf::raise_loopback;
use crate::sys::sockopt::netns_cookie;

/// A documentation address (RFC 5737): like a pod's own address it is local, and no loopback address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PATIENCE: Duration = Duration::from_secs(5);

/// The scratch namespace, enrolled at level `full`.
pub(super) struct Stage<'a> {
    pub(super) kernel: &'a Kernel,
    cookie: u64,
    ours: TcpListener,
    theirs: TcpListener,
}

/// Both ends of one connection.
pub(super) struct Ends {
    /// The application's.
    pub(super) app: TcpStream,
    /// Ours, tagged.
    pub(super) ours: TcpStream,
}

impl<'a> Stage<'a> {
    /// Moves this thread into a new namespace.
    pub(super) fn set(kernel: &'a Kernel) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        raise_loopback(ADDRESS)?;
        let ours = TcpListener::bind((ADDRESS, 0))?;
        kernel.tags.set_socket(ours.as_fd(), &role::ACCEPTED)?;
        let theirs = TcpListener::bind((ADDRESS, 0))?;
        let cookie = netns_cookie(&ours)?;
        kernel.pods.insert(&cookie, &Pod { level: level::FULL, on: 1 })?;
        Ok(Self { kernel, cookie, ours, theirs })
    }

    /// Back to the settings of everyday life.
    pub(super) fn reset(&self) -> io::Result<()> {
        self.kernel.switch(true)
    }

    /// An application that connects to our listener.
    pub(super) fn outbound(&self) -> io::Result<Ends> {
        let app = TcpStream::connect(self.ours.local_addr()?)?;
        let (ours, _) = self.ours.accept()?;
        Ends { app, ours }.prepared()
    }

    /// We connect to an application's listener.
    pub(super) fn inbound(&self) -> io::Result<Ends> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        self.kernel.tags.set_socket(socket.as_fd(), &role::DELIVERY)?;
        socket.connect(&self.theirs.local_addr()?.into())?;
        let (app, _) = self.theirs.accept()?;
        Ends { app, ours: socket.into() }.prepared()
    }

    /// Two applications that talk to each other; `ours` is not ours.
    pub(super) fn strangers(&self) -> io::Result<Ends> {
        let app = TcpStream::connect(self.theirs.local_addr()?)?;
        let (ours, _): (TcpStream, SocketAddr) = self.theirs.accept()?;
        Ends { app, ours }.prepared()
    }

    /// Lets every n-th message go by TCP.
    pub(super) fn pass_every(&self, messages: u32) -> io::Result<()> {
        self.kernel.control.insert(&0, &Control { pass_every: messages, ..Kernel::settings() })
    }

    /// Whether the application has redirected bytes to read.
    pub(super) fn unread(&self, ends: &Ends) -> Result<bool, String> {
        let place = pair::locate(self.kernel, ends.ours.as_fd()).1.ok_or("not paired")?;
        self.kernel.has_unread(place).map_err(|error| error.to_string())
    }

    /// Has nothing redirected to us any more; the position up to which something was.
    pub(super) fn close_gate(&self, ends: &Ends) -> Result<u64, String> {
        let place = pair::locate(self.kernel, ends.ours.as_fd()).1.ok_or("not paired")?;
        self.kernel.close_gate(place).map_err(|error| error.to_string())
    }

    pub(super) fn path(&self, ends: &Ends) -> Path {
        pair::locate(self.kernel, ends.ours.as_fd()).0
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.kernel.pods.remove(&self.cookie) {
            tracing::debug!("the self-test's pod could not be withdrawn: {error}");
        }
    }
}

impl Ends {
    fn prepared(self) -> io::Result<Self> {
        for stream in [&self.app, &self.ours] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(self)
    }
}

/// The byte at a position of a test stream: a byte that is lost, doubled or moved is seen.
pub(super) fn pattern(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

pub(super) fn pattern_bytes(from: u64, length: usize) -> Vec<u8> {
    (from..).take(length).map(pattern).collect()
}

/// Writes positions `from..from + length` in one call.
pub(super) fn send(mut stream: &TcpStream, from: u64, length: usize) -> io::Result<()> {
    stream.write_all(&pattern_bytes(from, length))
}

/// Reads up to `length` bytes and compares them; less only at the end of the stream. A blocking
/// read of a member can fail with `EAGAIN` too early; the caller's patience counts, not the kernel's.
pub(super) fn expect(mut stream: &TcpStream, from: u64, length: usize) -> Result<usize, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; length.min(64 << 10)];
    let mut done = 0;
    while done < length {
        let room = buffer.len().min(length - done);
        match stream.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(read) => {
                let start = from + done as u64;
                if let Some(at) = (start..).zip(&buffer[..read]).position(|(at, byte)| pattern(at) != *byte) {
                    return Err(format!("wrong byte at {}", start + at as u64));
                }
                done += read;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if Instant::now() > deadline {
                    return Err(format!("only {done} of {length} bytes came"));
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(done)
}
