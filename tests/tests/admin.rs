// SPDX-License-Identifier: Apache-2.0
//! What operators' tools ask of a running node: metrics in every form, levels of the log, dumps, profiles; and wrong
//! questions.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ztunnel_core::profile::proto::Profile;
use ztunnel_tests::http::Response;
use ztunnel_tests::node::{ADMIN, STATS};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);

fn world() -> (Mesh, Server) {
    let deny = "
name: no-strangers
namespace: demo
scope: Namespace
action: Deny
dryRun: false
rules: [[[{principals: [{Suffix: /sa/stranger}]}]]]
";
    let mesh = Mesh::builder()
        .env("METRICS_LABELS", "source_workload,destination_workload,connection_security_policy")
        .env("METRICS_MAX_SERIES", "3")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("stranger").on("n1"))
        .pod(PodSpec::mesh("server").on("n2").service("server.demo.svc.cluster.local", 80, 8080))
        .pod(PodSpec::plain("plain").on("n2"))
        .policy(deny)
        .start()
        .unwrap();
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    (mesh, server)
}

fn ask(mesh: &Mesh, from: &str, to: &str) -> std::io::Result<Vec<u8>> {
    mesh.pod(from).dial(mesh.pod(to).addr(8080))?.ask(b"hello")
}

fn post(node: &Node, path: &str) -> Response {
    node.post(ADMIN, path).unwrap()
}

/// The raw answer to a request with these headers.
fn raw(node: &Node, port: u16, headers: &str) -> (String, Vec<u8>) {
    let mut stream = node.netns().run(|| TcpStream::connect(("127.0.0.1", port))).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    (head, answer[end + 4..].to_vec())
}

fn metrics_are_as_prometheus_asks_for_them(node: &Node) {
    let (head, plain) = raw(node, STATS, "");
    assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
    assert!(!head.contains("content-encoding"), "{head}");
    let text = String::from_utf8_lossy(&plain);
    assert!(text.contains("# EOF\n"), "{text}");
    let order =
        ["process_open_fds", "tokio_num_workers", "istio_build", "workload_manager_active", "ztunnel_ready"];
    let places: Vec<usize> = order.iter().map(|name| text.find(&format!("# HELP {name}")).unwrap()).collect();
    assert!(places.is_sorted(), "{order:?} at {places:?}");
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\nAccept-Encoding: gzip\r\n";
    let (head, zipped) = raw(node, STATS, accept);
    assert!(
        head.contains("content-type: application/openmetrics-text;charset=utf-8;version=1.0.0"),
        "{head}"
    );
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(zipped.len() < plain.len() / 2, "{} instead of {} bytes", zipped.len(), plain.len());
    assert_eq!(node.get(STATS, "/").unwrap().status, 404);
    assert_eq!(node.post(STATS, "/stats/prometheus").unwrap().status, 200);
}

/// Three label sets at most: what is one too many is counted under `overflow`, and nothing is lost.
fn series_are_bounded(mesh: &Mesh) {
    let node = mesh.node("n1");
    let metrics = node.metrics().unwrap();
    let name = "istio_tcp_connections_opened_total";
    let labels: Vec<&BTreeMap<String, String>> = metrics.named(name).map(|sample| &sample.labels).collect();
    let kept = [
        "connection_security_policy",
        "destination_workload",
        "reporter",
        "response_flags",
        "source_workload",
    ];
    assert!(labels.iter().all(|labels| labels.keys().map(String::as_str).eq(kept)), "{labels:?}");
    assert!((metrics.sum(name, &[]) - 5.0).abs() < 0.5, "{labels:?}");
    let overflow = [("source_workload", "stranger"), ("destination_workload", "overflow")];
    assert!((metrics.sum(name, &overflow) - 1.0).abs() < 0.5, "{labels:?}");
    assert!((metrics.sum("ztunnel_metrics_overflow_total", &[]) - 1.0).abs() < 0.5);
    assert!((metrics.sum("ztunnel_metrics_label_sets", &[]) - 4.0).abs() < 0.5);
}

fn a_denial_names_both_ends_and_the_policy(mesh: &Mesh) {
    let denied = [
        ("src.identity", mesh.pod("stranger").spiffe()),
        ("dst.identity", mesh.pod("server").spiffe()),
        ("direction", "inbound".to_owned()),
        (
            "error",
            "connection closed due to policy rejection: explicitly denied by: demo/no-strangers".to_owned(),
        ),
    ];
    let denied: Vec<(&str, &str)> = denied.iter().map(|(name, value)| (*name, value.as_str())).collect();
    wait::until("the denial to be logged", SOON, || {
        mesh.node("n2").access_log().iter().any(|entry| entry.level == "error" && entry.is(&denied))
    })
    .unwrap();
}

fn levels_change_while_it_runs(mesh: &Mesh) {
    let node = mesh.node("n1");
    let opened = || node.access_log().iter().filter(|entry| entry.message == "connection opened").count();
    assert_eq!(opened(), 0);
    let start = post(node, "/logging");
    assert!(start.body.starts_with("current log level is hickory_server::server=off,"), "{}", start.body);
    for (level, answer) in [("access=debug", "access=debug,"), ("ztunnel::xds:trace", "ztunnel::xds=trace,")]
    {
        let answered = post(node, &format!("/logging?level={level}"));
        assert!(answered.status == 200 && answered.body.contains(answer), "{level}: {}", answered.body);
    }
    ask(mesh, "client", "server").unwrap();
    wait::until("an opening to be logged", SOON, || opened() == 1).unwrap();
    let wrong = post(node, "/logging?level=access%3Dloud");
    assert_eq!(wrong.status, 400);
    assert!(wrong.body.starts_with("Invalid level provided: access=loud\n"), "{}", wrong.body);
    assert_eq!(post(node, "/logging?level=&reset").body, start.body);
    ask(mesh, "client", "server").unwrap();
    wait::until("a later line", SOON, || {
        node.access_log().iter().filter(|entry| entry.message == "connection complete").count() >= 7
    })
    .unwrap();
    assert_eq!(opened(), 1, "the levels of the start are back");
    let wrong = node.get(ADMIN, "/logging").unwrap();
    assert!(wrong.status == 405 && wrong.body.starts_with("Invalid HTTP method\n"), "{}", wrong.body);
}

fn the_dump_has_what_istioctl_reads(mesh: &Mesh) {
    let node = mesh.node("n2");
    let conn = mesh.pod("client").dial(mesh.pod("server").addr(8080)).unwrap();
    let mut dump = Value::Null;
    wait::until("a connection in the dump", SOON, || {
        dump = serde_json::from_str(&node.get(ADMIN, "/config_dump").unwrap().body).unwrap();
        let states = dump["workloadState"].as_object().unwrap().values();
        states.into_iter().any(|state| state.pointer("/connections/inbound/0").is_some())
    })
    .unwrap();
    let keys: Vec<&String> = dump.as_object().unwrap().keys().collect();
    let expected = [
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "unknownPolicies",
        "version",
        "workloadState",
        "workloads",
    ];
    assert_eq!(keys, expected);
    let state = dump["workloadState"].as_object().unwrap().values();
    let server = state.clone().find(|state| state["info"]["name"] == "server").unwrap();
    assert_eq!(server["state"], "Up");
    let open = server.pointer("/connections/inbound/0").unwrap();
    assert_eq!(open["actualDst"], json!(mesh.pod("server").addr(8080)), "{open}");
    assert_eq!(open["protocol"], "HBONE", "{open}");
    let identity = mesh.pod("server").spiffe();
    let certificates = dump["certificates"].as_array().unwrap();
    let certificate =
        certificates.iter().find(|certificate| certificate["identity"] == identity.as_str()).unwrap();
    assert_eq!(certificate["state"], "Available");
    let serial = certificate.pointer("/certChain/0/serialNumber").and_then(Value::as_str).unwrap();
    assert!(serial.bytes().all(|digit| digit.is_ascii_digit()), "{serial}");
    assert_eq!(dump.pointer("/policies/0/name").unwrap(), "no-strangers");
    assert_eq!(dump.pointer("/config/adminAddr/Localhost/1").unwrap(), 15000);
    drop(conn);
}

fn profiles_are_taken(mesh: &Mesh) {
    use prost::Message as _;
    let node = mesh.node("n1");
    let profile = |path: &str| {
        let (head, body) = raw_admin(node, path);
        assert!(head.contains(" 200 ok"), "{head}");
        Profile::decode(&*body).unwrap()
    };
    assert_eq!(node.get(ADMIN, "/debug/pprof/heap").unwrap().status, 500);
    assert_eq!(post(node, "/debug/pprof/heap/profiling?activate=true").body, "heap profiling active: true\n");
    let begun = Instant::now();
    let taken = std::thread::scope(|scope| {
        let taken = scope.spawn(|| profile("/debug/pprof/profile?seconds=1&frequency=1000"));
        while !taken.is_finished() {
            ask(mesh, "client", "server").unwrap();
        }
        taken.join().unwrap()
    });
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(taken.sample.len() > 3, "{} stacks", taken.sample.len());
    assert!(taken.string_table.iter().any(|text| text.contains("ztunnel")), "names are known");
    let heap = profile("/debug/pprof/heap");
    assert!(heap.string_table.iter().any(|text| text == "inuse_space"));
    assert_eq!(
        post(node, "/debug/pprof/heap/profiling?activate=false").body,
        "heap profiling active: false\n"
    );
    let answer = |path: &str| node.get(ADMIN, path).unwrap();
    assert_eq!(answer("/debug/pprof/profile?seconds=301").body, "invalid seconds value; expected 1-300\n");
    assert_eq!(answer("/debug/pprof/profile?frequency=x").body, "invalid frequency value; expected 1-1000\n");
    assert_eq!(answer("/debug/pprof/heap/profiling?activate=maybe").status, 400);
    assert_eq!(answer("/nothing").status, 404);
    assert_eq!(answer("/quitquitquit").status, 405);
}

/// Not even to be told to end: what a browser may be made to send.
fn pages_of_others_get_nothing(node: &Node) {
    for head in ["Host: evil.example", "Host: localhost:15000\r\nOrigin: http://evil.example"] {
        let mut stream = node.netns().run(|| TcpStream::connect(("127.0.0.1", ADMIN))).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "POST /quitquitquit HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{head}: {answer}");
    }
}

/// An answer that is no text.
fn raw_admin(node: &Node, path: &str) -> (String, Vec<u8>) {
    let mut stream = node.netns().run(|| TcpStream::connect(("127.0.0.1", ADMIN))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // HTTP/1.0 is answered without chunks.
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase(), answer[end + 4..].to_vec())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn operators_get_the_answers_that_their_tools_expect() {
    let (mesh, _server) = world();
    for _ in 0..2 {
        assert_eq!(ask(&mesh, "client", "server").unwrap(), b"hello");
    }
    // Nobody listens there: the connection fails, and is counted all the same.
    assert!(ask(&mesh, "client", "plain").is_err());
    assert!(ask(&mesh, "stranger", "server").is_err());
    assert!(ask(&mesh, "stranger", "plain").is_err());
    wait::until("five connections to be over", SOON, || {
        mesh.node("n1").metrics().is_ok_and(|metrics| {
            metrics.open_connections().abs() < 0.5
                && metrics.sum("istio_tcp_connections_closed_total", &[]) > 4.5
        })
    })
    .unwrap();
    pages_of_others_get_nothing(mesh.node("n1"));
    metrics_are_as_prometheus_asks_for_them(mesh.node("n1"));
    series_are_bounded(&mesh);
    a_denial_names_both_ends_and_the_policy(&mesh);
    levels_change_while_it_runs(&mesh);
    the_dump_has_what_istioctl_reads(&mesh);
    profiles_are_taken(&mesh);
    mesh.stop().unwrap();
}
