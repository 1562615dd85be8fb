// SPDX-License-Identifier: Apache-2.0
//! The node agent tells us which pods to serve: drives the core's ZDS session over the socket.
//!
//! Decisions are in [`ztunnel_core::zds`]; here is only what waits: the socket, the starts, the clock.
//! * [`pods`]: starts and stops the proxy of one pod.

pub mod pods;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};
use ztunnel_core::zds::{
    Action, Actions, ConnectBackoff, Netns as PodNetns, NetnsId, Packet, ProtocolError, Session, Start,
    StartError, Ticket, Uid, encode_hello,
};

use crate::sys::netns;
use crate::sys::seqpacket::Seqpacket;
use crate::telemetry::standing::Standing;
use pods::Pods;

/// The agent and we do not speak the same protocol: the process must end with code 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node agent broke the protocol: {0}")]
pub struct Fatal(#[from] ProtocolError);

/// A start that has come to its end.
type Ended = (Ticket, Result<(), StartError>);

/// Drives the session for as long as the process lives.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    session: Session<Arc<OwnedFd>>,
    pods: Pods,
    ready: watch::Sender<bool>,
    standing: Standing,
    ended: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
}

/// How a connection to the agent came to its end.
enum Next {
    /// Go on with the next event.
    Continue,
    /// Dial again.
    Reconnect,
}

impl Agent {
    /// An agent client for the socket at `path`. `ready` follows the session's readiness.
    pub fn new(path: PathBuf, pods: Pods, ready: watch::Sender<bool>) -> Self {
        let (session, standing) = (Session::new(), Standing::default());
        Self { path, session, pods, ready, standing, ended: mpsc::unbounded_channel() }
    }

    /// The same, whose state others can look at.
    #[must_use]
    pub fn told_to(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// Serves the agent, dialing it again whenever the connection ends.
    ///
    /// # Errors
    /// The agent broke the protocol in a way after which going on would mean guessing.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; pods keep running.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let mut backoff = ConnectBackoff::default();
        loop {
            match self.connect().await {
                Ok(socket) => {
                    info!(path = %self.path.display(), "connected to the node agent");
                    backoff.reset();
                    self.standing.connected();
                    self.session.connected();
                    self.serve(&socket).await?;
                    self.session.disconnected();
                    self.publish();
                    self.standing.disconnected("the node agent ended the connection");
                    warn!("connection to the node agent ended, dialing again");
                }
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.standing.disconnected(format!("{}: {error}", self.path.display()));
                    debug!(path = %self.path.display(), %error, ?wait, "cannot reach the node agent");
                    self.pause(tokio::time::Instant::now() + wait).await;
                }
            }
        }
    }

    async fn connect(&self) -> std::io::Result<Seqpacket> {
        let socket = Seqpacket::connect(&self.path).await?;
        socket.send(&encode_hello()).await?;
        Ok(socket)
    }

    /// Waits without a connection. Starts that are under way may end meanwhile.
    async fn pause(&mut self, until: tokio::time::Instant) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                Some((ticket, result)) = self.ended.1.recv() => {
                    let actions = self.settle(ticket, &result);
                    debug!(?actions, "a start ended without a connection");
                }
            }
        }
    }

    async fn serve(&mut self, socket: &Seqpacket) -> Result<(), Fatal> {
        loop {
            let retry = self.session.next_retry();
            let retry = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // The agent asks one thing at a time: nothing is read while it is owed an answer.
            let actions = tokio::select! {
                packet = socket.receive(), if self.session.owes() == 0 => match packet {
                    Ok(packet) if packet.bytes.is_empty() && packet.fds.is_empty() => return Ok(()),
                    Ok(packet) => self.handle(packet),
                    Err(error) => {
                        warn!(%error, "cannot read from the node agent");
                        return Ok(());
                    }
                },
                Some((ticket, result)) = self.ended.1.recv() => self.settle(ticket, &result),
                () = retry => self.session.poll_retry(Instant::now()),
            };
            if let Next::Reconnect = self.carry_out(actions, socket).await? {
                return Ok(());
            }
            self.publish();
        }
    }

    fn handle(&mut self, packet: crate::sys::seqpacket::Packet) -> Actions<Arc<OwnedFd>> {
        let netns = packet
            .fds
            .into_iter()
            .filter_map(|fd| match netns::identity(&fd) {
                Ok((device, inode)) => Some(PodNetns { id: NetnsId(device, inode), fd: Arc::new(fd) }),
                Err(error) => {
                    warn!(%error, "the node agent sent a descriptor that cannot be read");
                    None
                }
            })
            .collect();
        self.session.handle_packet(Packet { bytes: &packet.bytes, netns, cut: packet.cut })
    }

    fn settle(&mut self, ticket: Ticket, result: &Result<(), StartError>) -> Actions<Arc<OwnedFd>> {
        match result {
            Ok(()) => self.session.started(ticket),
            Err(error) => {
                warn!(%error, "cannot start a pod's proxy");
                self.session.start_failed(ticket, error, Instant::now())
            }
        }
    }

    async fn carry_out(&mut self, actions: Actions<Arc<OwnedFd>>, socket: &Seqpacket) -> Result<Next, Fatal> {
        for action in actions {
            match action {
                Action::Start(start) => self.start(start),
                Action::Stop { uid } => self.pods.stop(&uid),
                Action::Reply(packet) => {
                    if let Err(error) = socket.send(&packet).await {
                        warn!(%error, "cannot answer the node agent");
                        return Ok(Next::Reconnect);
                    }
                }
                Action::Reconnect => return Ok(Next::Reconnect),
                Action::Fatal(error) => {
                    error!(%error, "the node agent broke the protocol");
                    return Err(error.into());
                }
            }
        }
        Ok(Next::Continue)
    }

    fn start(&self, start: Start<Arc<OwnedFd>>) {
        let result = self.pods.start(&start.uid, &start.info, start.netns.fd);
        // The receiver is ours: it lives as long as this.
        drop(self.ended.0.send((start.ticket, result)));
    }

    fn publish(&self) {
        self.ready.send_replace(self.session.is_ready());
        self.pods.pending(
            self.session.pending_pods().map(|(uid, info)| (Uid::clone(uid), info.clone())).collect(),
        );
    }
}
