// SPDX-License-Identifier: Apache-2.0
//! The session as data: responses in, changes and answers out.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::proto::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use super::proto::security::{Authorization, Rule};
use super::proto::workload::{Address, Service, Workload, address};
use super::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use super::*;
use crate::mesh::{Change, Mesh};

/// A session and the mesh that it fills.
struct World {
    session: Session,
    decoder: Decoder,
    mesh: Mesh,
}

impl World {
    fn new(mode: Mode) -> Self {
        let node = Node { id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".to_owned(), metadata: None };
        Self { session: Session::new(node, mode), decoder: Decoder::default(), mesh: Mesh::default() }
    }

    fn connected(mode: Mode) -> Self {
        let mut world = Self::new(mode);
        world.session.connected();
        world
    }

    fn push(&mut self, response: &DeltaDiscoveryResponse) -> Settled {
        let received = self.session.receive(response.encode_to_vec().into()).unwrap();
        let Received::Push(mut push) = received else { panic!("not a push: {received:?}") };
        while let Some(batch) = push.next_batch(&mut self.decoder, 2) {
            assert!(batch.len() <= 2 || push.kind() == Kind::Authorization);
            batch.into_iter().for_each(|change| {
                self.mesh.apply(change);
            });
        }
        let mut settled = self.session.settle(push);
        settled.changes.drain(..).for_each(|change| {
            self.mesh.apply(change);
        });
        settled
    }

    fn uids(&self) -> Vec<String> {
        self.mesh.workloads().iter().map(|workload| workload.uid.to_string()).collect()
    }
}

fn resource(name: &str, version: &str, value: &impl prost::Message) -> Bytes {
    let resource = Some(Any { type_url: String::new(), value: value.encode_to_vec().into() });
    let (name, version) = (name.to_owned(), version.to_owned());
    Resource { name, version, resource, aliases: Vec::new() }.encode_to_vec().into()
}

fn workload(uid: &str, version: &str) -> Bytes {
    let workload = Workload { uid: uid.to_owned(), ..Workload::default() };
    resource(uid, version, &Address { r#type: Some(address::Type::Workload(workload)) })
}

fn broken(name: &str) -> Bytes {
    let workload = Workload { uid: name.to_owned(), tunnel_protocol: 77, ..Workload::default() };
    resource(name, "broken", &Address { r#type: Some(address::Type::Workload(workload)) })
}

fn service(hostname: &str) -> Bytes {
    let service = Service { namespace: "ns".into(), hostname: hostname.into(), ..Service::default() };
    resource(&format!("ns/{hostname}"), "s1", &Address { r#type: Some(address::Type::Service(service)) })
}

fn addresses(nonce: &str, resources: Vec<Bytes>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn policies(nonce: &str, resources: Vec<Bytes>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.to_owned(), ..addresses(nonce, resources, removed) }
}

fn policy(name: &str, action: i32) -> Bytes {
    let policy = Authorization {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        scope: 1,
        action,
        rules: vec![Rule::default()],
        dry_run: false,
    };
    resource(&format!("ns/{name}"), "", &policy)
}

fn held(request: &DeltaDiscoveryRequest) -> BTreeMap<&str, &str> {
    request.initial_resource_versions.iter().map(|(name, version)| (&**name, &**version)).collect()
}

#[test]
fn a_stream_begins_with_both_types_and_who_we_are() {
    let mut world = World::new(Mode::Wildcard);
    let requests = world.session.connected();
    let types: Vec<&str> = requests.iter().map(|request| &*request.type_url).collect();
    assert_eq!(types, [ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    for request in &requests {
        assert!(request.node.is_some() && request.response_nonce.is_empty());
        assert!(request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty());
        assert!(held(request).is_empty(), "there is nothing yet");
    }
}

#[test]
fn a_good_response_is_applied_and_acknowledged() {
    let mut world = World::connected(Mode::Wildcard);
    let settled =
        world.push(&addresses("n1", vec![workload("a", "1"), workload("b", "2"), service("h")], &[]));
    assert_eq!(world.uids(), ["a", "b"]);
    assert!(world.mesh.service_by_name("ns", "h").is_some());
    let answer = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        response_nonce: "n1".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(settled.answer, answer);
    assert!(settled.rejected.is_empty());
}

#[test]
fn a_reconnect_says_what_is_held_and_nothing_else() {
    let mut world = World::connected(Mode::Wildcard);
    world.push(&addresses(
        "n1",
        vec![workload("a", "1"), workload("b", "0123456789abcdef"), broken("c")],
        &[],
    ));
    world.push(&addresses("n2", vec![workload("a", "3"), broken("b")], &["never-seen"]));
    world.push(&policies("n3", vec![policy("p", 1)], &[]));
    world.session.ended(0);
    let requests = world.session.connected();
    // The old `b` is still in the mesh, so that is what we hold.
    assert_eq!(held(&requests[0]), BTreeMap::from([("a", "3"), ("b", "0123456789abcdef")]));
    assert_eq!(held(&requests[1]), BTreeMap::from([("ns/p", "")]), "a name without a version counts");
    world.push(&addresses("m1", Vec::new(), &["a"]));
    assert_eq!(world.uids(), ["b"]);
    assert_eq!(held(&world.session.connected()[0]), BTreeMap::from([("b", "0123456789abcdef")]));
}

#[test]
fn removals_come_after_updates_and_reach_services_too() {
    let mut world = World::connected(Mode::Wildcard);
    world.push(&addresses("n1", vec![workload("a", "1"), workload("b", "1"), service("h")], &[]));
    world.push(&addresses("n2", vec![workload("c", "1")], &["a", "ns/h", "c", "x", "no/such/thing"]));
    assert_eq!(world.uids(), ["b"]);
    assert!(world.mesh.services().is_empty());
}

#[test]
fn one_bad_resource_is_refused_with_its_reason_and_costs_no_other() {
    let mut world = World::connected(Mode::Wildcard);
    let garbage = Bytes::from_static(&[0xff; 3]);
    let settled = world.push(&addresses("n1", vec![broken("bad"), garbage, workload("good", "1")], &[]));
    assert_eq!(world.uids(), ["good"]);
    let message = settled.answer.error_detail.unwrap().message;
    assert!(
        message.starts_with("bad: tunnel_protocol: unknown value 77; resource 1 of the response: "),
        "{message}"
    );
    assert_eq!(settled.answer.response_nonce, "n1");
    assert_eq!(settled.rejected.len(), 2);
}

#[test]
fn ten_thousand_refusals_are_counted_not_listed() {
    let mut world = World::connected(Mode::Wildcard);
    let all = (0..10_000).map(|place| broken(&format!("w{place}"))).collect();
    let message = world.push(&addresses("n1", all, &[])).answer.error_detail.unwrap().message;
    assert!(message.len() < 10_000 && message.ends_with("and 9936 more"), "{message}");
}

#[test]
fn the_start_waits_for_something_usable_of_each_type_not_for_perfection() {
    let mut world = World::connected(Mode::Wildcard);
    world.push(&policies("n1", Vec::new(), &[]));
    assert!(!world.session.is_synced());
    world.push(&addresses("n2", vec![broken("a")], &[]));
    assert!(!world.session.is_synced(), "a mesh of which nothing can be used is none");
    world.push(&addresses("n3", vec![broken("a"), workload("b", "1")], &[]));
    assert!(world.session.is_synced());

    let mut empty = World::connected(Mode::Wildcard);
    empty.push(&addresses("n1", Vec::new(), &[]));
    assert!(!empty.session.is_synced());
    empty.push(&policies("n2", vec![policy("p", 9)], &[]));
    assert!(empty.session.is_synced(), "an empty mesh is a mesh, and a bad policy has its stand-in");
    empty.session.ended(0);
    assert!(empty.session.is_synced(), "once known, always known");
}

#[test]
fn a_policy_that_cannot_be_read_denies_until_a_readable_one_comes() {
    let mut world = World::connected(Mode::Wildcard);
    world.push(&policies("n1", vec![policy("p", 9), policy("q", 0)], &[]));
    let stand_in = world.mesh.policy("ns/p").unwrap();
    assert_eq!(stand_in.action, crate::mesh::Action::Deny);
    assert_eq!(stand_in.rules, [crate::mesh::Rule::default()], "a rule without clauses always matches");
    // It is not held, but it is named, so that the control plane says when it is gone.
    world.session.ended(0);
    let requests = world.session.connected();
    assert_eq!(held(&requests[1]), BTreeMap::from([("ns/p", ""), ("ns/q", "")]));
    world.push(&policies("n2", vec![policy("p", 0)], &[]));
    assert_eq!(world.mesh.policy("ns/p").unwrap().action, crate::mesh::Action::Allow);
    // With a readable one in force, a bad update changes nothing.
    let settled = world.push(&policies("n3", vec![policy("p", 9)], &[]));
    assert!(settled.answer.error_detail.is_some());
    assert_eq!(world.mesh.policy("ns/p").unwrap().action, crate::mesh::Action::Allow);
    world.push(&policies("n4", Vec::new(), &["ns/p", "ns/q"]));
    assert!(world.mesh.policies().is_empty());
}

#[test]
fn a_response_that_cannot_be_read_ends_the_stream_and_one_of_an_unknown_type_does_not() {
    let mut world = World::connected(Mode::Wildcard);
    let ending = world.session.receive(Bytes::from_static(&[0xff; 8])).unwrap_err();
    assert!(ending.reason().contains("cannot be read"));
    let unknown = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/other".to_owned(),
        nonce: "n1".to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    let received = world.session.receive(unknown.encode_to_vec().into()).unwrap();
    let Received::Unknown { answer, .. } = received else { panic!("{received:?}") };
    assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("n1", None));
}

#[test]
fn the_wait_grows_until_a_stream_has_achieved_something() {
    let mut world = World::new(Mode::Wildcard);
    let failures: Vec<u128> = (0..5)
        .map(|_| {
            world.session.connected();
            world.session.ended(u64::MAX).after.as_millis()
        })
        .collect();
    assert_eq!(failures, [19, 39, 79, 159, 319]);
    world.session.connected();
    world.push(&policies("n1", Vec::new(), &[]));
    assert!(world.session.ended(0).after.as_millis() >= 100);
    // Attempts that do not even connect are not the success of the stream before them.
    let waits = (0..4).map(|_| world.session.ended(u64::MAX).after.as_millis());
    assert_eq!(waits.collect::<Vec<_>>(), [19, 39, 79, 159]);
}

#[test]
fn a_list_of_held_names_that_istiod_would_not_take_is_left_out_and_the_answer_taken_as_the_whole() {
    let mut world = World::connected(Mode::Wildcard);
    let long = "name".repeat(100);
    let uid = |place: u32| format!("cluster1//Pod/namespace/{long}-{place:08}");
    let all = (0..9_000).map(|place| workload(&uid(place), "0123456789abcdef")).collect();
    world.push(&addresses("n1", all, &[]));
    world.push(&policies("n2", vec![policy("p", 0)], &[]));
    let requests = world.session.connected();
    assert!(held(&requests[0]).is_empty() && !held(&requests[1]).is_empty());
    let answer = vec![workload(&uid(7), "1"), broken(&uid(8)), workload("new", "1")];
    world.push(&addresses("m1", answer, &[]));
    assert_eq!(world.uids(), [uid(7), uid(8), "new".to_owned()], "what is refused stays as it was");
    // Only the first response of a stream is the whole.
    world.push(&addresses("m2", vec![workload("newer", "1")], &[]));
    assert_eq!(world.uids().len(), 4);
    assert!(world.mesh.policy("ns/p").is_some());
}

#[test]
fn a_list_of_held_names_is_sent_while_istiod_takes_it() {
    let mut world = World::connected(Mode::Wildcard);
    let long = "name".repeat(100);
    let all = (0..8_000).map(|place| workload(&format!("c//Pod/ns/{long}-{place:06}"), "0123456789abcdef"));
    world.push(&addresses("n1", all.collect(), &[]));
    let request = &world.session.connected()[0];
    assert_eq!(request.initial_resource_versions.len(), 8_000);
    assert!((3 << 20..4 << 20).contains(&request.encoded_len()), "{}", request.encoded_len());
}

#[test]
fn on_demand_names_are_asked_for_once_and_answered_by_name_alias_or_removal() {
    let mut world = World::new(Mode::OnDemand);
    assert_eq!(world.session.ask("/10.0.0.1"), (Asked::Waiting, None), "there is no stream yet");
    let requests = world.session.connected();
    assert_eq!(requests[0].resource_names_subscribe, ["*"]);
    assert_eq!(requests[0].resource_names_unsubscribe, ["*"]);
    assert_eq!(held(&requests[0]), BTreeMap::from([("/10.0.0.1", "")]), "the new stream asks for it");
    assert!(requests[1].resource_names_subscribe.is_empty(), "policies come as a whole");
    world.push(&policies("n1", Vec::new(), &[]));
    assert!(world.session.is_synced(), "addresses come when they are asked for");

    let (asked, request) = world.session.ask("/10.0.0.2");
    let request = request.unwrap();
    assert_eq!((asked, &*request.resource_names_subscribe), (Asked::Waiting, &["/10.0.0.2".to_owned()][..]));
    assert!(request.node.is_none() && request.response_nonce.is_empty());

    let address = Address {
        r#type: Some(address::Type::Workload(Workload { uid: "a".into(), ..Workload::default() })),
    };
    let found = Resource {
        name: "a".to_owned(),
        aliases: vec!["/10.0.0.1".to_owned()],
        resource: Some(Any { type_url: String::new(), value: address.encode_to_vec().into() }),
        version: String::new(),
    };
    let settled = world.push(&addresses("n2", vec![found.encode_to_vec().into()], &["/10.0.0.2"]));
    let answered: Vec<&str> = settled.answered.iter().map(|name| &**name).collect();
    assert_eq!(answered, ["/10.0.0.1", "/10.0.0.2"]);
    for name in ["/10.0.0.1", "/10.0.0.2"] {
        assert_eq!(world.session.ask(name), (Asked::Answered, None));
    }
}

#[test]
fn nobody_asks_where_the_whole_mesh_is_subscribed_to() {
    let mut world = World::connected(Mode::Wildcard);
    assert_eq!(world.session.ask("/10.0.0.1"), (Asked::Refused, None));
}

#[test]
fn policies_of_one_response_take_effect_together() {
    let mut world = World::connected(Mode::Wildcard);
    let all = (0..100).map(|place| policy(&format!("p{place}"), 0)).collect();
    let received = world.session.receive(policies("n1", all, &["ns/x"]).encode_to_vec().into()).unwrap();
    let Received::Push(mut push) = received else { panic!("not a push") };
    let batch = push.next_batch(&mut world.decoder, 2).unwrap();
    assert_eq!(batch.len(), 101);
    assert_eq!(batch.last(), Some(&Change::RemovePolicy("ns/x".into())));
    assert_eq!(push.next_batch(&mut world.decoder, 2), None);
}
