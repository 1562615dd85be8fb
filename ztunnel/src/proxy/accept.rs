// SPDX-License-Identifier: Apache-2.0
//! ① Accepts redirected sockets and recovers where the application wanted to go.
//!
//! Next: [`ztunnel_core::route::outbound`] decides, [`super::outbound`] does.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, error, warn};
use ztunnel_core::addr::{OriginalDst, canonical};

use super::PodProxy;
use super::balance::Inbox;
use super::phase::{Phase, PhaseWatch};
use super::socket::Listener;
use crate::sys::sockopt;

/// After a failed accept: out of descriptors is not over in a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, with `TCP_NODELAY`.
    pub socket: TcpStream,
    /// Who called.
    pub peer: SocketAddr,
    /// Our end of it: the pod's address where nothing was redirected.
    pub local: SocketAddr,
    /// Where it wants to go, if it said so itself.
    pub asked: Option<SocketAddr>,
    /// The end of the pod, for those who have something to say then.
    pub phase: PhaseWatch,
}

impl Accepted {
    /// Where the application wanted to go: what it said, else what connection tracking remembers, else the address it reached.
    pub fn original_dst(&self) -> OriginalDst {
        let redirected = || sockopt::original_dst(&self.socket).unwrap_or(self.local);
        OriginalDst(self.asked.unwrap_or_else(redirected))
    }
}

/// Accepts on one listener and serves every connection in a task of its own. With an inbox, a connection goes to the
/// worker that has least to do, and those that other workers give to this one come out of it. Returns when the pod drains
/// and the last connection has ended, or when the pod is cut: then the connections are dropped.
pub(super) async fn serve<F>(
    proxy: &Rc<PodProxy>,
    listener: Listener,
    mut inbox: Option<Inbox>,
    phase: &PhaseWatch,
    serve_one: impl Fn(Rc<PodProxy>, Accepted) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let (mut draining, mut cut) = (phase.clone(), phase.clone());
    let mut connections = JoinSet::new();
    let accepting = async {
        let listener = match TcpListener::from_std(listener.socket) {
            Ok(listener) => listener,
            Err(error) => return error!(%error, "cannot listen"),
        };
        let balanced = inbox.is_some();
        let mut handed = async || match &mut inbox {
            Some(inbox) => inbox.recv().await,
            None => std::future::pending().await,
        };
        loop {
            tokio::select! {
                biased;
                () = draining.reached(Phase::Draining) => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let ours = if balanced { proxy.balance.place(socket, peer) } else { Some(socket) };
                        if let Some(accepted) = ours.and_then(|socket| accept(socket, peer, phase)) {
                            connections.spawn_local(serve_one(Rc::clone(proxy), accepted));
                        }
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection, pausing");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(handed) = handed() => {
                    let accepted = handed.take().and_then(|(socket, peer)| accept(socket, peer, phase));
                    if let Some(accepted) = accepted {
                        connections.spawn_local(serve_one(Rc::clone(proxy), accepted));
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
        for (socket, peer) in queued(listener) {
            if let Some(accepted) = accept(socket, peer, phase) {
                connections.spawn_local(serve_one(Rc::clone(proxy), accepted));
            }
        }
        loop {
            tokio::select! {
                biased;
                // Given to this worker before the drain began: nobody else would serve it.
                Some(handed) = handed() => {
                    let accepted = handed.take().and_then(|(socket, peer)| accept(socket, peer, phase));
                    if let Some(accepted) = accepted {
                        connections.spawn_local(serve_one(Rc::clone(proxy), accepted));
                    }
                }
                ended = connections.join_next() => if ended.is_none() { break },
            }
        }
    };
    tokio::select! {
        biased;
        () = cut.reached(Phase::Cut) => {}
        () = accepting => {}
    }
}

/// Stops listening: the port is free for another ztunnel. Gives the connections that the kernel had already accepted: it
/// would reset them, although their peers believe them open and another ztunnel may be there.
fn queued(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let listener = match listener.into_std() {
        Ok(listener) => listener,
        Err(error) => {
            debug!(%error, "cannot empty the queue of a listener");
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    // Without blocking: the last one is followed by an error.
    while let Ok((socket, peer)) = listener.accept() {
        let taken = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket));
        match taken {
            Ok(socket) => all.push((socket, peer)),
            Err(error) => debug!(%error, "an accepted connection is lost"),
        }
    }
    all
}

fn accept(socket: TcpStream, peer: SocketAddr, phase: &PhaseWatch) -> Option<Accepted> {
    let local = match socket.local_addr() {
        Ok(local) => canonical(local),
        Err(error) => {
            debug!(%error, "the connection is gone already");
            return None;
        }
    };
    Some(Accepted { socket, peer: canonical(peer), local, asked: None, phase: phase.clone() })
}
