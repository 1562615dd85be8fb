// SPDX-License-Identifier: Apache-2.0
//! What a scrape costs on a busy node: time, size, and what the traffic notices of one each second.
//!
//! `ZTUNNEL_TESTS_LABEL_SETS=20000` is 1,000 workloads with 20 peers each.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::print_stderr, reason = "figures beside the result")]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_core::xds::proto::workload::{TunnelProtocol, Workload};
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::node::{PATIENCE, STATS};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Node, PodSpec, times, wait};

const SOON: Duration = Duration::from_secs(60);
/// Sources; each talks to as many destinations as it takes.
const CLIENTS: u32 = 10;
/// Where the traffic is looked at, with scrapes and without, in turn.
const ROUNDS: usize = 3;
/// Scrapes that nobody reads to the end.
const NEGLECTED: usize = 32;

/// A destination that exists on paper: all of them are one pod.
fn on_paper(place: u32, count: u32) -> Workload {
    let hbone = describe::crowd_member(place, count);
    Workload { tunnel_protocol: TunnelProtocol::None.into(), services: HashMap::new(), ..hbone }
}

fn address(place: u32) -> Ipv4Addr {
    let [_, high, mid, low] = place.to_be_bytes();
    Ipv4Addr::new(11, high, mid, low)
}

/// Clients on one node, and `count` destinations behind one pod of another.
fn world(count: u32) -> (Mesh, Istiod) {
    let mut builder = Mesh::builder()
        .pod(PodSpec::mesh("client"))
        .pod(PodSpec::mesh("server"))
        .pod(PodSpec::unknown("crowd").on("n2"));
    for client in 0..CLIENTS {
        builder = builder.pod(PodSpec::mesh(&format!("client-{client}")));
    }
    let mesh = builder.build().unwrap();
    let (near, far, crowd) = (mesh.node("n1"), mesh.node("n2"), mesh.pod("crowd"));
    near.netns().ip(&format!("route add 11.0.0.0/8 via {}\n", far.ip4())).unwrap();
    far.netns().ip(&format!("route add 11.0.0.0/8 via {}\n", crowd.ip4())).unwrap();
    crowd.netns().ip("route add local 11.0.0.0/8 dev lo\n").unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.configure(&mesh);
    istiod.ads().update(|resources| {
        describe::mesh(&mesh, resources);
        (0..count).for_each(|place| resources.workload(&on_paper(place, count)));
    });
    near.start().unwrap();
    istiod.ads().wait_settled(1, PATIENCE).unwrap();
    (mesh, istiod)
}

/// Connects every client to every destination once.
fn fill(mesh: &Mesh, count: u32) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let pod = mesh.pod(&format!("client-{client}"));
            scope.spawn(move || {
                pod.run(|| {
                    for place in 0..count {
                        let to = SocketAddr::from((address(place), 8080));
                        let mut stream = TcpStream::connect_timeout(&to, SOON).unwrap();
                        stream.set_read_timeout(Some(SOON)).unwrap();
                        stream.write_all(b"hello").unwrap();
                        stream.read_exact(&mut [0; 5]).unwrap();
                    }
                });
            });
        }
    });
}

/// One scrape.
#[derive(Debug, Clone, Copy)]
struct Scrape {
    /// From before the connect to the last byte.
    took: Duration,
    bytes: usize,
}

/// A question whose answer nobody has read.
fn request(node: &Node, encoding: &str) -> TcpStream {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, STATS));
    let mut stream = node.netns().run(|| TcpStream::connect_timeout(&at, SOON)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept-Encoding: {encoding}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Reads into `page`, which had better be large from the scrape before: a buffer that grows to a large exposition costs
/// the reader more than the server, and Prometheus uses its own again.
fn scrape(node: &Node, encoding: &str, page: &mut Vec<u8>) -> Scrape {
    page.clear();
    let started = Instant::now();
    let mut stream = request(node, encoding);
    stream.read_to_end(page).unwrap();
    let took = started.elapsed();
    assert!(page.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&page[..page.len().min(200)]));
    Scrape { took, bytes: page.len() }
}

/// Prints size and time of several scrapes; gives the middle one's time.
fn measure(node: &Node, what: &str, encoding: &str, page: &mut Vec<u8>) -> Duration {
    let mut all: Vec<Scrape> =
        (0..times("ZTUNNEL_TESTS_SCRAPES", 9)).map(|_| scrape(node, encoding, page)).collect();
    all.sort_by_key(|scrape| scrape.took);
    let (best, middle) = (all[0].took, all[all.len() / 2].took);
    eprintln!("scrape, {what}: {} KiB in {middle:?} (fastest {best:?})", all[0].bytes >> 10);
    middle
}

/// What readers cost that stop in the middle of a page of so many bytes, when all label sets are made.
fn neglect(node: &Node, page: usize) {
    let resident = || node.memory().unwrap().resident;
    let before = resident();
    let mut part = vec![0; page / 2];
    let ask = || {
        let mut stream = request(node, "identity");
        stream.read_exact(&mut part).unwrap();
        stream
    };
    let asked: Vec<TcpStream> = std::iter::repeat_with(ask).take(NEGLECTED).collect();
    let (mut last, mut now) = (0, before);
    wait::until("all of them to be stuck", SOON, || {
        (last, now) = (now, resident());
        last == now
    })
    .unwrap();
    let grown = now.saturating_sub(before) >> 20;
    eprintln!("{NEGLECTED} scrapes that nobody reads to the end: {grown} MiB");
    // The text of the label sets is about a quarter of an answer. All of them must not keep it.
    let chunks = 2 * NEGLECTED as u64;
    assert!(grown < chunks + 5 * (page as u64 >> 22), "{grown} MiB");
    drop(asked);
}

/// Latencies of exchanges on an open connection, for this long.
fn exchange(conn: &Conn, span: Duration) -> Vec<Duration> {
    let started = Instant::now();
    let mut all = Vec::new();
    while started.elapsed() < span {
        let before = Instant::now();
        conn.ask(&[7; 64]).unwrap();
        all.push(before.elapsed());
    }
    all
}

/// Prints the quantiles; gives the 99th percentile.
fn quantiles(what: &str, mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    let at = |per_mille: usize| all[(all.len() - 1) * per_mille / 1000];
    let (p50, p99, p999) = (at(500), at(990), at(999));
    eprintln!("64 B request/response, {what}: p50 {p50:?}, p99 {p99:?}, p99.9 {p999:?} of {}", all.len());
    p99
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_scrape_of_many_label_sets_is_quick_and_the_traffic_does_not_notice() {
    let sets = u32::try_from(times("ZTUNNEL_TESTS_LABEL_SETS", 1_000)).unwrap();
    let span = Duration::from_secs(times("ZTUNNEL_TESTS_SCRAPE_SECONDS", 2));
    let count = sets / CLIENTS;
    let (mesh, _istiod) = world(count);
    let node = mesh.node("n1");
    let _crowd = Server::echo(mesh.pod("crowd"), 8080).unwrap();
    fill(&mesh, count);
    let mut page = Vec::new();
    wait::until("a series for every pair", SOON, || {
        scrape(node, "identity", &mut page);
        let opened = String::from_utf8_lossy(&page).matches("\nistio_tcp_connections_opened_total{").count();
        opened == usize::try_from(count * CLIENTS).unwrap()
    })
    .unwrap();
    eprintln!("{} label sets, resident {} MiB", count * CLIENTS, node.memory().unwrap().resident >> 20);
    neglect(node, page.len());
    let plain = measure(node, "plain", "identity", &mut page);
    let packed = measure(node, "gzip", "gzip", &mut page);
    // Far below a scrape timeout, whatever else the machine does.
    assert!(plain.max(packed) < Duration::from_secs(2), "{plain:?}, {packed:?}");
    let _server = Server::echo(mesh.pod("server"), 8080).unwrap();
    let conn = mesh.pod("client").dial(mesh.pod("server").addr(8080)).unwrap();
    let (mut alone, mut scraped) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.extend(exchange(&conn, span));
        thread::scope(|scope| {
            let scraper = scope.spawn(|| {
                let started = Instant::now();
                let mut next = started;
                while started.elapsed() < span {
                    scrape(node, "gzip", &mut page);
                    next += Duration::from_secs(1);
                    thread::sleep(next.min(started + span).saturating_duration_since(Instant::now()));
                }
            });
            scraped.extend(exchange(&conn, span));
            scraper.join().unwrap();
        });
    }
    let alone = quantiles("alone", alone);
    let scraped = quantiles("scraped each second", scraped);
    // A scrape that kept the workers from their work would hold up a twentieth of these exchanges.
    assert!(scraped < alone * 10 + Duration::from_millis(10), "{scraped:?} instead of {alone:?}");
    mesh.stop().unwrap();
}
