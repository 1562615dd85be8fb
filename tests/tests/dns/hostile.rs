// SPDX-License-Identifier: Apache-2.0
//! What a pod or a resolver may send, and what must not come of it.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ztunnel_core::dns::wire::{self, Header};
use ztunnel_tests::resolver::{Resolver, framed};
use ztunnel_tests::{Mesh, Pod, wait};

use super::ask::{By, KUBE_DNS, ask, look_up, question, receive, socket};
use super::mesh;

const SOON: Duration = Duration::from_secs(15);
/// What one pod may have waiting (`docs/dns.md`).
const WAITING: usize = 512;
/// And how many connections.
const CONNECTIONS: usize = 256;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nothing_that_a_pod_or_a_resolver_sends_hurts_anybody() {
    let mesh = mesh().env("RUST_LOG", "info").start().unwrap();
    let resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    malformed(&mesh).unwrap();
    ten_thousand(&mesh, &resolver).unwrap();
    many_connections(&mesh).unwrap();
    let node = mesh.node("n1");
    assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
    mesh.stop().unwrap();
}

/// Every prefix of a query, and every byte of it changed: an answer, a refusal, or nothing; then all is as before.
fn malformed(mesh: &Mesh) -> Result<()> {
    let client = mesh.pod("client");
    let whole = question("A www.google.com.ns1.svc.cluster.local");
    let to = socket(client, KUBE_DNS.parse()?)?;
    let mut sent = 0;
    let mut send = |message: &[u8]| -> Result<()> {
        to.send(message)?;
        sent += 1;
        // Not faster than the socket's buffer.
        if sent % 100 == 0 { look_up(client, By::Udp, "A productpage.").map(drop) } else { Ok(()) }
    };
    for length in 0..whole.len() {
        send(&whole[..length])?;
    }
    for at in 0..whole.len() {
        for byte in [0x00, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
            let mut message = whole.clone();
            message[at] = byte;
            send(&message)?;
        }
    }
    for size in [4096, 60_000] {
        send(&vec![0xff; size])?;
        send(&[&whole[..], &vec![0; size]].concat())?;
    }
    for (message, rcode) in
        [(&whole[..whole.len() - 1], 1), (&[&whole[..4], &[0, 2], &whole[6..]].concat(), 2)]
    {
        let answer = ask(client, KUBE_DNS, By::Udp, message)?;
        ensure!(Header::parse(&answer).map(Header::rcode) == Some(rcode), "{answer:?}");
        let answer = ask(client, KUBE_DNS, By::Tcp, message)?;
        ensure!(Header::parse(&answer).map(Header::rcode) == Some(rcode), "{answer:?}");
    }
    // A connection that talks nonsense ends; a response is no query.
    let mut response = whole.clone();
    response[2] |= 0x80;
    for nonsense in [&framed(&response)[..], b"\x00\x05hello", b"\x00\x00"] {
        let mut stream = client.connect(KUBE_DNS.parse()?)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(nonsense)?;
        ensure!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "an answer to {nonsense:?}");
    }
    ensure!(look_up(client, By::Udp, "A productpage.")? == "9.9.9.9");
    ensure!(look_up(client, By::Tcp, "A productpage.")? == "9.9.9.9");
    Ok(())
}

/// Queries that nobody answers are bounded; others, and what the mesh knows, do not notice.
fn ten_thousand(mesh: &Mesh, resolver: &Resolver) -> Result<()> {
    let (client, neighbor, node) = (mesh.pod("client"), mesh.pod("neighbor"), mesh.node("n1"));
    let before = (node.open_files()?, node.memory()?.resident);
    let sockets: Vec<UdpSocket> = (0..8).map(|_| socket(client, KUBE_DNS.parse()?)).collect::<Result<_>>()?;
    resolver.forget();
    let mut slowest = Duration::ZERO;
    for number in 0..10_000_usize {
        sockets[number % sockets.len()].send(&question(&format!("A dead-{number}.example")))?;
        if number % 250 == 0 {
            slowest = slowest.max(prompt(neighbor, "A www.bing.com")?).max(prompt(client, "A productpage.")?);
        }
    }
    let during = node.open_files()?;
    ensure!(during <= before.0 + WAITING + 100, "{during} files are open, after {before:?}");
    let asked = resolver.received().iter().filter(|it| it.message[13..].starts_with(b"dead-")).count();
    ensure!(asked > WAITING / 2 && asked <= 4 * WAITING, "{asked} of 10000 queries were forwarded");
    // The others were told at once.
    ensure!(Header::parse(&receive(&sockets[0])?).map(Header::rcode) == Some(2));
    ensure!(slowest < Duration::from_millis(500), "others waited {slowest:?}");
    wait::until("everything to be given up", SOON, || {
        node.open_files().is_ok_and(|now| now <= before.0 + 20)
    })?;
    let grown = node.memory()?.resident.saturating_sub(before.1);
    ensure!(grown < 24 << 20, "{} KiB more than before", grown >> 10);
    eprintln!("slowest answer to others {slowest:?}, {asked} forwarded, {} KiB more", grown >> 10);
    ensure!(look_up(client, By::Udp, "A www.bing.com")? == "192.0.2.1");
    Ok(())
}

fn prompt(pod: &Pod, name: &str) -> Result<Duration> {
    let start = Instant::now();
    look_up(pod, By::Udp, name)?;
    Ok(start.elapsed())
}

/// Connections are bounded, those over the bound end at once, and a client that does not read is not waited for.
fn many_connections(mesh: &Mesh) -> Result<()> {
    let client = mesh.pod("client");
    let mut open = (0..CONNECTIONS + 50)
        .map(|_| Ok(client.connect(KUBE_DNS.parse()?)?))
        .collect::<Result<Vec<std::net::TcpStream>>>()?;
    let mut ended = 0;
    for stream in open.iter_mut().rev().take(50) {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        ended += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
    }
    ensure!(ended >= 45, "only {ended} of 50 connections over the bound ended");
    ensure!(look_up(mesh.pod("neighbor"), By::Tcp, "A productpage.")? == "9.9.9.9");
    drop(open);
    let answered = wait::until("room for a connection", SOON, || {
        look_up(client, By::Tcp, "A productpage.").is_ok_and(|found| found == "9.9.9.9")
    });
    answered?;
    let mut deaf = client.connect(KUBE_DNS.parse()?)?;
    deaf.set_write_timeout(Some(SOON))?;
    let query = framed(&wire::question("many.ns1.svc.cluster.local", 1, 1).unwrap_or_default());
    let flood = query.repeat(4096);
    let start = Instant::now();
    let gave_up = (0..10_000).any(|_| deaf.write_all(&flood).is_err());
    ensure!(
        gave_up && start.elapsed() < SOON,
        "a client that never reads was served for {:?}",
        start.elapsed()
    );
    Ok(())
}
