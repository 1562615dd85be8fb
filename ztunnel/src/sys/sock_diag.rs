// SPDX-License-Identifier: Apache-2.0
//! Ends a socket's TIME_WAIT, through the kernel's `sock_diag` (`linux/inet_diag.h`, `linux/sock_diag.h`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Where a request has its `struct inet_diag_sockid`, and an answer too.
const SOCKET_ID: (usize, usize) = (8, 4);
/// Where a `struct inet_diag_sockid` has its cookie, to its end.
const COOKIE: std::ops::Range<usize> = 40..48;
const NO_COOKIE: [u8; 8] = [0xff; 8];
const TIME_WAIT: u8 = 6;

/// A channel to the kernel's socket tables in the network namespace it was opened in.
#[derive(Debug)]
pub struct SockDiag(OwnedFd);

impl SockDiag {
    /// Opens a channel to the tables of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no `sock_diag`, or the process may not use it.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
        Ok(Self(fd))
    }

    /// Ends the TIME_WAIT between these two addresses. `false`: there is none.
    ///
    /// A socket is only ever ended by the cookie of the very TIME_WAIT that was found: a new connection between the
    /// same addresses, or our listener, is left alone.
    ///
    /// # Errors
    /// The kernel refuses: no `CAP_NET_ADMIN`, or no `CONFIG_INET_DIAG_DESTROY`.
    pub fn end_time_wait(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
        self.send(SOCK_DIAG_BY_FAMILY, local, peer, NO_COOKIE)?;
        let Some(cookie) = self.found()? else { return Ok(false) };
        self.send(SOCK_DESTROY, local, peer, cookie)?;
        // Success is silent; a refusal has been answered by now.
        match self.receive()? {
            None => Ok(true),
            // It ended by itself in between.
            Some(answer) => match refusal(&answer) {
                Some(Errno::ENOENT) => Ok(false),
                Some(error) => Err(error.into()),
                None => Ok(true),
            },
        }
    }

    fn send(&self, kind: u16, local: SocketAddr, peer: SocketAddr, cookie: [u8; 8]) -> io::Result<()> {
        let message = request(kind, local, peer, cookie);
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// The cookie of what the kernel found, if it is a TIME_WAIT.
    fn found(&self) -> io::Result<Option<[u8; 8]>> {
        let Some(answer) = self.receive()? else { return Ok(None) };
        match refusal(&answer) {
            Some(Errno::ENOENT) => return Ok(None),
            Some(error) => return Err(error.into()),
            None => {}
        }
        let id = HEADER + SOCKET_ID.1;
        let cookie = answer.get(id + COOKIE.start..id + COOKIE.end).and_then(|bytes| bytes.try_into().ok());
        Ok(cookie.filter(|_| answer.get(HEADER + 1) == Some(&TIME_WAIT)))
    }

    /// The kernel answers before `sendto` returns.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 1024];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn request(kind: u16, local: SocketAddr, peer: SocketAddr, cookie: [u8; 8]) -> [u8; HEADER + REQUEST] {
    const LENGTH: usize = HEADER + REQUEST;
    let mut message = [0; LENGTH];
    message[..4].copy_from_slice(&u32::try_from(LENGTH).unwrap_or(u32::MAX).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let body = &mut message[HEADER..];
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    body[0] = family.to_le_bytes()[0];
    body[1] = libc::IPPROTO_TCP.to_le_bytes()[0];
    // Every state.
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    let id = &mut body[SOCKET_ID.0..];
    id[..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&peer.port().to_be_bytes());
    put(&mut id[4..20], local.ip());
    put(&mut id[20..36], peer.ip());
    id[COOKIE].copy_from_slice(&cookie);
    message
}

fn put(place: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => place[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => place.copy_from_slice(&ip.octets()),
    }
}

/// The error in an answer, if it is one.
fn refusal(answer: &[u8]) -> Option<Errno> {
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let code = answer.get(HEADER..HEADER + 4)?.try_into().ok().map(i32::from_ne_bytes)?;
    (kind == NLMSG_ERROR && code != 0).then(|| Errno::from_raw(-code))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection that `first` ended first, gone on both sides.
    fn ended() -> (TcpListener, SocketAddr, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        client.read_exact(&mut [0]).unwrap_err();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        (listener, local, peer)
    }

    #[test]
    fn a_time_wait_is_ended_once_and_nothing_else_is() {
        let diag = SockDiag::open().unwrap();
        let (listener, local, peer) = ended();
        match diag.end_time_wait(local, peer) {
            Ok(found) => assert!(found),
            Err(error) => {
                eprintln!("NOT RUN, this process may not end sockets: {error}");
                return;
            }
        }
        // Nothing between these addresses is left but the listener, which must live.
        assert!(!diag.end_time_wait(local, peer).unwrap());
        let again = TcpStream::connect(local).unwrap();
        listener.accept().unwrap();
        assert!(!diag.end_time_wait(local, again.local_addr().unwrap()).unwrap());
    }
}
