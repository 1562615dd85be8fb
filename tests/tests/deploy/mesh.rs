// SPDX-License-Identifier: Apache-2.0
//! A mesh in trouble, a real Prometheus that scrapes it, the dashboard's queries and the alerts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ztunnel_core::xds::proto::workload::{Port, PortList, Workload};
use ztunnel_tests::istiod::{Istiod, describe, grpc};
use ztunnel_tests::node::{PATIENCE, STATS};
use ztunnel_tests::prometheus::{Prometheus, deploy, promtool};
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Mode, Pod, PodSpec, wait};

use crate::families;

/// For Prometheus to see what happens: some scrapes, and a window full of them.
const SOON: Duration = Duration::from_secs(30);
/// What Grafana would make of `$__rate_interval` at one scrape per second.
const WINDOW: &str = "6s";

/// A service of a workload that has a host name instead of an address.
const NAMED: &str = "named.demo.svc.cluster.local";
const NAMED_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
/// More than the kernel's tables hold of them: each is two local hops on its node.
const HELD: usize = 40;

/// A mesh in which connections succeed, are denied, and fail for want of a certificate.
fn world() -> (Mesh, Istiod) {
    let mesh = Mesh::builder()
        .mode(Mode::Full)
        .env("EBPF_MAX_CONNECTIONS", "64")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("stranger").on("n1"))
        .pod(PodSpec::mesh("nobody").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::unknown("resolver").on("n2"))
        .dns(&["resolver"])
        .build()
        .unwrap();
    // There is no list yet, which is a list without entries.
    mesh.set_env("CRL_PATH", &mesh.dir().join("crl.pem").to_string_lossy());
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.configure(&mesh);
    istiod.certify(&mesh);
    let principal = |pod: &str| mesh.pod(pod).spiffe().replace("spiffe://", "");
    istiod.ads().update(|resources| {
        describe::mesh(&mesh, resources);
        resources.workload(&named());
        resources.service(&describe::service(NAMED, NAMED_VIP, [(80, 8080)]));
        resources.policy(&describe::deny("demo", "no-strangers", &[&principal("stranger")]));
    });
    istiod.ca().faults(|faults| {
        let refusal = (grpc::UNAVAILABLE, "nobody".to_owned());
        faults.refuse.insert(mesh.pod("nobody").spiffe(), refusal);
    });
    mesh.nodes().for_each(|node| node.launch().unwrap());
    mesh.nodes().for_each(|node| node.wait_ready(PATIENCE).unwrap());
    istiod.ads().wait_settled(mesh.nodes().count(), PATIENCE).unwrap();
    (mesh, istiod)
}

/// A workload without an address: its host name is looked up, and leads nowhere.
fn named() -> Workload {
    let port = Port { service_port: 80, target_port: 8080, ..Port::default() };
    Workload {
        uid: describe::uid("demo", "named"),
        name: "named".to_owned(),
        namespace: "demo".to_owned(),
        hostname: "named.example".to_owned(),
        services: HashMap::from([(format!("demo/{NAMED}"), PortList { ports: vec![port] })]),
        ..Workload::default()
    }
}

/// One connection from each pod, and two names. What comes of it is for the metrics to say.
fn connect(mesh: &Mesh) {
    for (from, to) in [("client", "near"), ("client", "far"), ("stranger", "far"), ("nobody", "far")] {
        drop(mesh.pod(from).dial(mesh.pod(to).addr(8080)).and_then(|conn| conn.ask(b"hello")));
    }
    drop(mesh.pod("client").dial((NAMED_VIP, 80).into()).and_then(|conn| conn.ask(b"hello")));
    for name in ["host.example", "nx.example"] {
        drop(resolve(mesh.pod("client"), name));
    }
}

/// Asks for the address of a name, which the mesh does not know, and waits for whatever comes back (RFC 1035, section 4).
fn resolve(pod: &Pod, name: &str) -> io::Result<usize> {
    let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend(b"\0\0\x01\0\x01");
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    // Captured, whomever it is for.
    socket.send_to(&query, "192.0.2.53:53")?;
    socket.recv(&mut [0; 512])
}

/// The rules with windows and waits of seconds.
fn hurried(rules: &str) -> String {
    let shorter = rules.replace("[5m]", "[6s]").replace("[10m]", "[6s]");
    assert!(!shorter.contains("m]"), "a window that nobody shortens");
    let lines = shorter.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// A query as Grafana would send it with everything selected.
fn filled(expression: &str) -> String {
    expression.replace("$__rate_interval", WINDOW).replace("$instance", ".*").replace("$namespace", ".*")
}

/// Every sample of every node is in the table of families, with these labels. Gives the names that were seen.
fn exposed(mesh: &Mesh) -> BTreeSet<String> {
    let families = families::all();
    let mut seen = BTreeSet::new();
    for node in mesh.nodes() {
        for sample in node.metrics().unwrap().samples {
            let labels = families.get(&sample.name);
            let found: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
            let as_listed = labels.is_some_and(|labels| found.is_subset(labels));
            assert!(as_listed, "{}: {found:?} instead of {labels:?}", sample.name);
            seen.insert(sample.name);
        }
    }
    seen
}

/// Promtool reads the classic text form, in which counters are named as their samples are: the names that OpenMetrics and
/// Istio want are all that it may complain about.
fn acceptable(complaint: &str) -> bool {
    complaint.ends_with("_total no help text")
        || complaint.starts_with("workload_manager_")
            && complaint.ends_with("should not have \"_count\" suffix")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_panel_has_data_and_the_alerts_fire_that_should() {
    promtool(&["check", "rules", &deploy::path("prometheus-rules.yaml").to_string_lossy()]).unwrap();
    promtool(&["test", "rules", &deploy::path("prometheus-rules-test.yaml").to_string_lossy()]).unwrap();
    let (mesh, istiod) = world();
    let _servers = ["near", "far"].map(|pod| Server::echo(mesh.pod(pod), 8080).unwrap());
    let _resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    let rules = hurried(&deploy::text("prometheus-rules.yaml").unwrap());
    let prometheus = Prometheus::start(&mesh, mesh.node("n1"), &rules).unwrap();
    let held: Vec<Conn> =
        (0..HELD).map(|_| mesh.pod("client").dial(mesh.pod("near").addr(8080)).unwrap()).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                connect(&mesh);
                held.first().map(|conn| conn.ask(b"hello"));
                thread::sleep(Duration::from_millis(50));
            }
        });
        // A failed assertion must not leave the clients running, for which the scope would wait.
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch(&mesh, &istiod, &prometheus)));
        stop.store(true, Ordering::Release);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    drop((held, prometheus));
    mesh.stop().unwrap();
}

fn watch(mesh: &Mesh, istiod: &Istiod, prometheus: &Prometheus) {
    let firing = |expected: &[&str]| {
        wait::ok(&format!("the alerts {expected:?}"), SOON, || {
            let firing = prometheus.firing()?;
            anyhow::ensure!(firing == expected, "firing: {firing:?}");
            Ok(())
        })
        .unwrap();
    };
    let mut expected = vec![
        "ZtunnelConnectionsDenied",
        "ZtunnelConnectionsFailing",
        "ZtunnelDnsUpstreamFailing",
        "ZtunnelFastPathMapFull",
        "ZtunnelIdentityMissing",
    ];
    firing(&expected);
    istiod.pause();
    mesh.node("n2").agent().pause();
    expected.extend(["ZtunnelNotReady", "ZtunnelXdsDisconnected"]);
    firing(&expected);
    assert_eq!(prometheus.broken_rules().unwrap(), Vec::<String>::new());

    let mut missing: BTreeMap<String, String> = deploy::dashboard_queries(&deploy::dashboard().unwrap())
        .unwrap()
        .into_iter()
        .map(|query| (filled(&query.expression), query.place))
        .collect();
    let data = wait::until("data for every panel", SOON, || {
        missing.retain(|expression, _| {
            let series = prometheus.query(expression).unwrap();
            !series.iter().any(|series| series.value.is_finite())
        });
        missing.is_empty()
    });
    assert!(data.is_ok(), "{data:?}: {missing:#?}");

    let denied = prometheus
        .query("sum by (source_workload) (istio_tcp_connections_failed_total{response_flags=\"DENY\"})");
    let denied = denied.unwrap();
    let who: Vec<&str> = denied.iter().map(|series| series.label("source_workload")).collect();
    assert_eq!(who, ["stranger"]);

    let seen = exposed(mesh);
    let unseen: Vec<String> = families::all().into_keys().filter(|name| !seen.contains(name)).collect();
    assert_eq!(unseen, Vec::<String>::new());
    for node in mesh.nodes() {
        let page = node.get(STATS, "/metrics").unwrap().body;
        let complaints = ztunnel_tests::prometheus::lint(&page).unwrap();
        let unexpected: Vec<&str> = complaints.lines().filter(|line| !acceptable(line)).collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }
}
