// SPDX-License-Identifier: Apache-2.0
//! The node agent's socket: Unix, SOCK_SEQPACKET, at most one file descriptor with a packet.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recvmsg,
    send, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ztunnel_core::zds::Cut;

/// Both sides read with a buffer of this size; a longer packet is an error.
pub const MAX_PACKET: usize = 1024;

/// One received packet with every descriptor that came along.
#[derive(Debug)]
pub struct Packet {
    /// The bytes; empty at the end of the connection.
    pub bytes: Vec<u8>,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// What did not fit.
    pub cut: Cut,
}

/// A connected socket.
#[derive(Debug)]
pub struct Seqpacket(AsyncFd<OwnedFd>);

impl Seqpacket {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the path is too long for a socket address.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let address = UnixAddr::new(path)?;
        let result = connect(fd.as_raw_fd(), &address);
        // SAFETY: an `OwnedFd` names one and the same open descriptor for as long as it lives.
        let this = Self(unsafe { AsyncFd::register(fd) }?);
        match result {
            Ok(()) => {}
            Err(nix::Error::EAGAIN | nix::Error::EINPROGRESS) => {
                this.0.writable().await?.retain_ready();
                let error = getsockopt(this.0.get_ref(), sockopt::SocketError)?;
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(error));
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(this)
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// The peer is gone.
    ///
    /// # Cancel safety
    /// Nothing was sent if the future is dropped before it is ready.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self
            .0
            .async_io(Interest::WRITABLE, |fd| Ok(send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?))
            .await?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Waits for one packet. Empty bytes mean that the peer closed.
    ///
    /// # Errors
    /// Whatever `recvmsg` answers.
    ///
    /// # Cancel safety
    /// No packet is lost if the future is dropped before it is ready.
    pub async fn receive(&self) -> io::Result<Packet> {
        self.0.async_io(Interest::READABLE, receive).await
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Packet> {
    let mut bytes = [0; MAX_PACKET];
    // Room for more than the one descriptor that the protocol allows, so that surplus ones are seen and closed.
    let mut control = cmsg_space!([std::os::fd::RawFd; 8]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for fd in received {
                // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let cut = if message.flags.contains(MsgFlags::MSG_TRUNC) {
        Cut::Data
    } else if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        Cut::Control
    } else {
        Cut::Whole
    };
    let length = message.bytes;
    Ok(Packet { bytes: bytes[..length].to_vec(), fds, cut })
}
