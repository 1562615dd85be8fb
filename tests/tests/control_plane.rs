// SPDX-License-Identifier: Apache-2.0
//! The conversation with the control plane: it is late, it dies, it says nonsense, it says very much at once. After
//! each: the right state, the right readiness, and traffic that nobody touched never paused.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ztunnel_core::xds::proto::workload::{Address, Workload, address};
use ztunnel_core::xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use ztunnel_tests::istiod::ads::Seen;
use ztunnel_tests::istiod::{HOSTNAME, Istiod, describe, grpc};
use ztunnel_tests::node::{ADMIN, READINESS};
use ztunnel_tests::observe::AccessEntry;
use ztunnel_tests::traffic::{Pulse, Server};
use ztunnel_tests::{Mesh, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "web.demo.svc.cluster.local";
/// Fast enough to notice a pause, slow enough to leave the machine to others.
const REST: Duration = Duration::from_millis(1);

/// Two pods on two nodes, and an istiod that knows them; no ztunnel yet.
fn world() -> (Mesh, Istiod) {
    let client = PodSpec::mesh("client").on("n1");
    build(client, PodSpec::mesh("server").on("n2").service(WEB, 80, 8080))
}

/// The same on one node.
fn small_world() -> (Mesh, Istiod) {
    build(PodSpec::mesh("client"), PodSpec::mesh("server").service(WEB, 80, 8080))
}

fn build(client: PodSpec, server: PodSpec) -> (Mesh, Istiod) {
    let mesh = Mesh::builder().pod(client).pod(server).build().unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.configure(&mesh);
    istiod.ads().update(|resources| describe::mesh(&mesh, resources));
    (mesh, istiod)
}

fn launch(mesh: &Mesh) {
    mesh.nodes().for_each(|node| node.launch().unwrap());
}

fn ready(mesh: &Mesh) {
    mesh.nodes().for_each(|node| node.wait_ready(SOON).unwrap());
}

fn start(mesh: &Mesh) {
    launch(mesh);
    ready(mesh);
}

fn settled(mesh: &Mesh, istiod: &Istiod) {
    istiod.ads().wait_settled(mesh.nodes().count(), SOON).unwrap();
}

/// Asks the server's pod from the client's pod through the service; true if it answers.
fn answers(mesh: &Mesh) -> bool {
    let asked = mesh.pod("client").dial((mesh.vip(WEB), 80).into()).and_then(|conn| conn.ask(b"hello"));
    asked.is_ok_and(|answer| answer == b"hello")
}

/// A connection from the client's pod to the server's, in use all the time.
fn pulse(mesh: &Mesh) -> Pulse {
    Pulse::start(mesh.pod("client").dial((mesh.vip(WEB), 80).into()).unwrap(), REST)
}

/// What the doctor says about the node's istiod: mark and detail.
fn diagnosis(node: &Node) -> String {
    let output = node.ztunnel(["doctor"]).unwrap().output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    report.lines().filter(|line| line.contains(" istiod")).collect::<Vec<_>>().join("\n")
}

/// What the node says it is still waiting for.
fn pending(node: &Node) -> String {
    node.get(READINESS, "/healthz/ready").map(|response| response.body).unwrap_or_default()
}

/// Uids of the workloads that the node knows.
fn known(node: &Node) -> BTreeSet<String> {
    let dump = node.get(ADMIN, "/config_dump").unwrap().body;
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let workloads = dump["workloads"].as_array().unwrap().iter();
    workloads.map(|workload| workload["uid"].as_str().unwrap().to_owned()).collect()
}

fn knows(node: &Node, uid: &str) -> bool {
    known(node).contains(uid)
}

/// A pod that exists on paper only.
fn on_paper(name: &str) -> Workload {
    let uid = describe::uid("paper", name);
    Workload { uid, name: name.to_owned(), namespace: "paper".to_owned(), ..Workload::default() }
}

fn paper_uid(name: &str) -> String {
    describe::uid("paper", name)
}

/// A workload with a number that means nothing.
fn bad_workload(name: &str) -> Vec<u8> {
    let workload = Workload { tunnel_protocol: 77, ..on_paper(name) };
    prost::Message::encode_to_vec(&Address { r#type: Some(address::Type::Workload(workload)) })
}

fn nacks(seen: &[Seen]) -> Vec<String> {
    seen.iter().filter_map(|seen| seen.refusal().map(str::to_owned)).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_node_takes_its_mesh_from_the_control_plane() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    start(&mesh);
    settled(&mesh, &istiod);
    assert!(answers(&mesh));
    for seen in istiod.ads().seen() {
        assert_eq!(seen.metadata["authorization"], "Bearer a-token");
        assert_eq!(seen.metadata["clusterid"], "Kubernetes");
        assert!(!seen.metadata.contains_key("user-agent"), "{:?}", seen.metadata);
        assert_eq!(seen.refusal(), None);
    }
    let firsts: Vec<String> = istiod
        .ads()
        .seen()
        .iter()
        .filter(|seen| seen.stream == 1 && seen.is_initial())
        .map(|seen| seen.request.type_url.clone())
        .collect();
    assert_eq!(firsts, [ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    // What comes later is applied as well.
    istiod.ads().update(|resources| resources.workload(&on_paper("later")));
    settled(&mesh, &istiod);
    assert!(mesh.nodes().all(|node| knows(node, &paper_uid("later"))));
    let metrics = mesh.node("n1").metrics().unwrap();
    assert!(metrics.sum("istio_xds_message_total", &[("url", ADDRESS_TYPE)]) > 1.5);
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_control_plane_that_is_down_at_start_is_waited_for_by_name() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    istiod.pause();
    launch(&mesh);
    for node in mesh.nodes() {
        let waits = || pending(node).contains("pending: state manager, workload proxy manager");
        wait::until("the node to say what it waits for", SOON, waits).unwrap();
        let said = || node.stdout().matches("cannot reach the control plane").count() >= 3;
        wait::until("several attempts, each reported", SOON, said).unwrap();
        assert_eq!(node.agent().snapshots(), 0, "pods are served by a mesh that nobody knows");
    }
    let doctor = diagnosis(mesh.node("n1"));
    assert!(doctor.contains("refused") && doctor.contains("token for istiod"), "{doctor}");
    istiod.resume().unwrap();
    ready(&mesh);
    assert!(answers(&mesh));
    let doctor = diagnosis(mesh.node("n1"));
    assert!(doctor.contains("its certificate is trusted"), "{doctor}");
    let reason = [("reason", "ConnectionError")];
    assert!(mesh.node("n1").metrics().unwrap().sum("istio_xds_connection_terminations_total", &reason) > 2.5);
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_control_plane_that_dies_inside_a_response_is_asked_again() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    // At start: half of the first push, then nothing.
    istiod.ads().update(|resources| describe::crowd(2000, 10, resources));
    istiod.ads().faults(|faults| faults.cut_next_push_after = Some(100_000));
    start(&mesh);
    settled(&mesh, &istiod);
    assert!(istiod.ads().streams() >= 3, "nobody was cut off");
    // While traffic flows.
    let pulse = pulse(&mesh);
    let streams = istiod.ads().streams();
    istiod.ads().faults(|faults| faults.cut_next_push_after = Some(100_000));
    istiod.ads().update(|resources| {
        describe::crowd(4000, 10, resources);
        resources.remove_address(&describe::crowd_member(0, 10).uid);
    });
    wait::until("a new stream", SOON, || istiod.ads().streams() > streams).unwrap();
    settled(&mesh, &istiod);
    for node in mesh.nodes() {
        assert_eq!(known(node).len(), 2 + 3999);
        assert!(node.is_ready());
    }
    assert!(answers(&mesh));
    assert!(pulse.stop().unwrap().count > 0);
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_stream_that_ends_every_second_costs_neither_state_nor_traffic() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    istiod.ads().faults(|faults| faults.end_after = Some(Duration::from_secs(1)));
    start(&mesh);
    let pulse = pulse(&mesh);
    let begin = Instant::now();
    for round in 0..4 {
        let streams = istiod.ads().streams();
        wait::until("more streams", SOON, || istiod.ads().streams() >= streams + 2).unwrap();
        let name = format!("round-{round}");
        istiod.ads().update(|resources| resources.workload(&on_paper(&name)));
        for node in mesh.nodes() {
            wait::until("the update", SOON, || knows(node, &paper_uid(&name))).unwrap();
            assert!(node.is_ready());
        }
    }
    assert!(begin.elapsed() > Duration::from_secs(3), "streams ended faster than once a second");
    let beats = pulse.stop().unwrap();
    println!("{beats:?}");
    assert!(beats.longest < Duration::from_millis(250), "{beats:?}");
    // Every stream but the first says what is held already.
    let seen = istiod.ads().seen();
    let later = seen
        .iter()
        .filter(|seen| seen.is_initial() && seen.stream > 2 && seen.request.type_url == ADDRESS_TYPE);
    for seen in later {
        let held = &seen.request.initial_resource_versions;
        assert!(
            held.contains_key(&format!("demo/{WEB}")) && held.values().all(|version| version.len() == 16)
        );
    }
    let reason = [("reason", "Complete")];
    assert!(mesh.node("n1").metrics().unwrap().sum("istio_xds_connection_terminations_total", &reason) > 2.5);
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_stream_that_ends_at_once_is_not_asked_for_without_pause() {
    let (mesh, istiod) = small_world();
    istiod.ads().faults(|faults| faults.end_after = Some(Duration::ZERO));
    launch(&mesh);
    let begin = Instant::now();
    wait::until("five streams", SOON, || istiod.ads().streams() >= 5).unwrap();
    // 20, 40, 80 and 160 ms, each halved at most.
    assert!(begin.elapsed() > Duration::from_millis(150), "{:?}", begin.elapsed());
    istiod.ads().faults(|faults| faults.end_after = None);
    ready(&mesh);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_bad_resource_in_the_first_push_does_not_hold_the_start() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    istiod.ads().update(|resources| {
        resources.raw(ADDRESS_TYPE, "cluster1//Pod/a/bad", Vec::new(), &bad_workload("bad"));
        resources.raw(ADDRESS_TYPE, "cluster1//Pod/b/garbage", Vec::new(), &[0xff, 0xff]);
        resources.raw(AUTHORIZATION_TYPE, "elsewhere/bad", Vec::new(), &[0x18, 0x09]);
    });
    start(&mesh);
    assert!(answers(&mesh));
    let refusals = nacks(&istiod.ads().seen());
    let addresses = refusals.iter().find(|refusal| refusal.contains("cluster1//Pod/a/bad")).unwrap();
    assert!(addresses.contains("cluster1//Pod/a/bad: tunnel_protocol: unknown value 77"), "{addresses}");
    assert!(addresses.contains("; cluster1//Pod/b/garbage: cannot be read: "), "{addresses}");
    assert!(
        refusals.iter().any(|refusal| refusal == "elsewhere/bad: scope: unknown value 9"),
        "{refusals:?}"
    );
    assert!(mesh.node("n1").stdout().contains("refused: tunnel_protocol: unknown value 77"));
    // Repaired, it is taken.
    istiod.ads().update(|resources| {
        resources.remove_address("cluster1//Pod/a/bad");
        resources.workload(&on_paper("bad"));
    });
    settled(&mesh, &istiod);
    assert!(knows(mesh.node("n1"), &paper_uid("bad")));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_bad_resource_among_ten_thousand_good_ones_costs_none_of_them() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    start(&mesh);
    settled(&mesh, &istiod);
    let pulse = pulse(&mesh);
    istiod.ads().update(|resources| {
        describe::crowd(10_000, 100, resources);
        let place = describe::crowd_member(5_000, 100).uid;
        resources.raw(ADDRESS_TYPE, &place, Vec::new(), &bad_workload("bad"));
    });
    settled(&mesh, &istiod);
    let refusals = nacks(&istiod.ads().seen());
    assert_eq!(refusals.len(), 2, "one from each node: {refusals:?}");
    for node in mesh.nodes() {
        assert_eq!(known(node).len(), 2 + 9_999);
        assert!(node.is_ready());
    }
    assert!(pulse.stop().unwrap().count > 0);
    assert!(answers(&mesh));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_response_that_cannot_be_read_at_all_costs_a_stream_and_nothing_else() {
    let (mesh, istiod) = small_world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    start(&mesh);
    settled(&mesh, &istiod);
    let pulse = pulse(&mesh);
    let streams = istiod.ads().streams();
    istiod.ads().faults(|faults| faults.next_response = Some(Bytes::from_static(&[0xff; 64])));
    istiod.ads().update(|resources| resources.workload(&on_paper("after")));
    wait::until("a new stream", SOON, || istiod.ads().streams() > streams).unwrap();
    settled(&mesh, &istiod);
    assert!(knows(mesh.node("n1"), &paper_uid("after")));
    assert!(pulse.stop().unwrap().count > 0);
    assert!(answers(&mesh));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_is_removed_is_gone_whether_the_stream_stood_or_not() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    istiod.ads().update(|resources| {
        ["one", "two", "three"].iter().for_each(|name| resources.workload(&on_paper(name)));
    });
    start(&mesh);
    settled(&mesh, &istiod);
    istiod.ads().update(|resources| resources.remove_address(&paper_uid("one")));
    settled(&mesh, &istiod);
    for node in mesh.nodes() {
        assert!(!knows(node, &paper_uid("one")) && knows(node, &paper_uid("two")));
    }
    let pulse = pulse(&mesh);
    istiod.pause();
    istiod.ads().update(|resources| resources.remove_address(&paper_uid("two")));
    let before = istiod.ads().seen().len();
    istiod.resume().unwrap();
    settled(&mesh, &istiod);
    for node in mesh.nodes() {
        assert!(!knows(node, &paper_uid("two")) && knows(node, &paper_uid("three")));
        assert!(node.is_ready());
    }
    // The node named what it held, with versions, so it was told no more than it had to be.
    let seen = istiod.ads().seen();
    let initial =
        seen[before..].iter().find(|seen| seen.is_initial() && seen.request.type_url == ADDRESS_TYPE);
    let held = &initial.unwrap().request.initial_resource_versions;
    let names = [paper_uid("two"), paper_uid("three"), format!("demo/{WEB}")];
    assert!(names.iter().all(|name| held.get(name).is_some_and(|version| version.len() == 16)), "{held:?}");
    assert!(!held.contains_key(&paper_uid("one")), "{held:?}");
    // A service goes as well, and its address stands for nothing then.
    istiod.ads().update(|resources| resources.remove_address(&format!("demo/{WEB}")));
    settled(&mesh, &istiod);
    assert!(!answers(&mesh));
    assert!(pulse.stop().unwrap().count > 0, "a connection that stood was cut");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_policy_is_enforced_when_it_comes_and_no_longer_when_it_goes() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    start(&mesh);
    assert!(answers(&mesh));
    let client = mesh.pod("client").spiffe().replace("spiffe://", "");
    let open = mesh.pod("client").dial((mesh.vip(WEB), 80).into()).unwrap();
    assert_eq!(open.ask(b"hello").unwrap(), b"hello");
    let elsewhere = describe::deny("elsewhere", "no-client", &[&client]);
    istiod.ads().update(|resources| resources.policy(&elsewhere));
    settled(&mesh, &istiod);
    assert_eq!(open.ask(b"again").unwrap(), b"again", "cut by a policy of another namespace");
    istiod.ads().update(|resources| resources.policy(&describe::deny("demo", "no-client", &[&client])));
    assert!(open.ends_within(SOON), "an open connection outlives its permission");
    settled(&mesh, &istiod);
    assert!(!answers(&mesh));
    let closed = |entry: &AccessEntry| entry.get("error") == "connection closed due to policy change";
    wait::until("the log line", SOON, || mesh.node("n2").access_log().iter().any(closed)).unwrap();
    istiod.ads().update(|resources| resources.remove_policy("demo/no-client"));
    settled(&mesh, &istiod);
    assert!(answers(&mesh));
    // One that cannot be read is no reason to let everybody in.
    istiod.ads().update(|resources| resources.raw(AUTHORIZATION_TYPE, "demo/odd", Vec::new(), &[0x18, 0x09]));
    settled(&mesh, &istiod);
    assert!(!answers(&mesh));
    istiod.ads().update(|resources| resources.remove_policy("demo/odd"));
    settled(&mesh, &istiod);
    assert!(answers(&mesh));
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn on_demand_a_node_knows_what_was_asked_for_and_a_question_always_ends() {
    let (mesh, istiod) = world();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    mesh.set_env("XDS_ON_DEMAND", "true");
    istiod.ads().update(|resources| describe::crowd(100, 10, resources));
    let ads = istiod.ads();
    start(&mesh);
    let node = mesh.node("n1");
    assert_eq!(known(node), BTreeSet::from([describe::uid("demo", "client")]), "the node's own pods alone");
    // A name of which the control plane knows the alias: the service comes with its endpoints.
    assert!(answers(&mesh));
    assert!(knows(node, &describe::uid("demo", "server")));
    assert!(known(node).len() < 10);
    // An address that is nobody's is asked for once, and passed through.
    let nobody = mesh.node("n2").ip4();
    let listener = mesh.node("n2").netns().run(|| std::net::TcpListener::bind((nobody, 7777)).unwrap());
    let question = format!("/{nobody}");
    for _ in 0..2 {
        drop(mesh.pod("client").connect((nobody, 7777).into()).unwrap());
        drop(listener.accept().unwrap());
    }
    let asked = |seen: &[Seen]| {
        seen.iter().filter(|seen| seen.request.resource_names_subscribe.contains(&question)).count()
    };
    assert_eq!(asked(&ads.seen()), 1);
    // Without anybody to answer, a question ends, and nothing goes out in the clear meanwhile.
    istiod.pause();
    let begin = Instant::now();
    let stranger = (std::net::Ipv4Addr::new(10, 71, 0, 99), 80).into();
    let conn = mesh.pod("client").dial(stranger).unwrap();
    assert!(conn.ends_within(Duration::from_secs(9)), "the question never ended");
    assert!(begin.elapsed() > Duration::from_secs(4), "nobody waited for an answer");
    assert!(answers(&mesh), "what is known goes on");
    istiod.resume().unwrap();
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn roots_tokens_and_names_are_looked_at_for_every_stream() {
    let (mesh, istiod) = small_world();
    let node = mesh.node("n1");
    let late = |name: &str| mesh.dir().join(name);
    node.set_env("XDS_ROOT_CA", &late("root.pem").to_string_lossy());
    node.set_env("AUTH_TOKEN", &late("token").to_string_lossy());
    node.set_env("CLUSTER_ID", "c7");
    node.set_env("XDS_HEADER_X_TEAM", "web");
    node.launch().unwrap();
    let says = |text: &str| wait::until(text, SOON, || node.stdout().contains(text));
    says("token cannot be used: No such file").unwrap();
    std::fs::write(late("token"), "first").unwrap();
    says("root.pem: No such file").unwrap();
    std::fs::write(late("root.pem"), "not a certificate").unwrap();
    says("there is no certificate in it").unwrap();
    std::fs::copy(istiod.root(), late("root.pem")).unwrap();
    node.wait_ready(SOON).unwrap();
    std::fs::write(late("token"), "second").unwrap();
    istiod.pause();
    istiod.resume().unwrap();
    let second =
        |seen: &[Seen]| seen.iter().find(|seen| seen.metadata["authorization"] == "Bearer second").cloned();
    let seen = istiod.ads().wait_seen("the new token", SOON, second).unwrap();
    assert_eq!(
        (&seen.metadata["clusterid"], &seen.metadata["x_team"]),
        (&"c7".parse().unwrap(), &"web".parse().unwrap())
    );
    assert!(!node.stdout().contains("second"), "a token in the log");
    // Refused by the control plane: seen, retried, and no reason to forget anything.
    istiod.ads().faults(|faults| faults.refuse = Some((grpc::UNAUTHENTICATED, "who are you".to_owned())));
    istiod.pause();
    istiod.resume().unwrap();
    says("who are you").unwrap();
    assert!(node.is_ready());
    istiod.ads().faults(|faults| faults.refuse = None);
    settled(&mesh, &istiod);
    node.terminate().unwrap();
    // A certificate for another name is refused, unless it is the alternative one.
    node.set_env("XDS_ADDRESS", "https://127.0.0.1:15012");
    let relay = istiod.also_at(node.netns(), ([127, 0, 0, 1], 15012).into()).unwrap();
    node.launch().unwrap();
    says("not valid for name").unwrap();
    node.terminate().unwrap();
    node.set_env("ALT_XDS_HOSTNAME", HOSTNAME);
    node.start().unwrap();
    drop(relay);
    mesh.stop().unwrap();
}
