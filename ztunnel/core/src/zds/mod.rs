// SPDX-License-Identifier: Apache-2.0
//! The ZDS session: which pods of this node are served, as the node agent wants it.
//!
//! One [`Session`] lives as long as the process; connections to the agent come and go beneath it. The
//! shell tells it what happened (`connected`, a message, the end of a start) and carries out the
//! [`Action`]s it gets back, in order. The session never waits: starting a pod is an action with a
//! [`Ticket`], and the answer to the agent is given when the ticket is.
//!
//! Invariants: every request gets exactly one answer, in the order of the requests; success is answered
//! only for a pod that runs; a reconnect by itself stops nothing; a pod runs in one network namespace.

pub mod backoff;
pub mod message;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

pub use self::backoff::ConnectBackoff;
pub use self::message::{Cut, DecodeError, Message, Netns, NetnsId, Packet, PodInfo, Uid, decode};
pub use self::message::{encode_ack, encode_hello};

/// How long a pod that could not be started waits for the next attempt.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// One attempt to start a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<Fd> {
    /// Bind the pod's listeners and run its proxy, then say [`Session::started`] or
    /// [`Session::start_failed`].
    Start(Start<Fd>),
    /// Stop the pod's proxy, or the start of it that is under way, and cut its connections. Whatever is
    /// said about the ticket of such a start afterwards is ignored.
    Stop {
        /// Which pod.
        uid: Uid,
    },
    /// Send this packet to the agent.
    Reply(Vec<u8>),
    /// Close the connection and dial again at once.
    Reconnect,
    /// Exit with code 1: the agent and we do not speak the same protocol.
    Fatal(ProtocolError),
}

/// A pod to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start<Fd> {
    /// What to name when it has worked or failed.
    pub ticket: Ticket,
    /// Which pod.
    pub uid: Uid,
    /// Who it is.
    pub info: PodInfo,
    /// Where it lives.
    pub netns: Netns<Fd>,
}

/// What the shell has to do, in order.
pub type Actions<Fd> = Vec<Action<Fd>>;

/// The agent broke the protocol; going on would mean guessing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A pod without a name.
    #[error("add of {0} without workload info")]
    AddWithoutInfo(Uid),
    /// Only a snapshot may keep pods.
    #[error("keep of {0} after the snapshot")]
    KeepAfterSnapshot(Uid),
    /// There is one snapshot per connection.
    #[error("the snapshot was sent twice")]
    SecondSnapshot,
}

/// Why a pod could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The network namespace has been torn down: trying again is pointless.
    #[error("the network namespace is gone")]
    NamespaceGone,
    /// Anything that may go away.
    #[error("{0}")]
    Failed(String),
}

/// Where a pod stands.
#[derive(Clone, Debug)]
enum State<Fd> {
    Running,
    Starting {
        ticket: Ticket,
        fd: Fd,
        /// Wanted on the current connection: a failure leaves the pod pending.
        wanted: bool,
        /// The session is not ready before this start has worked.
        holds_ready: bool,
    },
    Pending {
        fd: Fd,
    },
}

#[derive(Clone, Debug)]
struct Pod<Fd> {
    info: PodInfo,
    netns: NetnsId,
    state: State<Fd>,
}

/// An answer that the agent is waiting for.
#[derive(Debug)]
enum Owed {
    Ready(Vec<u8>),
    Waiting(Ticket),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Disconnected,
    Snapshot,
    Live,
}

/// Which pods are served, and what the agent is owed.
#[derive(Debug)]
pub struct Session<Fd> {
    phase: Phase,
    pods: BTreeMap<Uid, Pod<Fd>>,
    seen: BTreeSet<Uid>,
    owed: VecDeque<Owed>,
    retry_at: Option<Instant>,
    next_ticket: u64,
}

impl<Fd> Default for Session<Fd> {
    fn default() -> Self {
        Self {
            phase: Phase::Disconnected,
            pods: BTreeMap::new(),
            seen: BTreeSet::new(),
            owed: VecDeque::new(),
            retry_at: None,
            next_ticket: 0,
        }
    }
}

impl<Fd: Clone> Session<Fd> {
    /// A session without a connection and without pods.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to the agent stands and the hello is sent. Running pods keep running.
    pub fn connected(&mut self) {
        self.disconnected();
        self.phase = Phase::Snapshot;
    }

    /// The connection is gone. What was said on it is forgotten, except for the pods that run.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Disconnected;
        self.seen.clear();
        self.owed.clear();
        self.retry_at = None;
        self.pods.retain(|_, pod| match &mut pod.state {
            State::Pending { .. } => false,
            State::Running => true,
            State::Starting { wanted, holds_ready, .. } => {
                *wanted = false;
                *holds_ready = false;
                true
            }
        });
    }

    /// Reads a packet and handles what it says; an unreadable one is answered and ends the connection.
    pub fn handle_packet(&mut self, packet: Packet<'_, Fd>) -> Actions<Fd> {
        match decode(packet) {
            Ok(message) => self.handle(message),
            Err(error) => self.handle_unreadable(&error),
        }
    }

    /// Handles one request of the agent.
    pub fn handle(&mut self, message: Message<Fd>) -> Actions<Fd> {
        let mut actions = Actions::new();
        if self.phase == Phase::Disconnected {
            return actions;
        }
        match message {
            Message::Add { uid, info: Some(info), netns } => self.add(uid, info, netns, &mut actions),
            Message::Add { uid, info: None, netns: _ } => {
                return self.violation(ProtocolError::AddWithoutInfo(uid));
            }
            Message::Keep { uid } => {
                if self.phase == Phase::Live {
                    return self.violation(ProtocolError::KeepAfterSnapshot(uid));
                }
                self.keep(uid);
            }
            Message::Del { uid } => self.delete(&uid, &mut actions),
            Message::SnapshotSent => {
                if self.phase == Phase::Live {
                    return self.violation(ProtocolError::SecondSnapshot);
                }
                self.reconcile(&mut actions);
            }
        }
        self.flush(&mut actions);
        actions
    }

    /// A packet could not be read: the agent learns why, then we start over.
    pub fn handle_unreadable(&mut self, error: &DecodeError) -> Actions<Fd> {
        if self.phase == Phase::Disconnected {
            return Actions::new();
        }
        let mut actions = self.last_words(&format!("failure to read message : {error}"));
        actions.push(Action::Reconnect);
        actions
    }

    /// The pod's listeners are bound: it is served.
    pub fn started(&mut self, ticket: Ticket) -> Actions<Fd> {
        let mut actions = Actions::new();
        if let Some(uid) = self.starting(ticket)
            && let Some(pod) = self.pods.get_mut(&uid)
        {
            pod.state = State::Running;
        }
        self.settle(ticket, None);
        self.flush(&mut actions);
        actions
    }

    /// The pod could not be started. The agent learns why; the pod is tried again in five seconds,
    /// unless there is nothing left to try it on.
    pub fn start_failed(&mut self, ticket: Ticket, error: &StartError, now: Instant) -> Actions<Fd> {
        let mut actions = Actions::new();
        if let Some(uid) = self.starting(ticket)
            && let Some(mut pod) = self.pods.remove(&uid)
            && let State::Starting { fd, wanted: true, .. } = pod.state
            && *error != StartError::NamespaceGone
        {
            pod.state = State::Pending { fd };
            self.pods.insert(uid, pod);
            self.retry_at.get_or_insert(now + RETRY_INTERVAL);
        }
        self.settle(ticket, Some(&start_failure(error)));
        self.flush(&mut actions);
        actions
    }

    /// When [`poll_retry`](Self::poll_retry) will next have something to do.
    pub fn next_retry(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Starts every pending pod again, if it is time.
    pub fn poll_retry(&mut self, now: Instant) -> Actions<Fd> {
        let mut actions = Actions::new();
        if self.retry_at.is_none_or(|at| now < at) {
            return actions;
        }
        self.retry_at = None;
        let pending: Vec<Uid> = self.pending().cloned().collect();
        for uid in pending {
            let ticket = self.ticket();
            if let Some(pod) = self.pods.get_mut(&uid)
                && let State::Pending { fd } = &pod.state
            {
                let fd = fd.clone();
                let netns = Netns { id: pod.netns, fd: fd.clone() };
                pod.state = State::Starting { ticket, fd, wanted: true, holds_ready: true };
                actions.push(Action::Start(Start { ticket, uid, info: pod.info.clone(), netns }));
            }
        }
        actions
    }

    /// Whether the agent's snapshot is in place and nothing is pending.
    pub fn is_ready(&self) -> bool {
        let held = |pod: &Pod<Fd>| match pod.state {
            State::Running => false,
            State::Pending { .. } => true,
            State::Starting { holds_ready, .. } => holds_ready,
        };
        self.phase == Phase::Live && !self.pods.values().any(held)
    }

    /// Whether there is a connection to the agent.
    pub fn is_connected(&self) -> bool {
        self.phase != Phase::Disconnected
    }

    /// How many answers the agent is waiting for. The agent asks one thing at a time, so a shell that
    /// reads the next packet only when this is zero loses nothing and buffers nothing.
    pub fn owes(&self) -> usize {
        self.owed.len()
    }

    /// The pods that are served.
    pub fn running(&self) -> impl Iterator<Item = (&Uid, &PodInfo, NetnsId)> {
        let runs = |pod: &Pod<Fd>| matches!(pod.state, State::Running);
        self.pods.iter().filter(move |(_, pod)| runs(pod)).map(|(uid, pod)| (uid, &pod.info, pod.netns))
    }

    /// The pods that could not be started yet.
    pub fn pending(&self) -> impl Iterator<Item = &Uid> {
        let pends = |pod: &Pod<Fd>| matches!(pod.state, State::Pending { .. });
        self.pods.iter().filter(move |(_, pod)| pends(pod)).map(|(uid, _)| uid)
    }

    /// The same, with who they are.
    pub fn pending_pods(&self) -> impl Iterator<Item = (&Uid, &PodInfo)> {
        self.pending().filter_map(|uid| Some((uid, &self.pods.get(uid)?.info)))
    }

    fn add(&mut self, uid: Uid, info: PodInfo, netns: Netns<Fd>, actions: &mut Actions<Fd>) {
        let snapshot = self.phase == Phase::Snapshot;
        if snapshot {
            self.seen.insert(Uid::clone(&uid));
        }
        match self.pods.get_mut(&uid) {
            Some(pod) if pod.netns == netns.id => match &mut pod.state {
                State::Running => return self.owed.push_back(Owed::Ready(encode_ack(None))),
                State::Starting { ticket, wanted, .. } => {
                    *wanted = true;
                    return self.owed.push_back(Owed::Waiting(*ticket));
                }
                State::Pending { .. } => {}
            },
            Some(_) => self.stop(&uid, actions),
            None => {}
        }
        let ticket = self.ticket();
        let retried = matches!(self.pods.get(&uid), Some(Pod { state: State::Pending { .. }, .. }));
        let state =
            State::Starting { ticket, fd: netns.fd.clone(), wanted: true, holds_ready: snapshot || retried };
        self.pods.insert(Uid::clone(&uid), Pod { info: info.clone(), netns: netns.id, state });
        self.forget_timer();
        self.owed.push_back(Owed::Waiting(ticket));
        actions.push(Action::Start(Start { ticket, uid, info, netns }));
    }

    fn keep(&mut self, uid: Uid) {
        if let Some(Pod { state: State::Starting { wanted, .. }, .. }) = self.pods.get_mut(&uid) {
            *wanted = true;
        }
        self.seen.insert(uid);
        self.owed.push_back(Owed::Ready(encode_ack(None)));
    }

    fn delete(&mut self, uid: &Uid, actions: &mut Actions<Fd>) {
        if self.phase == Phase::Snapshot {
            // Whether it may stop is known when the snapshot is complete.
            self.seen.remove(uid);
            match self.pods.get_mut(uid).map(|pod| &mut pod.state) {
                Some(State::Pending { .. }) => self.stop(uid, actions),
                Some(State::Starting { wanted, .. }) => *wanted = false,
                Some(State::Running) | None => {}
            }
        } else {
            self.stop(uid, actions);
        }
        self.owed.push_back(Owed::Ready(encode_ack(None)));
    }

    fn reconcile(&mut self, actions: &mut Actions<Fd>) {
        let seen = std::mem::take(&mut self.seen);
        let stale: Vec<Uid> = self.pods.keys().filter(|uid| !seen.contains(*uid)).cloned().collect();
        for uid in &stale {
            self.stop(uid, actions);
        }
        self.phase = Phase::Live;
        self.owed.push_back(Owed::Ready(encode_ack(None)));
    }

    /// Forgets a pod, and has the shell stop what there is of it.
    fn stop(&mut self, uid: &Uid, actions: &mut Actions<Fd>) {
        let Some(pod) = self.pods.remove(uid) else { return };
        match pod.state {
            State::Running => actions.push(Action::Stop { uid: Uid::clone(uid) }),
            State::Starting { ticket, .. } => {
                actions.push(Action::Stop { uid: Uid::clone(uid) });
                self.settle(ticket, Some("failure to start proxy : the pod is no longer wanted"));
            }
            State::Pending { .. } => self.forget_timer(),
        }
    }

    /// Without a pending pod there is nothing to retry.
    fn forget_timer(&mut self) {
        if self.pending().next().is_none() {
            self.retry_at = None;
        }
    }

    fn violation(&mut self, error: ProtocolError) -> Actions<Fd> {
        let mut actions = self.last_words(&format!("failure to process message : {error}"));
        actions.push(Action::Fatal(error));
        actions
    }

    /// Answers everything that is owed, then `text`, and takes no further requests.
    fn last_words(&mut self, text: &str) -> Actions<Fd> {
        let mut actions = Actions::new();
        for owed in &mut self.owed {
            if let Owed::Waiting(_) = owed {
                *owed = Owed::Ready(encode_ack(Some("failure to start proxy : the connection ends")));
            }
        }
        self.owed.push_back(Owed::Ready(encode_ack(Some(text))));
        self.flush(&mut actions);
        self.disconnected();
        actions
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn starting(&self, ticket: Ticket) -> Option<Uid> {
        let holds = |pod: &Pod<Fd>| matches!(pod.state, State::Starting { ticket: t, .. } if t == ticket);
        self.pods.iter().find(|(_, pod)| holds(pod)).map(|(uid, _)| Uid::clone(uid))
    }

    fn settle(&mut self, ticket: Ticket, error: Option<&str>) {
        for owed in &mut self.owed {
            if matches!(owed, Owed::Waiting(other) if *other == ticket) {
                *owed = Owed::Ready(encode_ack(error));
            }
        }
    }

    fn flush(&mut self, actions: &mut Actions<Fd>) {
        while let Some(Owed::Ready(_)) = self.owed.front() {
            if let Some(Owed::Ready(packet)) = self.owed.pop_front() {
                actions.push(Action::Reply(packet));
            }
        }
    }
}

fn start_failure(error: &StartError) -> String {
    format!("failure to start proxy : {error}")
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {}", self.0)
    }
}

#[cfg(test)]
mod tests;
