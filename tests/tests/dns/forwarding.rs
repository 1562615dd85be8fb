// SPDX-License-Identifier: Apache-2.0
//! What the mesh does not know: forwarded as it came, to resolvers that lose, refuse, are slow or dead.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_core::dns::{kind, wire};
use ztunnel_tests::Mesh;
use ztunnel_tests::resolver::{Resolver, Transport, framed};

use super::ask::{By, KUBE_DNS, addresses, ask, look_up, question, read};
use super::mesh;

/// What is answered at once takes less.
const AT_ONCE: Duration = Duration::from_millis(800);

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_resolver_is_asked_as_the_client_asked_and_believed_with_care() {
    let mesh = mesh().start().unwrap();
    let resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    as_sent(&mesh, &resolver).unwrap();
    awkward(&mesh, &resolver).unwrap();
    pipelined(&mesh).unwrap();
    from_inside_the_pod(&mesh, &resolver).unwrap();
    mesh.stop().unwrap();
}

/// Whatever it is, the resolver gets every byte but the id.
fn as_sent(mesh: &Mesh, resolver: &Resolver) -> Result<()> {
    let plain = question("A www.bing.com");
    // EDNS with a cookie and an option that nobody knows (RFC 7873), the flags AD and CD, mixed case.
    let mut rich = question("A wWw.BiNg.cOm");
    rich[3] = 0x30;
    rich[11] = 1;
    rich.extend(b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x14\x00\x0a\x00\x08cookies!\xfd\xe9\x00\x04\xde\xad\xbe\xef");
    let mut update = question("SOA example");
    update[2] = 0x28;
    update[9] = 1;
    update.extend(b"\x04host\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x07");
    let mut notify = question("SOA example");
    notify[2] = 0x24;
    let mut unknown = question("A example");
    unknown[2] = 0x78;
    unknown.extend(b"anything at all");
    let mut kind_of_its_own = question("A host.example");
    let at = kind_of_its_own.len() - 4;
    kind_of_its_own[at..at + 2].copy_from_slice(&65_400_u16.to_be_bytes());
    for message in [plain, rich, update, notify, unknown, kind_of_its_own] {
        for by in [By::Udp, By::Tcp] {
            resolver.forget();
            let answer = ask(mesh.pod("client"), KUBE_DNS, by, &message)?;
            ensure!(answer[..2] == message[..2], "another id: {answer:?}");
            let received = resolver.received();
            ensure!(received.len() == 1, "{} messages arrived", received.len());
            ensure!(
                received[0].message[2..] == message[2..],
                "changed: {message:?}, {:?}",
                received[0].message
            );
        }
    }
    Ok(())
}

/// Resolvers as they are.
fn awkward(mesh: &Mesh, resolver: &Resolver) -> Result<()> {
    let client = mesh.pod("client");
    for (name, by, expected) in [
        ("A lossy-1.example", By::Udp, "192.0.2.1"),
        ("A lossy-2.example", By::Tcp, "192.0.2.1"),
        ("A late.example", By::Udp, "192.0.2.1"),
        ("A slow.example", By::Udp, "192.0.2.1"),
        ("A nx.example", By::Udp, "NXDOMAIN"),
        ("A fail.example", By::Udp, "SERVFAIL"),
        ("A fail.example", By::Tcp, "SERVFAIL"),
        ("A spoof.example", By::Udp, "192.0.2.1"),
    ] {
        ensure!(look_up(client, by, name)? == expected, "{name} by {by:?}");
    }
    let nx = ask(client, KUBE_DNS, By::Udp, &question("A nx.example"))?;
    ensure!(
        wire::Records::of(&nx)?.next()?.is_some_and(|soa| soa.kind == kind::SOA),
        "without its SOA: {nx:?}"
    );
    // There is more: a client of datagrams is told so, one of connections gets it.
    let short = ask(client, KUBE_DNS, By::Udp, &question("A long.example"))?;
    ensure!(wire::Header::parse(&short).is_some_and(wire::Header::is_truncated));
    let long = ask(client, KUBE_DNS, By::Tcp, &question("A long.example"))?;
    ensure!(wire::addresses(&long, kind::A)?.len() == 100);
    // A resolver that sends more than the client takes.
    let rude = ask(client, KUBE_DNS, By::Udp, &question("A rude.example"))?;
    ensure!(rude.len() <= 512 && wire::Header::parse(&rude).is_some_and(wire::Header::is_truncated));
    // A zone does not fit into one message.
    let mut transfer = question("A example");
    let at = transfer.len() - 3;
    transfer[at] = 252;
    resolver.forget();
    ensure!(addresses(&ask(client, KUBE_DNS, By::Tcp, &transfer)?, kind::A)? == "REFUSED");
    ensure!(resolver.received().is_empty(), "a transfer was forwarded");
    Ok(())
}

/// Many queries in one connection; nobody waits for a slow one.
fn pipelined(mesh: &Mesh) -> Result<()> {
    let mut stream = mesh.pod("client").connect(KUBE_DNS.parse()?)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let names = ["A slow-3.example", "A www.bing.com", "A productpage."];
    let mut all = Vec::new();
    for (number, name) in (0_u8..).zip(names) {
        let mut message = question(name);
        message[1] = number;
        all.extend(framed(&message));
    }
    // In pieces that end in the middle of lengths and messages.
    for piece in all.chunks(7) {
        stream.write_all(piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let order: Vec<u8> = (0..3).map(|_| read(&mut stream).map(|answer| answer[1])).collect::<Result<_>>()?;
    ensure!(order.last() == Some(&0), "the slow one must not hold up the others: {order:?}");
    ensure!(read(&mut stream).is_err(), "the connection ends when all is said");
    // A client that says nothing, or half a message, is not waited for.
    let mut idle = mesh.pod("client").connect(KUBE_DNS.parse()?)?;
    idle.set_read_timeout(Some(Duration::from_secs(10)))?;
    idle.write_all(&[0])?;
    let start = Instant::now();
    ensure!(std::io::Read::read(&mut idle, &mut [0])? == 0);
    ensure!(start.elapsed() > Duration::from_secs(4), "after {:?}", start.elapsed());
    Ok(())
}

/// From the pod's own address, and from another port with another id every time.
fn from_inside_the_pod(mesh: &Mesh, resolver: &Resolver) -> Result<()> {
    resolver.forget();
    for _ in 0..40 {
        look_up(mesh.pod("client"), By::Udp, "A www.bing.com")?;
    }
    let received = resolver.received();
    ensure!(
        received.iter().all(|it| it.transport == Transport::Udp && it.from.ip() == mesh.pod("client").ip4())
    );
    let mut ports: Vec<u16> = received.iter().map(|it| it.from.port()).collect();
    let mut ids: Vec<&[u8]> = received.iter().map(|it| &it.message[..2]).collect();
    for count in [different(&mut ports), different(&mut ids)] {
        ensure!(count > 35, "only {count} of 40 differ");
    }
    Ok(())
}

fn different<T: Ord>(all: &mut Vec<T>) -> usize {
    all.sort();
    all.dedup();
    all.len()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_dead_resolver_costs_one_second_once() {
    let mesh = mesh().dns(&["resolver", "second"]).start().unwrap();
    // The first one does not even refuse: its pod swallows what comes.
    mesh.pod("resolver")
        .netns()
        .feed("iptables-restore", &["--noflush"], "*filter\n-A INPUT -p udp -j DROP\nCOMMIT\n")
        .unwrap();
    let second = Resolver::start(mesh.pod("second")).unwrap();
    let client = mesh.pod("client");
    let timed = |name: &str| -> Result<(String, Duration)> {
        let start = Instant::now();
        let found = look_up(client, By::Udp, name)?;
        Ok((found, start.elapsed()))
    };
    let (found, took) = timed("A a.example").unwrap();
    assert!(
        found == "192.0.2.1" && took > AT_ONCE && took < Duration::from_secs(3),
        "{found} after {took:?}"
    );
    let (found, took) = timed("A b.example").unwrap();
    assert!(found == "192.0.2.1" && took < AT_ONCE, "the one that answers is asked first: {took:?}");
    // It fails for one name; the other one is dead: its word is what there is.
    let (found, _) = timed("A fail.example").unwrap();
    assert_eq!(found, "SERVFAIL");
    drop(second);
    // Now nobody is left: one refuses, the other swallows. The mesh is answered all the same.
    let start = Instant::now();
    assert_eq!(look_up(client, By::Udp, "A productpage.").unwrap(), "9.9.9.9");
    assert!(start.elapsed() < AT_ONCE);
    let (found, took) = timed("A c.example").context("nobody").unwrap();
    assert!(found == "SERVFAIL" && took < Duration::from_secs(12), "{found} after {took:?}");
    let failures = mesh.node("n1").metrics().unwrap().sum("istio_dns_upstream_failures_total", &[]);
    assert!((failures - 2.0).abs() < 0.5, "{failures} failures, not 2");
    mesh.stop().unwrap();
}
