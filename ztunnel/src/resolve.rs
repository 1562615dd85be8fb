// SPDX-License-Identifier: Apache-2.0
//! Finds the addresses of workloads that are known by host name, in ztunnel's own namespace and by its own name servers.
//!
//! One task asks, for all workers: a name that several connections wait for is asked once. What it found, and that it found
//! nothing, is remembered for a while.
//!
//! Source: data-plane contract, section 2.5.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, warn};
use ztunnel_core::Name;
use ztunnel_core::dns::resolv_conf::ResolvConf;
use ztunnel_core::dns::{Query, kind, wire};
use ztunnel_core::resolve::{Cache, Found, names};

use crate::dns::forward::{self, Reach};
use crate::telemetry::dns::Transport;

/// How long a connection waits for an answer.
const WAIT: Duration = Duration::from_secs(5);
/// How long the addresses of one family wait for those of the other.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Questions that are on their way.
const ROOM: usize = 1024;

/// Asks for addresses. Clones ask the same task.
#[derive(Debug, Clone)]
pub struct Resolver {
    cache: Arc<Mutex<Cache>>,
    questions: mpsc::Sender<Question>,
}

/// The task that asks.
#[derive(Debug)]
pub struct Resolving {
    cache: Arc<Mutex<Cache>>,
    questions: mpsc::Receiver<Question>,
    servers: Arc<Servers>,
}

#[derive(Debug)]
struct Question {
    host: Name,
    answer: oneshot::Sender<Vec<IpAddr>>,
}

impl Resolver {
    /// A resolver, and the task that must run for it.
    pub fn new(config: Arc<ResolvConf>, ipv6: bool) -> (Self, Resolving) {
        let (sender, questions) = mpsc::channel(ROOM);
        let cache = Arc::<Mutex<Cache>>::default();
        let servers = Arc::new(Servers { config, preferred: AtomicUsize::new(0), ipv6 });
        (Self { cache: Arc::clone(&cache), questions: sender }, Resolving { cache, questions, servers })
    }

    /// The addresses of a host, in no order that means anything; none if it has none, or if nobody said so within 5 s.
    pub async fn addresses(&self, host: &Name) -> Vec<IpAddr> {
        let known = self.cache.lock().get(host, Instant::now()).map(<[IpAddr]>::to_vec);
        if let Some(known) = known {
            return known;
        }
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(Question { host: Name::clone(host), answer }).await.ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(WAIT, asked).await.ok().flatten().unwrap_or_default()
    }
}

impl Resolving {
    /// Answers questions for ever.
    pub async fn run(mut self) {
        let mut waiting: HashMap<Name, Vec<oneshot::Sender<Vec<IpAddr>>>> = HashMap::new();
        let mut lookups = JoinSet::new();
        loop {
            tokio::select! {
                Some(Question { host, answer }) = self.questions.recv() => {
                    let known = self.cache.lock().get(&host, Instant::now()).map(<[IpAddr]>::to_vec);
                    if let Some(known) = known {
                        // Whoever asked may have gone.
                        drop(answer.send(known));
                        continue;
                    }
                    let others = waiting.entry(Name::clone(&host)).or_default();
                    others.push(answer);
                    if others.len() == 1 {
                        lookups.spawn_local(look_up(host, Arc::clone(&self.servers)));
                    }
                }
                Some(done) = lookups.join_next() => {
                    let Ok((host, found)) = done else { continue };
                    for answer in waiting.remove(&host).unwrap_or_default() {
                        drop(answer.send(found.addresses.clone()));
                    }
                    self.cache.lock().insert(host, found, Instant::now());
                }
                else => return,
            }
        }
    }
}

/// What name servers say of a host, in either family at once, under the first of its names that has an address.
async fn look_up(host: Name, servers: Arc<Servers>) -> (Name, Found) {
    let asked = async {
        for name in names(&host, &servers.config.search) {
            let mut four = pin!(servers.ask(&name, kind::A));
            let mut six = pin!(servers.ask(&name, kind::AAAA));
            let found = tokio::select! {
                found = &mut four => both(found, six).await,
                found = &mut six => both(found, four).await,
            };
            if !found.addresses.is_empty() {
                return found;
            }
        }
        Found::default()
    };
    let found = tokio::time::timeout(WAIT, asked).await.unwrap_or_default();
    if found.addresses.is_empty() {
        warn!(%host, "no name server has an address for a workload's host name");
    }
    (host, found)
}

/// What both families have. One that has addresses hardly waits for the other (RFC 8305, section 3).
async fn both(first: Found, other: impl Future<Output = Found>) -> Found {
    let patience = if first.addresses.is_empty() { WAIT } else { RESOLUTION_DELAY };
    let other = tokio::time::timeout(patience, other).await.unwrap_or_default();
    match (first.addresses.is_empty(), other.addresses.is_empty()) {
        (true, _) => other,
        (_, true) => first,
        (false, false) => Found {
            addresses: first.addresses.into_iter().chain(other.addresses).collect(),
            ttl: first.ttl.min(other.ttl),
        },
    }
}

/// Whom to ask.
#[derive(Debug)]
struct Servers {
    config: Arc<ResolvConf>,
    /// The one that answered last.
    preferred: AtomicUsize,
    ipv6: bool,
}

impl Servers {
    /// The addresses of one family; none if there are none, or if nobody says so.
    async fn ask(&self, name: &str, kind: u16) -> Found {
        if kind == kind::AAAA && !self.ipv6 {
            return Found::default();
        }
        let Some(question) = wire::question(name, kind, 0) else { return Found::default() };
        let Ok(query) = Query::parse(&question) else { return Found::default() };
        // By TCP what does not fit into a datagram.
        let answer = forward::ask(&Home, (&self.config, &self.preferred), &query, Transport::Tcp).await;
        let read = |answer: Vec<u8>| {
            let addresses = wire::addresses(&answer, kind)?.into_iter().map(|ip| ip.to_canonical()).collect();
            let ttl = Duration::from_secs(wire::lifetime(&answer)?.unwrap_or_default().into());
            Ok::<_, wire::Malformed>(Found { addresses, ttl })
        };
        match answer.map(read) {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                debug!(%name, %error, "a name server's answer is of no use");
                Found::default()
            }
            Err(error) => {
                debug!(%name, %error, "no name server answers");
                Found::default()
            }
        }
    }
}

/// Our own namespace.
struct Home;

impl Reach for Home {
    fn connect_udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        UdpSocket::from_std(socket)
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(to).await
    }
}
