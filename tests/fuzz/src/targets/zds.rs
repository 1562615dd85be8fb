// SPDX-License-Identifier: Apache-2.0
//! The node agent's packets, with the pods' starts that succeed, fail or are late.
//!
//! The input is packets: the kind's low bits say what happens, its high bits how many descriptors come with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ztunnel_core::zds::message::agent::{self, Request};
use ztunnel_core::zds::{
    Action, Actions, Cut, Netns, NetnsId, Packet, PodInfo, RETRY_INTERVAL, Session, StartError, Ticket, Uid,
};

use crate::packets::{join, split};

/// The session, and what a shell would know beside it.
struct World {
    session: Session<u8>,
    now: Instant,
    starting: BTreeMap<Ticket, Uid>,
    tickets: BTreeSet<Ticket>,
    /// Requests that were read on this connection, and answers to them.
    asked: usize,
    answered: usize,
}

pub(super) fn run(data: &[u8]) {
    let now = Instant::now();
    let (starting, tickets) = (BTreeMap::new(), BTreeSet::new());
    let mut world = World { session: Session::new(), now, starting, tickets, asked: 0, answered: 0 };
    world.connect();
    for (kind, bytes) in split(data) {
        world.happens(kind, bytes);
        world.holds();
    }
}

impl World {
    fn connect(&mut self) {
        self.session.connected();
        (self.asked, self.answered) = (0, 0);
        assert!(self.session.is_connected() && !self.session.is_ready());
    }

    fn happens(&mut self, kind: u8, bytes: &[u8]) {
        let first = self.starting.keys().next().copied();
        match (kind % 8, first) {
            (4, Some(ticket)) => {
                self.starting.remove(&ticket);
                let actions = self.session.started(ticket);
                self.act(actions);
            }
            (5, Some(ticket)) => {
                self.starting.remove(&ticket);
                let gone = kind & 8 == 0;
                let text = String::from_utf8_lossy(bytes).into_owned();
                let error = if gone { StartError::NamespaceGone } else { StartError::Failed(text) };
                let actions = self.session.start_failed(ticket, &error, self.now);
                self.act(actions);
            }
            (6, _) => {
                self.now += RETRY_INTERVAL + Duration::from_millis(1);
                let actions = self.session.poll_retry(self.now);
                self.act(actions);
            }
            (7, _) => {
                self.session.disconnected();
                assert!(!self.session.is_connected() && self.session.owes() == 0);
                self.connect();
            }
            _ => {
                let descriptor = |at| Netns { id: NetnsId(1, u64::from(kind >> 5) + at), fd: kind };
                let netns = (0..u64::from(kind >> 3) % 4).map(descriptor).collect();
                self.asked += 1;
                let actions = self.session.handle_packet(Packet { bytes, netns, cut: Cut::Whole });
                self.act(actions);
            }
        }
    }

    fn act(&mut self, actions: Actions<u8>) {
        for action in actions {
            match action {
                Action::Start(start) => {
                    assert!(self.tickets.insert(start.ticket), "a ticket names one start");
                    self.starting.insert(start.ticket, start.uid);
                }
                Action::Stop { uid } => assert!(!self.runs(&uid), "what is stopped no longer runs"),
                Action::Reply(packet) => {
                    assert!(packet.len() < ztunnel_core::zds::message::MAX_PACKET, "the agent can read it");
                    assert!(agent::decode_ack(&packet).is_some());
                    self.answered += 1;
                }
                Action::Reconnect => self.connect(),
                Action::Fatal(error) => {
                    assert!(!error.to_string().is_empty());
                    // The process ends; the next one starts from nothing.
                    self.session = Session::new();
                    self.starting.clear();
                    self.tickets.clear();
                    self.connect();
                }
            }
        }
    }

    fn runs(&self, uid: &Uid) -> bool {
        self.session.running().any(|(running, _, _)| running == uid)
    }

    /// What is true after every event.
    fn holds(&self) {
        assert!(self.answered <= self.asked, "an answer to nothing");
        assert_eq!(self.asked, self.answered + self.session.owes(), "each request is answered once");
        let pending: BTreeSet<&Uid> = self.session.pending().collect();
        assert!(self.session.running().all(|(uid, _, _)| !pending.contains(uid)));
        assert!(!self.session.is_ready() || pending.is_empty());
        assert!(pending.is_empty() || self.session.next_retry().is_some(), "a pod waits for ever");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let info = PodInfo { name: "web-0".into(), namespace: "shop".into(), service_account: "web".into() };
    let packet = |fds: u8, request: Request<'_>| (fds << 3, agent::encode_request(&request));
    let event = |kind: u8| (kind, Vec::new());
    vec![
        join(&[
            packet(1, Request::Add("a", Some(&info))),
            packet(0, Request::SnapshotSent),
            event(4),
            packet(1, Request::Add("b", Some(&info))),
            event(13),
            event(6),
            event(4),
            packet(0, Request::Del("a")),
        ]),
        join(&[
            packet(1, Request::Add("a", Some(&info))),
            event(4),
            event(7),
            packet(0, Request::Keep("a")),
            packet(0, Request::SnapshotSent),
            packet(0, Request::Del("a")),
        ]),
        join(&[packet(2, Request::Add("a", None)), packet(1, Request::Keep("b"))]),
        join(&[packet(1, Request::Add("a", Some(&info))), event(5), packet(0, Request::SnapshotSent)]),
    ]
}
