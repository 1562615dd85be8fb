// SPDX-License-Identifier: Apache-2.0
//! Which worker serves a new tunnel.
//!
//! The kernel spreads connections over the workers by a hash. That evens out for many connections, but tunnels are few,
//! each carries many streams for long, and one that shares its thread with the other busy tunnel halves both. So
//! the worker that accepts a tunnel gives it to the one that has least to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::debug;

/// Tunnels on their way to a worker. More are served where they were accepted.
const UNDERWAY: usize = 64;

/// A socket that moves to another worker: no runtime knows it.
#[derive(Debug)]
pub struct Handed {
    socket: std::net::TcpStream,
    peer: SocketAddr,
}

/// What comes to one worker from the others, for one pod.
pub type Inbox = mpsc::Receiver<Handed>;

/// One pod on one worker, and how it reaches the others.
#[derive(Debug, Clone)]
pub struct Balance {
    index: usize,
    /// Connections, streams and tunnels of every worker, of all pods.
    loads: Arc<[AtomicUsize]>,
    others: Arc<[mpsc::Sender<Handed>]>,
}

impl Balance {
    /// One for each worker, for one pod.
    pub fn for_workers(loads: &Arc<[AtomicUsize]>) -> Vec<(Self, Inbox)> {
        let (senders, inboxes): (Vec<_>, Vec<_>) = loads.iter().map(|_| mpsc::channel(UNDERWAY)).unzip();
        let others: Arc<[_]> = senders.into();
        let of =
            |(index, inbox)| (Self { index, loads: Arc::clone(loads), others: Arc::clone(&others) }, inbox);
        inboxes.into_iter().enumerate().map(of).collect()
    }

    /// That of a pod that the first worker serves alone.
    pub fn alone(loads: &Arc<[AtomicUsize]>) -> (Self, Inbox) {
        let (own, inbox) = mpsc::channel(UNDERWAY);
        (Self { index: 0, loads: Arc::clone(loads), others: [own].into() }, inbox)
    }

    /// Something to do, for as long as the guard lives.
    pub(super) fn busy(&self) -> Busy {
        self.loads[self.index].fetch_add(1, Ordering::Relaxed);
        Busy { index: self.index, loads: Arc::clone(&self.loads) }
    }

    /// Gives the socket to the worker with the least to do; returns it if that is this one.
    pub(super) fn place(&self, socket: TcpStream, peer: SocketAddr) -> Option<TcpStream> {
        let load = |index: &usize| self.loads[*index].load(Ordering::Relaxed);
        let least = (0..self.others.len()).min_by_key(load).unwrap_or(self.index);
        if load(&least) >= load(&self.index) {
            return Some(socket);
        }
        let Ok(place) = self.others[least].try_reserve() else { return Some(socket) };
        match socket.into_std() {
            Ok(socket) => place.send(Handed { socket, peer }),
            Err(error) => debug!(%error, "a tunnel is lost on its way to another worker"),
        }
        None
    }
}

impl Handed {
    /// Takes the socket into this worker's runtime.
    pub(super) fn take(self) -> Option<(TcpStream, SocketAddr)> {
        match TcpStream::from_std(self.socket) {
            Ok(socket) => Some((socket, self.peer)),
            Err(error) => {
                debug!(%error, "a tunnel is lost on its way from another worker");
                None
            }
        }
    }
}

/// Counts for its worker while it lives.
#[derive(Debug)]
pub(super) struct Busy {
    index: usize,
    loads: Arc<[AtomicUsize]>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.loads[self.index].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tunnel_goes_where_least_is_to_be_done() {
        let loads: Arc<[AtomicUsize]> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        let mut workers = Balance::for_workers(&loads);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (socket, _) = tokio::try_join!(TcpStream::connect(address), listener.accept()).unwrap();
        let socket = workers[0].0.place(socket, address).expect("nobody has less to do");
        let work = [workers[0].0.busy(), workers[1].0.busy()];
        assert!(workers[0].0.place(socket, address).is_none());
        let (_socket, peer) = workers[2].1.recv().await.unwrap().take().unwrap();
        assert_eq!(peer, address);
        drop(work);
        assert!(loads.iter().all(|load| load.load(Ordering::Relaxed) == 0));
    }
}
