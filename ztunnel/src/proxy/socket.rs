// SPDX-License-Identifier: Apache-2.0
//! Makes sockets inside one pod: listeners that applications are redirected to, and connections that leave the pod.
//!
//! Source: control-plane contract, section 6.5.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tracing::{debug, warn};

use super::relay;
use crate::config::{Keepalive, SocketConfig};
use crate::fastpath::FastPath;
use crate::sys::netns::Netns;
use crate::sys::sock_diag::SockDiag;
use crate::sys::sockopt;

/// How long any connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pending connections per listener.
const BACKLOG: i32 = 1024;

/// Makes the sockets of one pod.
#[derive(Debug, Clone)]
pub struct PodSockets {
    netns: Arc<Netns>,
    config: SocketConfig,
    fastpath: FastPath,
}

/// What a listener is for, as far as its socket options go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// 15001: the application's outbound connections; its children may take the fast path.
    Outbound,
    /// 15006 and 15008.
    Inbound,
    /// What applications call on the pod's loopback, or are redirected to it: DNS and SOCKS5.
    Local,
}

/// A listening socket, and whether connections made on its behalf may keep the client's address.
#[derive(Debug)]
pub struct Listener {
    /// Non-blocking.
    pub socket: std::net::TcpListener,
    /// `IP_TRANSPARENT` could be set.
    pub transparent: bool,
}

impl Listener {
    /// The same socket under another descriptor.
    ///
    /// # Errors
    /// There are none left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, transparent: self.transparent })
    }
}

impl PodSockets {
    /// Whether several listeners may have the same port.
    pub fn share_ports(&self) -> bool {
        self.config.port_reuse
    }

    /// Sockets of the pod that owns `netns`.
    pub fn new(netns: Arc<Netns>, config: SocketConfig, fastpath: FastPath) -> Self {
        Self { netns, config, fastpath }
    }

    /// Listens on `port` on every address of the pod.
    ///
    /// # Errors
    /// `failed to bind to address …` with the reason.
    pub fn listen(&self, port: u16, kind: ListenerKind) -> io::Result<Listener> {
        let ip = if self.config.ipv6 && self.has_ipv6() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        self.listen_at(SocketAddr::new(ip, port), kind)
    }

    /// Listens at one address of the pod.
    ///
    /// # Errors
    /// `failed to bind to address …` with the reason.
    pub fn listen_at(&self, address: SocketAddr, kind: ListenerKind) -> io::Result<Listener> {
        self.netns.run(|| self.listen_here(address, kind))?.map_err(|error| {
            io::Error::new(error.kind(), format!("failed to bind to address {address}: {error}"))
        })
    }

    /// Receives datagrams at one address of the pod.
    ///
    /// # Errors
    /// `failed to bind to address …` with the reason.
    pub fn listen_udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let bound = self.netns.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if self.config.mark_listeners {
                self.mark(&socket)?;
            }
            if self.config.port_reuse {
                socket.set_reuse_port(true)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            Ok(socket.into())
        })?;
        bound.map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("failed to bind to address {address} (UDP): {error}"))
        })
    }

    /// A socket for datagrams to and from nobody but `to`, at a port that the kernel chooses by chance.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn connect_udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.netns.run(|| {
            let socket =
                Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            self.mark(&socket)?;
            socket.connect(&to.into())?;
            io::Result::Ok(socket)
        })??;
        UdpSocket::from_std(socket.into())
    }

    /// The loopback addresses of the pod: 127.0.0.1, and ::1 where its loopback has IPv6.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn localhost(&self) -> io::Result<Vec<IpAddr>> {
        let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        // An address that is switched off, or a kernel without IPv6: neither can be bound to.
        let can_bind = || std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        if self.config.ipv6 && self.netns.run(can_bind)? {
            all.push(Ipv6Addr::LOCALHOST.into());
        }
        Ok(all)
    }

    /// Does the pod's namespace have IPv6 at all?
    fn has_ipv6(&self) -> bool {
        let probe = || Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok();
        self.netns.run(probe).unwrap_or(false)
    }

    fn listen_here(&self, address: SocketAddr, kind: ListenerKind) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if self.config.mark_listeners {
            self.mark(&socket)?;
        }
        if self.config.port_reuse {
            if let Err(error) = socket.set_reuse_port(true) {
                warn!(%address, %error, "cannot share the port with another ztunnel");
            }
        } else {
            socket.set_reuse_address(true)?;
        }
        let transparent = kind != ListenerKind::Local && self.make_transparent(&socket)?;
        // Accepted sockets inherit both.
        socket.set_tcp_nodelay(true)?;
        self.keep_alive(SockRef::from(&socket));
        if kind == ListenerKind::Outbound {
            // Before it listens, so that no child is born without the tag.
            self.fastpath.tag_listener(socket.as_fd());
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Listener { socket: socket.into(), transparent })
    }

    fn make_transparent(&self, socket: &Socket) -> io::Result<bool> {
        match self.config.original_source {
            Some(false) => Ok(false),
            required => match socket.set_ip_transparent_v4(true) {
                Ok(()) => Ok(true),
                Err(error) if required.is_none() => {
                    warn!(%error, "cannot keep the client's address towards applications");
                    Ok(false)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn mark(&self, socket: &Socket) -> io::Result<()> {
        if self.config.mark == 0 { Ok(()) } else { socket.set_mark(self.config.mark) }
    }

    fn keep_alive(&self, socket: SockRef<'_>) {
        if let Some(timeout) = self.config.user_timeout
            && let Err(error) = socket.set_tcp_user_timeout(Some(timeout))
        {
            debug!(%error, "cannot set TCP_USER_TIMEOUT");
        }
        let Some(Keepalive { time, interval, retries }) = self.config.keepalive else { return };
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
            debug!(%error, "cannot set keepalive");
        }
    }

    /// Connects from the pod's own address.
    ///
    /// # Errors
    /// `TimedOut` after 10 s, or the kernel's reason.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.netns.run(|| self.outgoing(to))??;
        self.finish(socket, to).await
    }

    /// Connects to the application at `to`, from the client's address `source` if there is one to keep.
    ///
    /// # Errors
    /// `TimedOut` after 10 s, or the kernel's reason.
    pub async fn deliver(&self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
        // A connection of the pod to itself keeps its address anyway, and the kernel would not route a foreign one.
        let source = source.filter(|source| *source != to.ip() && source.is_ipv4() == to.is_ipv4());
        let socket = self.netns.run(|| {
            let socket = self.outgoing(to)?;
            if let Some(source) = source
                && let Err(error) = bind_foreign(&socket, source)
            {
                warn!(%source, %error, "cannot keep the client's address, using the pod's own");
                return self.outgoing(to);
            }
            Ok(socket)
        })??;
        self.fastpath.tag_delivery(socket.as_fd());
        self.finish(socket, to).await
    }

    /// A channel to the socket tables of the pod's namespace.
    ///
    /// # Errors
    /// The kernel has none, or refuses it.
    pub(super) fn sock_diag(&self) -> io::Result<SockDiag> {
        self.netns.run(SockDiag::open)?
    }

    fn outgoing(&self, to: SocketAddr) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
        self.mark(&socket)?;
        socket.set_tcp_nodelay(true)?;
        self.keep_alive(SockRef::from(&socket));
        Ok(socket)
    }

    async fn finish(&self, socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(socket.into());
        match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(to)).await {
            Ok(result) => result,
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
        }
    }
}

/// A connection that is reset when it is dropped, unless it came to its end: a cut one must never look complete.
#[derive(Debug)]
pub struct Guarded {
    socket: TcpStream,
    ended: bool,
}

impl Guarded {
    /// Guards `socket`.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, ended: false }
    }

    /// Both directions have ended as they should.
    pub fn end(&mut self) {
        self.ended = true;
    }
}

impl Deref for Guarded {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.socket
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.ended {
            relay::reset(&self.socket);
        }
    }
}

/// Binds to an address that is not the pod's. The listening side sees the true client.
fn bind_foreign(socket: &Socket, source: IpAddr) -> io::Result<()> {
    match source {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => sockopt::set_ipv6_transparent(socket)?,
    }
    // Or every connection would take one of the address' ports for itself, until it has left TIME_WAIT.
    sockopt::set_bind_address_no_port(socket)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}
