// SPDX-License-Identifier: Apache-2.0
//! The server's side: four services on four ports, with blocking threads or event-driven.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result};

pub(crate) mod events;
pub(crate) mod inbox;
pub(crate) mod threads;

/// What a port does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Answers requests.
    Answer,
    /// Reads to the end, then tells how many bytes there were.
    Sink,
    /// The same, and checks every byte.
    CheckedSink,
    /// Writes until nobody reads any more.
    Source,
    /// Sends back what it gets.
    Echo,
}

/// Listens on the ports of all services, from `port` on; `sink` is one of the two kinds.
pub(crate) fn listen(addr: IpAddr, port: u16, sink: Service) -> Result<Vec<(Service, TcpListener)>> {
    use socket2::{Domain, Protocol, Socket, Type};
    let services = [Service::Answer, sink, Service::Source, Service::Echo];
    let listen = |(port, service)| {
        let addr = SocketAddr::new(addr, port);
        let bound =
            Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
                socket.set_reuse_address(true)?;
                socket.bind(&addr.into())?;
                // A burst of new connections must not wait for a SYN to be sent again.
                socket.listen(4096)?;
                Ok(TcpListener::from(socket))
            });
        Ok((service, bound.with_context(|| format!("listen on {addr}"))?))
    };
    (port..).zip(services).map(listen).collect()
}
