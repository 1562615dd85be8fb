// SPDX-License-Identifier: Apache-2.0
//! Asks the resolvers, from inside the pod: each query from a socket and with an id of its own, so that nobody who does not
//! see it can answer it. The message goes out as it came, but for the id; so does the answer come back.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};
use ztunnel_core::dns::Query;
use ztunnel_core::dns::exchange::{Exchange, Worth, worth};
use ztunnel_core::dns::resolv_conf::ResolvConf;
use ztunnel_core::dns::wire::{Header, set_id};

use super::{PodDns, udp};
use crate::entropy::unpredictable;
use crate::proxy::socket::PodSockets;
use crate::telemetry::dns::Transport;

/// Where resolvers listen.
const DNS_PORT: u16 = 53;
/// How long a resolver has to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The file has no `nameserver`.
    #[error("no resolver is configured in resolv.conf")]
    NoResolver,
    /// All have been asked, and had their time.
    #[error("no answer within the time limit")]
    Timeout,
    /// What the last one that could not be asked said.
    #[error("{server}: {error}")]
    Io {
        /// Which one.
        server: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// Makes the sockets from which resolvers are asked.
pub(crate) trait Reach {
    /// A socket that talks to this resolver alone.
    fn connect_udp(&self, to: SocketAddr) -> io::Result<UdpSocket>;
    /// A connection to this resolver.
    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream>;
}

impl Reach for PodSockets {
    fn connect_udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        self.connect_udp(to)
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect(to).await
    }
}

/// Resolvers, and the one of them that answered last: it is asked first.
pub(crate) type Resolvers<'a> = (&'a ResolvConf, &'a AtomicUsize);

/// Forwards a query. The response has the query's own id, and is not checked beyond being an answer to it.
///
/// # Errors
/// Nobody answered.
pub(super) async fn forward(
    sockets: &PodSockets,
    dns: &PodDns,
    query: &Query<'_>,
    transport: Transport,
) -> Result<Vec<u8>, ForwardError> {
    ask(sockets, (&dns.config.resolvers, &dns.preferred), query, transport).await
}

/// Asks resolvers, as [`forward`] does, from anywhere.
///
/// # Errors
/// Nobody answered.
pub(crate) async fn ask(
    reach: &impl Reach,
    resolvers: Resolvers<'_>,
    query: &Query<'_>,
    transport: Transport,
) -> Result<Vec<u8>, ForwardError> {
    if resolvers.0.servers.is_empty() {
        return Err(ForwardError::NoResolver);
    }
    let id = unpredictable();
    let mut message = query.message.to_vec();
    set_id(&mut message, id);
    let outgoing = Outgoing { reach, resolvers, query, id, message };
    let mut response = match transport {
        // Small answers need no connection; changes and long answers do.
        Transport::Tcp if !query.is_question() => outgoing.by_tcp().await?,
        Transport::Tcp => match outgoing.by_udp().await? {
            response if Header::parse(&response).is_some_and(Header::is_truncated) => {
                outgoing.by_tcp().await?
            }
            response => response,
        },
        Transport::Udp => outgoing.by_udp().await?,
    };
    set_id(&mut response, query.header.id);
    Ok(response)
}

struct Outgoing<'a, R> {
    reach: &'a R,
    resolvers: Resolvers<'a>,
    query: &'a Query<'a>,
    id: u16,
    message: Vec<u8>,
}

impl<R: Reach> Outgoing<'_, R> {
    fn server(&self, index: usize) -> SocketAddr {
        let servers = &self.resolvers.0.servers;
        // An exchange names none that it was not told of.
        servers.get(index).map_or_else(|| unreachable!("resolver {index}"), |&ip| (ip, DNS_PORT).into())
    }

    fn exchange(&self, rounds: u32) -> Exchange {
        let (resolvers, preferred) = self.resolvers;
        let first = preferred.load(Ordering::Relaxed);
        Exchange::new(resolvers.servers.len(), first, rounds, resolvers.timeout)
    }

    /// This server has answered: it is asked first from now on.
    fn prefer(&self, server: usize) {
        self.resolvers.1.store(server, Ordering::Relaxed);
    }

    async fn by_udp(&self) -> Result<Vec<u8>, ForwardError> {
        let mut exchange = self.exchange(self.resolvers.0.attempts);
        // One per server: an answer to an earlier datagram is as good as one to the last.
        let mut open: Vec<(usize, UdpSocket)> = Vec::new();
        let (mut refusal, mut failure) = (None, ForwardError::Timeout);
        while let Some(next) = exchange.poll_try() {
            if let Err(error) = self.send(&mut open, next.server).await {
                failure = ForwardError::Io { server: self.server(next.server), error };
                exchange.handle_refusal(next.server);
                continue;
            }
            let patience = sleep(next.patience);
            tokio::pin!(patience);
            loop {
                let (server, received) = tokio::select! {
                    received = receive(&open) => received,
                    () = &mut patience => break,
                };
                match received {
                    Ok(response) if !self.query.is_answered_by(self.id, &response) => continue,
                    Ok(response) => match Header::parse(&response).map(worth) {
                        Some(Worth::Answer) => {
                            self.prefer(server);
                            return Ok(response);
                        }
                        Some(Worth::Refusal) | None => refusal = Some(response),
                    },
                    Err(error) => failure = ForwardError::Io { server: self.server(server), error },
                }
                exchange.handle_refusal(server);
                if server == next.server || exchange.is_hopeless() {
                    break;
                }
            }
        }
        refusal.ok_or(failure)
    }

    async fn send(&self, open: &mut Vec<(usize, UdpSocket)>, server: usize) -> io::Result<()> {
        let known = open.iter().position(|(of, _)| *of == server);
        let place = match known {
            Some(place) => place,
            None => {
                open.push((server, self.reach.connect_udp(self.server(server))?));
                open.len() - 1
            }
        };
        let Some((_, socket)) = open.get(place) else { return Ok(()) };
        socket.send(&self.message).await.map(drop)
    }

    async fn by_tcp(&self) -> Result<Vec<u8>, ForwardError> {
        let mut exchange = self.exchange(1);
        let (mut refusal, mut failure) = (None, ForwardError::Timeout);
        while let Some(next) = exchange.poll_try() {
            let server = self.server(next.server);
            let asked = async {
                let mut stream = connect(self.reach, server).await?;
                timeout(self.resolvers.0.timeout, self.ask(&mut stream)).await?
            };
            match asked.await {
                Ok(response) => match Header::parse(&response).map(worth) {
                    Some(Worth::Answer) => {
                        self.prefer(next.server);
                        return Ok(response);
                    }
                    Some(Worth::Refusal) | None => refusal = Some(response),
                },
                Err(error) => failure = ForwardError::Io { server, error },
            }
        }
        refusal.ok_or(failure)
    }

    async fn ask(&self, stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        stream.write_all(&super::tcp::framed(&self.message)).await?;
        loop {
            let mut response = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut response).await?;
            if self.query.is_answered_by(self.id, &response) {
                return Ok(response);
            }
        }
    }
}

async fn connect(reach: &impl Reach, server: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, reach.connect(server)).await?
}

/// The next datagram, or error, of any of the sockets.
async fn receive(open: &[(usize, UdpSocket)]) -> (usize, io::Result<Vec<u8>>) {
    std::future::poll_fn(|cx| {
        for (server, socket) in open {
            let received = udp::with_buffer(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                socket.poll_recv(cx, &mut buffer).map_ok(|()| buffer.filled().to_vec())
            });
            if let Poll::Ready(received) = received {
                return Poll::Ready((*server, received));
            }
        }
        Poll::Pending
    })
    .await
}
