// SPDX-License-Identifier: Apache-2.0
//! Certificates from an authority over gRPC: obtained, renewed, refused, revoked, and gone with their pods.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use ztunnel_tests::agent::Enrolled;
use ztunnel_tests::istiod::ca::Wrong;
use ztunnel_tests::istiod::{Istiod, grpc};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::node::{ADMIN, PATIENCE};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Netns, Node, Pod, PodSpec, wait};

const SOON: Duration = Duration::from_secs(15);

/// A mesh whose ztunnels take certificates from an istiod, and are not started yet.
fn build(builder: MeshBuilder) -> (Mesh, Istiod) {
    let mesh = builder.build().unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.certify(&mesh);
    (mesh, istiod)
}

fn start(mesh: &Mesh) {
    mesh.nodes().for_each(|node| node.launch().unwrap());
    mesh.nodes().for_each(|node| node.wait_ready(PATIENCE).unwrap());
}

/// Two pods on one node and one on another.
fn three() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("a").on("n1"))
        .pod(PodSpec::mesh("b").on("n1"))
        .pod(PodSpec::mesh("c").on("n2"))
}

/// The certificates that a node has, as its config dump shows them.
fn certificates(node: &Node) -> Vec<Value> {
    let dump = node.get(ADMIN, "/config_dump").unwrap();
    assert!(!dump.body.contains("PRIVATE"), "a key in the dump");
    let dump: Value = serde_json::from_str(&dump.body).unwrap();
    dump["certificates"].as_array().unwrap().clone()
}

/// What a node says of one identity.
fn state(node: &Node, identity: &str) -> String {
    let all = certificates(node);
    let found = all.iter().find(|certificate| certificate["identity"] == identity);
    found.map_or("none", |certificate| certificate["state"].as_str().unwrap()).to_owned()
}

/// Asks the pod's server from another pod; true if it answers.
fn answers(mesh: &Mesh, from: &str, to: &str) -> bool {
    let asked = mesh.pod(from).dial(mesh.pod(to).addr(8080)).and_then(|conn| conn.ask(b"hello"));
    asked.is_ok_and(|answer| answer == b"hello")
}

/// Waits until a line of the access log of `node` has `text` in its error.
fn wait_refused(node: &Node, text: &str) {
    let logged = || node.access_log().iter().any(|entry| entry.get("error").contains(text));
    wait::until(&format!("`{text}` in the access log"), SOON, logged).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn certificates_come_from_the_authority_and_the_keys_stay() {
    let (mesh, istiod) = build(three().env("SECRET_TTL", "2h").env("CA_HEADER_X_Team", "mesh"));
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert!(answers(&mesh, "a", "c") && answers(&mesh, "b", "c"));
    let seen = istiod.ca().seen();
    for pod in ["a", "b", "c"] {
        let identity = mesh.pod(pod).spiffe();
        let requests: Vec<_> = seen.iter().filter(|seen| seen.is_for(&identity)).collect();
        assert_eq!(requests.len(), 1, "{pod}: one request, however many workers and connections");
        assert_eq!(requests[0].requested, Some(identity));
        assert_eq!(requests[0].validity, 7200);
        let header = |name| requests[0].metadata.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("authorization"), Some("Bearer a-token"));
        assert_eq!(header("clusterid"), Some("Kubernetes"));
        assert_eq!(header("x_team"), Some("mesh"));
    }
    let node = mesh.node("n2");
    let shown = certificates(node);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0]["state"], "Available");
    let serial = seen.iter().find(|seen| seen.is_for(&mesh.pod("c").spiffe())).unwrap().serial.unwrap();
    assert_eq!(shown[0]["certChain"][0]["serialNumber"], serial.to_string());
    assert_eq!(shown[0]["rootCerts"].as_array().unwrap().len(), 1);
    assert!(!node.stdout().contains("PRIVATE") && !node.stdout().contains("a-token"), "a secret in the log");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_authority_that_is_down_at_start_is_found_when_it_is_up() {
    let (mesh, istiod) = build(three());
    istiod.pause();
    // The token and the root may come late as well.
    let (root, token) = (istiod.root().to_owned(), istiod.token().to_owned());
    let files = [&root, &token].map(|path| std::fs::read(path).unwrap());
    for path in [&root, &token] {
        std::fs::remove_file(path).unwrap();
    }
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert!(!answers(&mesh, "a", "c"), "without a certificate");
    wait_refused(mesh.node("n1"), &format!("the token in {} cannot be used", token.display()));
    std::fs::write(&token, &files[1]).unwrap();
    wait_refused_after_retry(&mesh, "no roots of trust for the control plane in");
    std::fs::write(&root, &files[0]).unwrap();
    wait_refused_after_retry(&mesh, "TCP to 10.71.0.250:15012");
    istiod.resume().unwrap();
    wait::until("traffic", Duration::from_secs(60), || answers(&mesh, "a", "c")).unwrap();
    drop(server);
    mesh.stop().unwrap();
}

/// Asks until the reason for which there is no certificate is another one.
fn wait_refused_after_retry(mesh: &Mesh, text: &str) {
    let refused = || {
        assert!(!answers(mesh, "a", "c"), "without a certificate");
        mesh.node("n1").access_log().iter().any(|entry| entry.get("error").contains(text))
    };
    wait::until(&format!("`{text}` as the reason"), Duration::from_secs(60), refused).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_slow_authority_is_waited_for_but_not_for_ever() {
    let (mesh, istiod) = build(three());
    let (slow, never) = (mesh.pod("a").spiffe(), mesh.pod("b").spiffe());
    istiod.ca().faults(|faults| {
        faults.delay_one.insert(slow.clone(), Duration::from_secs(3));
        faults.delay_one.insert(never.clone(), Duration::from_secs(60));
    });
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert_eq!(state(mesh.node("n1"), &slow), "Initializing");
    assert!(answers(&mesh, "a", "c"), "the connection waits for the certificate");
    let begun = Instant::now();
    assert!(!answers(&mesh, "b", "c"));
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    wait_refused(mesh.node("n1"), &format!("identity error: no certificate for {never} within 10 s"));
    assert!(answers(&mesh, "a", "c"), "somebody else's trouble");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_refused_identity_costs_nobody_else_anything() {
    let (mesh, istiod) = build(three());
    let refused = mesh.pod("b").spiffe();
    let why = (grpc::UNAUTHENTICATED, "no pod of this identity on the node".to_owned());
    istiod.ca().faults(|faults| {
        faults.refuse.insert(refused.clone(), why);
    });
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    assert!(answers(&mesh, "a", "c"));
    assert!(!answers(&mesh, "b", "c"));
    let reason = "signing gRPC error (Unauthenticated: no pod of this identity on the node";
    wait_refused(mesh.node("n1"), reason);
    let labels = [("response_flags", "IDENTITY_ERROR"), ("source_workload", "b")];
    wait::until("the flag", SOON, || {
        let metrics = mesh.node("n1").metrics().unwrap();
        metrics.sum("istio_tcp_connections_failed_total", &labels) > 0.5
    })
    .unwrap();
    let shown = state(mesh.node("n1"), &refused);
    assert!(shown.starts_with("Unavailable: ") && shown.contains("no pod of this identity"), "{shown}");
    // Asking again and again does not make the node ask the authority any faster.
    let asked = || istiod.ca().seen().iter().filter(|seen| seen.is_for(&refused)).count();
    let before = asked();
    for _ in 0..50 {
        assert!(!answers(&mesh, "b", "c"));
    }
    assert!(asked() <= before + 2, "{} requests for 50 connections", asked() - before);
    istiod.ca().faults(|faults| faults.refuse.clear());
    wait::until("the refusal to be over", Duration::from_secs(60), || answers(&mesh, "b", "c")).unwrap();
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_certificate_that_was_not_asked_for_is_refused_with_the_reason() {
    let wrongs = [
        (
            "identity",
            Wrong::Identity("spiffe://cluster.local/ns/demo/sa/admin".to_owned()),
            "did not find expected SAN",
        ),
        ("key", Wrong::Key, "is not for our key"),
        ("expired", Wrong::Expired, "expired"),
        ("rootless", Wrong::NoRoot, "no root to trust"),
        ("garbage", Wrong::Garbage, "something else than a certificate as the leaf"),
        ("empty", Wrong::Empty, "chain returned from CA is empty"),
    ];
    let mut builder = three();
    for (name, ..) in &wrongs {
        builder = builder.pod(PodSpec::mesh(name).on("n1"));
    }
    let (mesh, istiod) = build(builder);
    istiod.ca().faults(|faults| {
        faults.wrong =
            wrongs.iter().map(|(name, wrong, _)| (mesh.pod(name).spiffe(), wrong.clone())).collect();
    });
    start(&mesh);
    let (node, server) = (mesh.node("n1"), Server::echo(mesh.pod("c"), 8080).unwrap());
    for (name, _, reason) in &wrongs {
        let identity = mesh.pod(name).spiffe();
        wait::until(reason, SOON, || {
            let shown = state(node, &identity);
            shown.starts_with("Unavailable: ") && shown.contains(reason)
        })
        .unwrap();
        assert!(!answers(&mesh, name, "c"), "{name}");
    }
    assert!(answers(&mesh, "a", "c") && answers(&mesh, "b", "c"), "somebody else's trouble");
    istiod.ca().faults(|faults| faults.wrong.clear());
    for (name, ..) in &wrongs {
        wait::until("the trouble to be over", Duration::from_secs(60), || answers(&mesh, name, "c")).unwrap();
    }
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_root_is_replaced_without_a_broken_connection() {
    // Every connection opens a tunnel of its own: none lives on an old handshake.
    let (mesh, istiod) = build(three().env("POOL_UNUSED_RELEASE_TIMEOUT", "0s"));
    let ca = istiod.ca();
    ca.faults(|faults| faults.lifetime = Some(Duration::from_secs(8)));
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    let held = mesh.pod("a").dial(mesh.pod("c").addr(8080)).unwrap();
    let everybody = |what: &str, has: &dyn Fn(&Value) -> bool| {
        wait::until(what, Duration::from_secs(30), || {
            assert_eq!(held.ask(b"still here").unwrap(), b"still here", "{what}");
            assert!(answers(&mesh, "b", "c"), "{what}");
            mesh.nodes().flat_map(certificates).all(|certificate| has(&certificate))
        })
        .unwrap();
    };
    let roots = |count: usize| move |shown: &Value| shown["rootCerts"].as_array().unwrap().len() == count;
    let serial =
        |shown: &Value| shown["certChain"][0]["serialNumber"].as_str().unwrap().parse::<u64>().unwrap();
    everybody("one root", &roots(1));
    ca.add_root().unwrap();
    everybody("both roots", &roots(2));
    let issued = ca.seen().iter().filter_map(|seen| seen.serial).max().unwrap();
    ca.sign_with_newest();
    // One request may have been under way at that moment.
    everybody("certificates of the new root", &|shown| serial(shown) > issued + 1);
    ca.drop_old_roots();
    everybody("the new root alone", &roots(1));
    assert_eq!(held.ask(b"to the end").unwrap(), b"to the end");
    let failed =
        |node: &Node| node.access_log().iter().filter(|entry| entry.message == "connection failed").count();
    assert_eq!(mesh.nodes().map(failed).sum::<usize>(), 0, "a broken connection");
    drop((held, server));
    mesh.stop().unwrap();
}

/// Pods of one node that share a namespace: to the node agent and the authority they are as many as their names.
struct Crowd {
    netns: Netns,
    pods: Vec<(String, String)>,
}

impl Crowd {
    /// Describes `count` pods with `accounts` service accounts in the mesh file. Call before a ztunnel is started.
    fn describe(mesh: &Mesh, count: usize, accounts: usize) -> Self {
        let mut text = std::fs::read_to_string(mesh.file()).unwrap();
        let mut pods = Vec::new();
        for number in 0..count {
            let (name, account) = (format!("crowd-{number}"), format!("account-{}", number % accounts));
            text.push_str(&format!(
                "- {{uid: cluster1//Pod/demo/{name}, name: {name}, namespace: demo, serviceAccount: {account}, \
                 trustDomain: cluster.local, node: n1, protocol: HBONE, workloadIps: [10.80.{}.{}], services: {{}}}}\n",
                number / 250,
                number % 250 + 1
            ));
            pods.push((name, account));
        }
        std::fs::write(mesh.file(), text).unwrap();
        Self { netns: Netns::create(&format!("{}-crowd", mesh.prefix())).unwrap(), pods }
    }

    fn pod(&self, number: usize) -> Enrolled {
        let (name, account) = &self.pods[number];
        Enrolled {
            uid: format!("uid-{name}"),
            name: name.clone(),
            namespace: "demo".to_owned(),
            service_account: account.clone(),
            netns: Some(self.netns.clone()),
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_thousand_identities_are_obtained_and_renewed_eight_at_a_time() {
    const COUNT: usize = 1000;
    let builder = Mesh::builder().pod(PodSpec::mesh("a").on("n1")).pod(PodSpec::mesh("c").on("n1"));
    let (mesh, istiod) = build(builder);
    let crowd = Crowd::describe(&mesh, COUNT, COUNT);
    let (node, ca) = (mesh.node("n1"), istiod.ca());
    ca.faults(|faults| faults.lifetime = Some(Duration::from_secs(40)));
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    let held = mesh.pod("a").dial(mesh.pod("c").addr(8080)).unwrap();
    let cpu = node.cpu_time().unwrap();
    let begun = Instant::now();
    for number in 0..COUNT {
        assert_eq!(node.agent().add(crowd.pod(number)).unwrap(), Some(String::new()));
    }
    let enrolled = begun.elapsed();
    let available = |shown: &[Value]| shown.iter().filter(|one| one["state"] == "Available").count();
    wait::until("every certificate", Duration::from_secs(60), || available(&certificates(node)) == COUNT + 2)
        .unwrap();
    let obtained = begun.elapsed();
    let mut longest = Duration::ZERO;
    let mut requests = BTreeMap::new();
    wait::until("every certificate to be renewed twice", Duration::from_secs(180), || {
        let asked = Instant::now();
        assert_eq!(held.ask(b"still here").unwrap(), b"still here");
        longest = longest.max(asked.elapsed());
        requests.clear();
        for seen in ca.seen() {
            *requests.entry(seen.impersonated.unwrap()).or_insert(0) += 1;
        }
        requests.values().filter(|count| **count >= 3).count() == COUNT + 2
    })
    .unwrap();
    assert_eq!(available(&certificates(node)), COUNT + 2, "nobody was ever without");
    assert!(!node.stdout().contains("no certificate"), "a request failed");
    assert_eq!(ca.most_in_flight(), 8);
    println!(
        "{COUNT} pods enrolled in {enrolled:?}, all certificates after {obtained:?}, twice renewed after {:?}; \
         {} requests, at most {} at once; {:?} CPU; longest answer on an open connection {longest:?}; {} MiB resident",
        begun.elapsed(),
        ca.seen().len(),
        ca.most_in_flight(),
        node.cpu_time().unwrap().saturating_sub(cpu),
        node.memory().unwrap().resident >> 20,
    );
    drop((held, server));
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn pods_that_come_and_go_in_any_order_leave_no_certificate_behind() {
    const COUNT: usize = 300;
    let (mesh, istiod) = build(three());
    let crowd = Crowd::describe(&mesh, COUNT, 40);
    let (node, ca) = (mesh.node("n1"), istiod.ca());
    // Some requests are still under way when their pods go.
    ca.faults(|faults| faults.delay = Duration::from_millis(20));
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    let held = mesh.pod("a").dial(mesh.pod("c").addr(8080)).unwrap();
    let settled = || certificates(node).iter().all(|one| one["state"] == "Available");
    wait::until("the pods' own certificates", SOON, settled).unwrap();
    let files = node.open_files().unwrap();
    let (mut seed, mut served) = (0x9e37_79b9_u64, BTreeSet::new());
    for _ in 0..4 * COUNT {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = usize::try_from(seed >> 33).unwrap() % COUNT;
        if served.remove(&number) {
            assert_eq!(node.agent().delete(&crowd.pod(number).uid).unwrap(), [String::new()]);
        } else {
            served.insert(number);
            assert_eq!(node.agent().add(crowd.pod(number)).unwrap(), Some(String::new()));
        }
    }
    let accounts: BTreeSet<&str> = served.iter().map(|number| crowd.pods[*number].1.as_str()).collect();
    wait::until("a certificate for each identity that is here", SOON, || {
        settled() && certificates(node).len() == accounts.len() + 2
    })
    .unwrap();
    assert_eq!(held.ask(b"still here").unwrap(), b"still here");
    for number in &served {
        assert_eq!(node.agent().delete(&crowd.pod(*number).uid).unwrap(), [String::new()]);
    }
    wait::until("only the two that stay", SOON, || certificates(node).len() == 2).unwrap();
    wait::until("every descriptor to be closed", SOON, || node.open_files().unwrap() <= files + 2).unwrap();
    assert!(ca.most_in_flight() <= 9, "{} at once", ca.most_in_flight());
    assert!(held.ask(b"to the end").unwrap() == b"to the end" && answers(&mesh, "b", "c"));
    drop((held, server));
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn in_a_rolling_update_each_ztunnel_has_certificates_of_its_own() {
    let (mesh, istiod) = build(three());
    start(&mesh);
    let (node, server) = (mesh.node("n1"), Server::echo(mesh.pod("c"), 8080).unwrap());
    let old = mesh.pod("a").dial(mesh.pod("c").addr(8080)).unwrap();
    assert_eq!(old.ask(b"with one").unwrap(), b"with one");
    // The next one needs a way to the authority.
    let home = Netns::create(&format!("{}-next", mesh.prefix())).unwrap();
    let link = format!("link add to-next type veth peer name eth0 netns {}\n", home.name());
    mesh.wire().ip(&format!("{link}link set to-next master wire up\n")).unwrap();
    home.ip("addr add 10.71.0.200/24 dev eth0\nlink set eth0 up\n").unwrap();
    let next = node.successor(&home).unwrap();
    for _ in 0..20 {
        assert!(answers(&mesh, "a", "c"), "with two");
    }
    node.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    for _ in 0..50 {
        assert!(answers(&mesh, "a", "c"), "while the old one drains");
    }
    assert_eq!(old.ask(b"until the deadline").unwrap(), b"until the deadline");
    drop(old);
    assert!(node.wait_exit(SOON).unwrap().success());
    for _ in 0..20 {
        assert!(answers(&mesh, "a", "c") && answers(&mesh, "b", "c"), "with the next");
    }
    let asked = istiod.ca().seen().iter().filter(|seen| seen.is_for(&mesh.pod("a").spiffe())).count();
    assert_eq!(asked, 2, "one request from each");
    drop((server, next));
    mesh.stop().unwrap();
}

/// The serial number of the last certificate that was issued to a pod.
fn serial(istiod: &Istiod, pod: &Pod) -> u64 {
    let identity = pod.spiffe();
    istiod.ca().seen().iter().rev().find(|seen| seen.is_for(&identity)).and_then(|seen| seen.serial).unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_revoked_certificate_is_refused_and_its_open_connections_are_cut() {
    let (mesh, istiod) = build(three());
    let list = mesh.dir().join("crl.pem");
    mesh.set_env("CRL_PATH", &list.to_string_lossy());
    start(&mesh);
    let server = Server::echo(mesh.pod("c"), 8080).unwrap();
    let (doomed, stays) = (mesh.pod("a"), mesh.pod("b"));
    let dial = |pod: &Pod| pod.dial(mesh.pod("c").addr(8080)).unwrap();
    let (cut, open) = (dial(doomed), dial(stays));
    assert!(cut.ask(b"before").unwrap() == b"before" && open.ask(b"before").unwrap() == b"before");
    // As the kubelet does it: a new file takes the place of the old one.
    let revoke = |serials: &[u64]| {
        let next = mesh.dir().join("crl.next");
        std::fs::write(&next, istiod.ca().revoke(serials).unwrap()).unwrap();
        std::fs::rename(&next, &list).unwrap();
    };
    revoke(&[serial(&istiod, doomed)]);
    assert!(cut.ends_within(Duration::from_secs(10)), "an open connection of a revoked certificate goes on");
    assert_eq!(open.ask(b"after").unwrap(), b"after", "somebody else's connection");
    wait_refused(mesh.node("n2"), "connection closed: peer certificate revoked by CRL");
    assert!(!answers(&mesh, "a", "c"), "a new connection");
    assert!(answers(&mesh, "b", "c"));
    let rejected = |node: &str, reporter: &str| {
        let metrics = mesh.node(node).metrics().unwrap();
        metrics.sum("istio_crl_policy_rejections_total", &[("reporter", reporter)])
    };
    assert!(rejected("n2", "destination") > 1.5, "one cut, one refused: {}", rejected("n2", "destination"));
    // A file that is broken later is reported, and takes nothing back.
    std::fs::write(&list, "nonsense").unwrap();
    wait::until("the complaint", SOON, || {
        let status = mesh.node("n2").status().unwrap();
        status["revocation"]["error"].as_str().is_some_and(|error| error.contains("not a revocation list"))
    })
    .unwrap();
    assert!(!answers(&mesh, "a", "c") && answers(&mesh, "b", "c"));
    // The destination's certificate: now it is the source that refuses.
    revoke(&[serial(&istiod, mesh.pod("c"))]);
    assert!(open.ends_within(Duration::from_secs(10)), "towards a revoked certificate");
    wait::until("refused by the source", SOON, || {
        !answers(&mesh, "b", "c") && rejected("n1", "source") > 1.5
    })
    .unwrap();
    revoke(&[]);
    wait::until("traffic", SOON, || answers(&mesh, "a", "c") && answers(&mesh, "b", "c")).unwrap();
    drop((server, cut, open));
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_broken_revocation_list_at_start_is_an_error_and_not_no_list() {
    let (mesh, _istiod) = build(three());
    let list = mesh.dir().join("crl.pem");
    std::fs::write(&list, "nonsense").unwrap();
    mesh.set_env("CRL_PATH", &list.to_string_lossy());
    let node = mesh.node("n1");
    node.launch().unwrap();
    assert_eq!(node.wait_exit(SOON).unwrap().code(), Some(1));
    assert!(
        node.stderr().contains("CRL_PATH") && node.stderr().contains("not a revocation list"),
        "{}",
        node.stderr()
    );
    mesh.stop().unwrap();
}
