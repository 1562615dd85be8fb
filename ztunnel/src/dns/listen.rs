// SPDX-License-Identifier: Apache-2.0
//! The DNS listeners in a pod.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::config::dns::Listen;
use crate::proxy::socket::{ListenerKind, PodSockets};

/// One pod's DNS listeners for one worker, all non-blocking.
#[derive(Debug, Default)]
pub struct Listeners {
    /// One per address.
    pub udp: Vec<UdpSocket>,
    /// One per address.
    pub tcp: Vec<TcpListener>,
}

/// Binds the listeners of one worker.
///
/// # Errors
/// `failed to bind to address …` with the reason.
pub fn bind(sockets: &PodSockets, listen: Listen) -> io::Result<Listeners> {
    let addresses: Vec<SocketAddr> = match listen {
        Listen::Addr(address) => vec![address],
        Listen::Localhost(port) => sockets.localhost()?.into_iter().map(|ip| (ip, port).into()).collect(),
    };
    let mut listeners = Listeners::default();
    for address in addresses {
        listeners.udp.push(sockets.listen_udp(address)?);
        listeners.tcp.push(sockets.listen_at(address, ListenerKind::Local)?.socket);
    }
    Ok(listeners)
}

impl Listeners {
    /// The same sockets for another worker.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            udp: self.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            tcp: self.tcp.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
        })
    }
}
