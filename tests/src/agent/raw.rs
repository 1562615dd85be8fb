// SPDX-License-Identifier: Apache-2.0
//! The agent's end of the socket: packets with file descriptors, as they are.

use std::io::{self, IoSlice, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use super::wire;

/// Longest packet of the protocol.
const PACKET: usize = 1024;

/// Where a ztunnel connects to.
#[derive(Debug)]
pub struct RawListener(Socket);

impl RawListener {
    /// Listens at `path`; a file that is there already is stale.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn bind(path: &Path) -> Result<Self> {
        drop(std::fs::remove_file(path));
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).context("make a seqpacket socket")?;
        socket.bind(&SockAddr::unix(path)?).with_context(|| format!("listen at {}", path.display()))?;
        socket.listen(8)?;
        Ok(Self(socket))
    }

    /// The next connection within `limit`; `None` if there is none.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn accept(&self, limit: Duration) -> io::Result<Option<RawConnection>> {
        self.0.set_read_timeout(Some(limit))?;
        match self.0.accept() {
            Ok((socket, _)) => Ok(Some(RawConnection(socket))),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One connected ztunnel.
#[derive(Debug)]
pub struct RawConnection(Socket);

impl RawConnection {
    /// Sends one packet, with descriptors beside it.
    ///
    /// # Errors
    /// ztunnel is gone.
    pub fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None)?;
        Ok(())
    }

    /// The next packet within `limit`. `None`: ztunnel has closed.
    ///
    /// # Errors
    /// Nothing came in time, or the connection broke.
    pub fn receive(&self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        self.0.set_read_timeout(Some(limit))?;
        let mut packet = vec![0; PACKET];
        match (&self.0).read(&mut packet) {
            Ok(0) => Ok(None),
            Ok(length) => {
                packet.truncate(length);
                Ok(Some(packet))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Expects ztunnel's first packet.
    ///
    /// # Errors
    /// It is something else, or does not come.
    pub fn expect_hello(&self) -> Result<()> {
        let packet = self.receive(Duration::from_secs(5)).context("wait for the hello")?;
        if packet.as_deref() != Some(&wire::HELLO) {
            bail!("expected a hello, got {packet:02x?}");
        }
        Ok(())
    }

    /// Sends a request and gives the error text of its ack, empty for success.
    ///
    /// # Errors
    /// No ack came.
    pub fn ask(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<String> {
        self.send(packet, descriptors).context("send a ZDS request")?;
        match self.receive(Duration::from_secs(5)).context("wait for an ack")? {
            Some(answer) => wire::ack(&answer).with_context(|| format!("not an ack: {answer:02x?}")),
            None => bail!("ztunnel closed the connection instead of answering"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
