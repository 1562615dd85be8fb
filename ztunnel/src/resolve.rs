// SPDX-License-Identifier: Apache-2.0
//! Finds the addresses of workloads that are known by host name, in ztunnel's own namespace and by its own name servers.
//!
//! One task asks, for all workers: a name that several connections wait for is asked once. What it found, and that it found
//! nothing, is remembered for a while.
//!
//! Source: data-plane contract, section 2.5.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::debug;
use ztunnel_core::Name;
use ztunnel_core::resolve::{Cache, Found};

/// How long a connection waits for an answer.
const WAIT: Duration = Duration::from_secs(5);
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
    ipv6: bool,
}

#[derive(Debug)]
struct Question {
    host: Name,
    answer: oneshot::Sender<Vec<IpAddr>>,
}

impl Resolver {
    /// A resolver, and the task that must run for it.
    pub fn new(ipv6: bool) -> (Self, Resolving) {
        let (sender, questions) = mpsc::channel(ROOM);
        let cache = Arc::<Mutex<Cache>>::default();
        (Self { cache: Arc::clone(&cache), questions: sender }, Resolving { cache, questions, ipv6 })
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
                        lookups.spawn_local(look_up(host, self.ipv6));
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

async fn look_up(host: Name, ipv6: bool) -> (Name, Found) {
    let asked = tokio::time::timeout(WAIT, tokio::net::lookup_host((&*host, 0)));
    let addresses = match asked.await {
        Ok(Ok(found)) => {
            found.map(|addr| addr.ip().to_canonical()).filter(|ip| ipv6 || ip.is_ipv4()).collect()
        }
        Ok(Err(error)) => {
            debug!(%host, %error, "a workload's host name is not resolved");
            Vec::new()
        }
        Err(_elapsed) => Vec::new(),
    };
    (host, Found { addresses, ttl: Duration::from_secs(30) })
}
