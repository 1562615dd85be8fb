// SPDX-License-Identifier: Apache-2.0
//! A node agent, a session and a shell that starts pods, driven by hand and at random.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::message::agent::{Request, decode_ack, decode_hello, encode_request};
use super::message::{MAX_PACKET, encode_ack, encode_hello};
use super::*;

/// A descriptor that is only a number.
type Fd = u64;

fn info(name: &str) -> PodInfo {
    PodInfo { name: name.into(), namespace: "shop".into(), service_account: "web".into() }
}

fn add(uid: &str, netns: u64) -> Message<Fd> {
    Message::Add { uid: uid.into(), info: Some(info(uid)), netns: Netns { id: NetnsId(1, netns), fd: netns } }
}

fn keep(uid: &str) -> Message<Fd> {
    Message::Keep { uid: uid.into() }
}

fn del(uid: &str) -> Message<Fd> {
    Message::Del { uid: uid.into() }
}

/// The session with a shell that does what it is told, and notes it.
struct Shell {
    session: Session<Fd>,
    now: Instant,
    /// What runs or is being started, as the shell sees it.
    proxies: BTreeMap<Uid, Fd>,
    starting: BTreeMap<Ticket, (Uid, Fd)>,
    /// Network namespaces in which nothing can be bound.
    broken: BTreeSet<Fd>,
    gone: BTreeSet<Fd>,
    /// Starts end at once, instead of when [`Shell::settle`] says so.
    eager: bool,
    log: Vec<String>,
}

impl Shell {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test needs a first instant")]
        let now = Instant::now();
        Self {
            session: Session::new(),
            now,
            proxies: BTreeMap::new(),
            starting: BTreeMap::new(),
            broken: BTreeSet::new(),
            gone: BTreeSet::new(),
            eager: true,
            log: Vec::new(),
        }
    }

    fn connected() -> Self {
        let mut shell = Self::new();
        shell.session.connected();
        shell
    }

    fn say(&mut self, message: Message<Fd>) -> String {
        let actions = self.session.handle(message);
        self.perform(actions);
        self.noted()
    }

    fn wait(&mut self, seconds: u64) -> String {
        self.now += Duration::from_secs(seconds);
        let actions = self.session.poll_retry(self.now);
        self.perform(actions);
        self.noted()
    }

    fn noted(&mut self) -> String {
        std::mem::take(&mut self.log).join(", ")
    }

    fn perform(&mut self, actions: Actions<Fd>) {
        for action in actions {
            match action {
                Action::Start(Start { ticket, uid, netns, .. }) => {
                    self.log.push(format!("start {uid} in {}", netns.fd));
                    assert!(!self.proxies.contains_key(&uid), "{uid} runs already");
                    self.starting.insert(ticket, (uid, netns.fd));
                    if self.eager {
                        self.settle(ticket);
                    }
                }
                Action::Stop { uid } => {
                    self.log.push(format!("stop {uid}"));
                    let running = self.proxies.remove(&uid).is_some();
                    let before = self.starting.len();
                    self.starting.retain(|_, (other, _)| *other != uid);
                    assert!(running || self.starting.len() < before, "{uid} was not there to be stopped");
                }
                Action::Reply(packet) => {
                    assert!(packet.len() < MAX_PACKET);
                    match decode_ack(&packet).unwrap() {
                        error if error.is_empty() => self.log.push("ack".to_owned()),
                        error => self.log.push(format!("nack [{error}]")),
                    }
                }
                Action::Reconnect => self.log.push("reconnect".to_owned()),
                Action::Fatal(_) => self.log.push("fatal".to_owned()),
            }
        }
    }

    fn settle(&mut self, ticket: Ticket) {
        let Some((uid, fd)) = self.starting.remove(&ticket) else { return };
        let actions = if self.gone.contains(&fd) {
            self.session.start_failed(ticket, &StartError::NamespaceGone, self.now)
        } else if self.broken.contains(&fd) {
            self.session.start_failed(ticket, &StartError::Failed("no bind".to_owned()), self.now)
        } else {
            self.proxies.insert(uid, fd);
            self.session.started(ticket)
        };
        self.perform(actions);
    }

    fn served(&self) -> BTreeMap<Uid, Fd> {
        self.session.running().map(|(uid, _, netns)| (Uid::clone(uid), netns.1)).collect()
    }
}

const NACK: &str = "nack [failure to start proxy : no bind]";

#[test]
fn a_snapshot_ends_what_it_does_not_name() {
    let mut shell = Shell::connected();
    assert_eq!(shell.say(add("a", 1)), "start a in 1, ack");
    assert_eq!(shell.say(add("b", 2)), "start b in 2, ack");
    assert_eq!(shell.say(add("c", 3)), "start c in 3, ack");
    assert!(!shell.session.is_ready());
    assert_eq!(shell.say(Message::SnapshotSent), "ack");
    assert!(shell.session.is_ready());

    shell.session.disconnected();
    assert!(!shell.session.is_ready());
    assert_eq!(shell.say(add("x", 9)), "", "nobody is there to ask");
    shell.session.connected();
    assert_eq!(shell.served().len(), 3, "a reconnect stops nothing");
    assert_eq!(shell.say(keep("a")), "ack");
    assert_eq!(shell.say(add("b", 2)), "ack");
    assert_eq!(shell.say(del("a")), "ack", "left until the snapshot is complete");
    assert_eq!(shell.say(Message::SnapshotSent), "stop a, stop c, ack");
    assert_eq!(shell.served().into_keys().collect::<Vec<_>>(), ["b".into()]);
    assert!(shell.session.is_ready());
}

#[test]
fn after_the_snapshot_pods_come_and_go_one_by_one() {
    let mut shell = Shell::connected();
    shell.say(Message::SnapshotSent);
    assert_eq!(shell.say(add("a", 1)), "start a in 1, ack");
    assert_eq!(shell.say(add("a", 1)), "ack", "the same again is nothing");
    assert_eq!(shell.say(add("a", 2)), "stop a, start a in 2, ack", "the sandbox was made anew");
    assert_eq!(shell.say(del("a")), "stop a, ack");
    assert_eq!(shell.say(del("a")), "ack", "unknown pods are gone already");
}

#[test]
fn a_failed_start_is_refused_and_tried_again() {
    let mut shell = Shell::connected();
    shell.say(Message::SnapshotSent);
    shell.broken.insert(1);
    assert_eq!(shell.say(add("a", 1)), format!("start a in 1, {NACK}"));
    assert!(!shell.session.is_ready());
    assert_eq!(shell.session.pending().count(), 1);
    assert_eq!(shell.wait(4), "");
    assert_eq!(shell.wait(1), "start a in 1", "a retry has nobody to answer");
    assert_eq!(shell.session.next_retry(), Some(shell.now + RETRY_INTERVAL));
    shell.broken.clear();
    assert_eq!(shell.wait(5), "start a in 1");
    assert!(shell.session.is_ready());
    assert_eq!(shell.session.next_retry(), None);
    assert_eq!(shell.wait(60), "");
}

#[test]
fn a_pending_pod_leaves_when_it_is_deleted_or_its_namespace_is_gone() {
    let mut shell = Shell::connected();
    shell.broken.extend([1, 2]);
    assert_eq!(shell.say(add("a", 1)), format!("start a in 1, {NACK}"));
    assert_eq!(shell.say(del("a")), "ack");
    assert_eq!(shell.session.next_retry(), None);
    shell.say(Message::SnapshotSent);
    assert!(shell.session.is_ready());

    assert_eq!(shell.say(add("b", 2)), format!("start b in 2, {NACK}"));
    shell.gone.insert(2);
    assert_eq!(shell.wait(5), "start b in 2");
    assert!(shell.session.is_ready(), "there is nothing left to wait for");
    assert_eq!(shell.wait(5), "");
    let refusal = "start c in 2, nack [failure to start proxy : the network namespace is gone]";
    assert_eq!(shell.say(add("c", 2)), refusal);
    assert!(shell.session.is_ready());
}

#[test]
fn a_pending_pod_that_is_added_again_starts_at_once() {
    let mut shell = Shell::connected();
    shell.say(Message::SnapshotSent);
    shell.broken.insert(1);
    shell.say(add("a", 1));
    assert_eq!(shell.say(add("a", 1)), format!("start a in 1, {NACK}"));
    assert_eq!(shell.say(add("a", 2)), "start a in 2, ack");
    assert!(shell.session.is_ready());
    shell.say(add("b", 1));
    shell.session.connected();
    assert_eq!(shell.session.pending().count(), 0, "pending is a matter of one connection");
    assert_eq!(shell.wait(60), "");
}

#[test]
fn answers_keep_the_order_of_the_requests() {
    let mut shell = Shell::connected();
    shell.eager = false;
    assert_eq!(shell.say(add("a", 1)), "start a in 1");
    assert_eq!(shell.say(keep("b")), "", "its turn comes after a's");
    assert_eq!(shell.say(add("a", 1)), "");
    assert_eq!(shell.session.owes(), 3);
    let ticket = *shell.starting.keys().next().unwrap();
    shell.settle(ticket);
    assert_eq!(shell.noted(), "ack, ack, ack");
    assert_eq!(shell.session.owes(), 0);
}

#[test]
fn a_pod_deleted_while_it_starts_does_not_run() {
    let mut shell = Shell::connected();
    shell.say(Message::SnapshotSent);
    shell.eager = false;
    shell.say(add("a", 1));
    let ticket = *shell.starting.keys().next().unwrap();
    assert_eq!(
        shell.say(del("a")),
        "stop a, nack [failure to start proxy : the pod is no longer wanted], ack"
    );
    assert_eq!(shell.session.started(ticket), [], "a late word about a stopped start is ignored");
    assert_eq!(shell.served(), BTreeMap::new());
}

#[test]
fn a_start_outlives_its_connection() {
    let mut shell = Shell::connected();
    shell.eager = false;
    shell.say(add("a", 1));
    shell.say(add("b", 2));
    shell.session.connected();
    shell.noted();
    assert_eq!(shell.say(add("a", 1)), "", "already on its way");
    assert_eq!(shell.say(add("c", 3)), "start c in 3");
    let tickets: Vec<Ticket> = shell.starting.keys().copied().collect();
    shell.broken.extend([1, 2]);
    shell.settle(tickets[0]);
    shell.settle(tickets[1]);
    shell.settle(tickets[2]);
    assert_eq!(shell.noted(), format!("{NACK}, ack"), "only this connection's requests are answered");
    let pending: Vec<&str> = shell.session.pending().map(AsRef::as_ref).collect();
    assert_eq!(pending, ["a"], "nobody on this connection wants b");
}

#[test]
fn violations_are_fatal_and_answered() {
    let fatal = |text: &str| format!("nack [failure to process message : {text}], fatal");
    let live = || {
        let mut shell = Shell::connected();
        shell.say(Message::SnapshotSent);
        shell
    };
    assert_eq!(live().say(keep("a")), fatal("keep of a after the snapshot"));
    assert_eq!(live().say(Message::SnapshotSent), fatal("the snapshot was sent twice"));
    let Message::Add { uid, netns, .. } = add("a", 1) else { unreachable!() };
    let nameless = Message::Add { uid, info: None, netns };
    assert_eq!(Shell::connected().say(nameless.clone()), fatal("add of a without workload info"));
    let mut shell = live();
    shell.say(nameless);
    assert_eq!(shell.say(del("a")), "", "the conversation is over");
}

/// What the session says to one packet.
fn packet(bytes: &[u8], fds: &[Fd], cut: Cut) -> String {
    let mut shell = Shell::connected();
    let netns = fds.iter().map(|&fd| Netns { id: NetnsId(1, fd), fd }).collect();
    let actions = shell.session.handle_packet(Packet { bytes, netns, cut });
    shell.perform(actions);
    shell.noted()
}

#[test]
fn unreadable_packets_are_answered_and_end_the_connection() {
    let info = info("a");
    let add = encode_request(&Request::Add("a", Some(&info)));
    let keep = encode_request(&Request::Keep("a"));
    let unreadable = |text: &str| format!("nack [failure to read message : {text}], reconnect");
    assert_eq!(packet(&add, &[1], Cut::Whole), "start a in 1, ack");
    assert_eq!(packet(&add, &[], Cut::Whole), unreadable("add of a without a network namespace"));
    assert_eq!(packet(&add, &[1, 2], Cut::Whole), unreadable("2 file descriptors came with add"));
    assert_eq!(packet(&keep, &[1], Cut::Whole), unreadable("1 file descriptors came with keep"));
    assert_eq!(packet(&keep, &[], Cut::Data), unreadable("packet is longer than 1024 bytes"));
    assert_eq!(packet(&[0; 1025], &[], Cut::Whole), unreadable("packet is longer than 1024 bytes"));
    assert_eq!(packet(&keep, &[], Cut::Control), unreadable("control data is truncated"));
    assert_eq!(packet(&[], &[], Cut::Whole), unreadable("no payload, or an unknown one"));
    assert_eq!(packet(&[0x22, 0], &[], Cut::Whole), unreadable("no payload, or an unknown one"));
    assert!(packet(&[0xff; 20], &[], Cut::Whole).contains("not a workload request"));
    assert!(packet(&[0x0a, 3, 0x0a, 1, 0xff], &[1], Cut::Whole).contains("not a workload request"));
}

#[test]
fn packets_are_what_the_agent_expects() {
    assert_eq!(encode_hello(), [0x08, 0x01]);
    assert!(decode_hello(&encode_hello()));
    assert_eq!(encode_ack(None), [0x0a, 0x00]);
    assert_eq!(encode_request(&Request::SnapshotSent), [0x1a, 0x00]);
    assert_eq!(encode_request(&Request::Keep("a")), [0x2a, 3, 0x0a, 1, b'a']);
    assert_eq!(encode_request(&Request::Del("a")), [0x12, 3, 0x12, 1, b'a']);
    let packet = encode_ack(Some(&"é".repeat(5000)));
    assert!(packet.len() < MAX_PACKET, "{} bytes", packet.len());
    assert!(decode_ack(&packet).unwrap().starts_with("éé"));
}

#[derive(Clone, Debug)]
enum Event {
    Connect,
    Disconnect,
    Add(u8, u64),
    Keep(u8),
    Del(u8),
    Snapshot,
    Break(u64),
    Mend(u64),
    Settle(usize),
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Connect),
        1 => Just(Event::Disconnect),
        6 => (0u8..4, 0u64..4).prop_map(|(uid, netns)| Event::Add(uid, netns)),
        2 => (0u8..4).prop_map(Event::Keep),
        3 => (0u8..4).prop_map(Event::Del),
        2 => Just(Event::Snapshot),
        1 => (0u64..4).prop_map(Event::Break),
        1 => (0u64..4).prop_map(Event::Mend),
        3 => (0usize..4).prop_map(Event::Settle),
        2 => Just(Event::Wait),
    ]
}

/// The rules again, for a shell whose starts end at once, written as sets.
#[derive(Default)]
struct Model {
    phase: Option<Phase>,
    seen: BTreeSet<u8>,
    running: BTreeMap<u8, u64>,
    pending: BTreeMap<u8, u64>,
}

impl Model {
    fn start(&mut self, uid: u8, netns: u64, broken: &BTreeSet<u64>) {
        self.running.remove(&uid);
        self.pending.remove(&uid);
        let into = if broken.contains(&netns) { &mut self.pending } else { &mut self.running };
        into.insert(uid, netns);
    }

    fn apply(&mut self, event: &Event, broken: &BTreeSet<u64>) {
        let phase = self.phase;
        match *event {
            Event::Connect | Event::Disconnect => {
                self.phase = matches!(event, Event::Connect).then_some(Phase::Snapshot);
                self.seen.clear();
                self.pending.clear();
            }
            Event::Add(uid, netns) if phase.is_some() => {
                self.seen.insert(uid);
                if self.running.get(&uid) != Some(&netns) {
                    self.start(uid, netns, broken);
                }
            }
            Event::Keep(uid) if phase == Some(Phase::Snapshot) => {
                self.seen.insert(uid);
            }
            Event::Keep(_) | Event::Snapshot if phase == Some(Phase::Live) => {
                self.apply(&Event::Disconnect, broken);
            }
            Event::Del(uid) if phase.is_some() => {
                self.seen.remove(&uid);
                self.pending.remove(&uid);
                if phase == Some(Phase::Live) {
                    self.running.remove(&uid);
                }
            }
            Event::Snapshot if phase == Some(Phase::Snapshot) => {
                self.running.retain(|uid, _| self.seen.contains(uid));
                self.phase = Some(Phase::Live);
            }
            Event::Wait => {
                for (uid, netns) in self.pending.clone() {
                    self.start(uid, netns, broken);
                }
            }
            Event::Add(..)
            | Event::Keep(_)
            | Event::Del(_)
            | Event::Snapshot
            | Event::Break(_)
            | Event::Mend(_)
            | Event::Settle(_) => {}
        }
    }
}

impl Shell {
    fn apply(&mut self, event: &Event) {
        let uid = |uid: u8| format!("p{uid}");
        match *event {
            Event::Connect => self.session.connected(),
            Event::Disconnect => self.session.disconnected(),
            Event::Add(pod, netns) => drop(self.say(add(&uid(pod), netns))),
            Event::Keep(pod) => drop(self.say(keep(&uid(pod)))),
            Event::Del(pod) => drop(self.say(del(&uid(pod)))),
            Event::Snapshot => drop(self.say(Message::SnapshotSent)),
            Event::Break(netns) => drop(self.broken.insert(netns)),
            Event::Mend(netns) => drop(self.broken.remove(&netns)),
            Event::Settle(index) => {
                if let Some(&ticket) = self.starting.keys().nth(index) {
                    self.settle(ticket);
                }
            }
            Event::Wait => drop(self.wait(5)),
        }
    }

    fn numbered(&self) -> BTreeMap<u8, u64> {
        self.served().into_iter().map(|(uid, fd)| (uid[1..].parse().unwrap(), fd)).collect()
    }
}

proptest! {
    #[test]
    fn any_order_of_events_leaves_what_the_rules_say(events in proptest::collection::vec(event(), 0..60)) {
        let mut shell = Shell::new();
        let mut model = Model::default();
        for event in &events {
            shell.apply(event);
            model.apply(event, &shell.broken);
            prop_assert_eq!(shell.numbered(), model.running.clone(), "after {:?}", event);
            prop_assert_eq!(&shell.served(), &shell.proxies);
            prop_assert_eq!(shell.session.pending().count(), model.pending.len());
            let ready = model.phase == Some(Phase::Live) && model.pending.is_empty();
            prop_assert_eq!(shell.session.is_ready(), ready);
            prop_assert_eq!(shell.session.next_retry().is_some(), !model.pending.is_empty());
            prop_assert_eq!(shell.session.owes(), 0);
        }
    }

    #[test]
    fn slow_starts_change_neither_the_truth_nor_the_answers(
        events in proptest::collection::vec(event(), 0..60),
        wanted in proptest::collection::btree_map(0u8..4, 0u64..4, 0..4),
    ) {
        let mut shell = Shell::new();
        shell.eager = false;
        for event in &events {
            shell.apply(event);
            prop_assert_eq!(&shell.served(), &shell.proxies);
        }
        // Whatever happened, one more snapshot over a healthy node sets everything right.
        shell.broken.clear();
        shell.session.connected();
        shell.noted();
        let mut answers = 0;
        for (&uid, &netns) in &wanted {
            let said = shell.session.handle(add(&format!("p{uid}"), netns));
            shell.perform(said);
            answers += 1;
        }
        let said = shell.session.handle(Message::SnapshotSent);
        shell.perform(said);
        while let Some((&ticket, _)) = shell.starting.first_key_value() {
            shell.settle(ticket);
        }
        prop_assert_eq!(shell.numbered(), wanted);
        prop_assert!(shell.session.is_ready());
        let acks = shell.log.iter().filter(|line| *line == "ack").count();
        prop_assert_eq!(acks, answers + 1, "{:?}", shell.log);
        prop_assert_eq!(shell.session.owes(), 0);
    }

    #[test]
    fn no_packet_breaks_the_session(bytes in proptest::collection::vec(any::<u8>(), 0..64), fds in 0u64..3) {
        let fds: Vec<Fd> = (0..fds).collect();
        packet(&bytes, &fds, Cut::Whole);
    }
}
