// SPDX-License-Identifier: Apache-2.0
//! The contract's table (data-plane contract, section 5.6) through real sockets.

use anyhow::{Result, ensure};
use ztunnel_core::dns::{kind, wire};
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, in_every_mode};

use super::ask::{By, KUBE_DNS, KUBE_DNS6, addresses, ask, look_up, question};
use super::{SERVER, mesh};

/// `192.0.2.1` is what the resolver says: forwarded.
const TABLE: &[(&str, &str)] = &[
    ("A www.google.com", "1.1.1.1"),
    ("A www.google.com.ns1.svc.cluster.local.", "1.1.1.1"),
    ("A www.bing.com", "192.0.2.1"),
    ("A productpage.ns1.svc.cluster.local.", "9.9.9.9"),
    ("A productpage.ns1.", "9.9.9.9"),
    ("A productpage.", "9.9.9.9"),
    ("A productpage.ns1.ns1.svc.cluster.local.", "9.9.9.9"),
    ("AAAA productpage.ns1.ns1.svc.cluster.local.", "nothing"),
    ("A example.ns2.", "10.10.10.10"),
    ("A example.ns2.svc.", "10.10.10.10"),
    ("A example.ns2.svc.cluster.local.", "10.10.10.10"),
    ("A example.", "192.0.2.1"),
    ("A nslocal.ns2.svc.cluster.local.", "192.0.2.1"),
    ("A nslocalsame.ns1.svc.cluster.local.", "10.10.10.12"),
    ("A details.ns2.svc.cluster.remote.", "11.11.11.11 12.12.12.12 13.13.13.13 14.14.14.14"),
    ("A details.ns2.", "192.0.2.1"),
    ("A dual.localhost.", "2.2.2.2"),
    ("AAAA dual.localhost.", "2001:db8::2"),
    ("A v6.localhost.", "nothing"),
    ("AAAA v4.localhost.", "nothing"),
    ("A foo.wildcard.", "3.3.3.3"),
    ("A a.b.wildcard.", "3.3.3.4"),
    ("A foo.foons.svc.mesh.company.net.", "5.5.5.5"),
    ("A foo.foons.svc.mesh.company.net.ns1.svc.cluster.local.", "5.5.5.5"),
    ("A elsewhere.example.", "nothing"),
    ("A both.example.", "7.7.7.7"),
    ("A headless.ns1.svc.cluster.local.", "10.70.1.2 10.70.2.2"),
    ("AAAA headless.ns1.svc.cluster.local.", "fd70:0:0:1::2 fd70:0:0:2::2"),
    ("A headless6.ns1.svc.cluster.local.", "nothing"),
    ("AAAA headless6.ns1.svc.cluster.local.", "fd70:0:0:1::2"),
    ("A headless.client.ns1.svc.cluster.local.", "192.0.2.1"),
    ("A bare.example.", "192.0.2.1"),
    ("A lone.example.", "192.0.2.1"),
    ("A preferred.io.", "8.0.0.2"),
    ("A own.io.", "8.0.0.4"),
    ("A canonical.io.", "8.0.0.6"),
    ("A owned.io.", "8.0.0.8"),
    ("AAAA www.bing.com.", "2001:db8::1"),
];

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_contracts_table_over_udp_and_tcp_in_both_families() {
    in_every_mode(mesh, |mesh| {
        let _resolver = Resolver::start(mesh.pod("resolver"))?;
        for (row, expected) in TABLE {
            for by in [By::Udp, By::Tcp] {
                let found = look_up(mesh.pod("client"), by, row)?;
                ensure!(found == *expected, "{row} by {by:?}: {found}, not {expected}");
            }
        }
        for by in [By::Udp, By::Tcp] {
            let answer = ask(mesh.pod("client"), KUBE_DNS6, by, &question("A productpage."))?;
            ensure!(addresses(&answer, kind::A)? == "9.9.9.9", "by {by:?} over IPv6");
        }
        details(mesh)?;
        counted(mesh)?;
        followed(mesh)
    })
    .unwrap();
}

/// Header bits, records and sections.
fn details(mesh: &Mesh) -> Result<()> {
    let client = mesh.pod("client");
    let header = |text: &str| -> Result<(wire::Header, Vec<u8>)> {
        let answer = ask(client, KUBE_DNS, By::Udp, &question(text))?;
        Ok((wire::Records::of(&answer)?.header, answer))
    };
    let authoritative = |header: wire::Header| header.flags & 0x04 != 0;
    let (known, _) = header("A productpage.")?;
    ensure!(authoritative(known) && known.counts == [1, 1, 0, 0], "{known:?}");
    let (empty, answer) = header("AAAA v4.localhost.")?;
    let soa = wire::Records::of(&answer)?.next()?;
    ensure!(authoritative(empty) && empty.counts == [1, 0, 1, 0], "{empty:?}");
    ensure!(soa.is_some_and(|soa| soa.kind == kind::SOA), "{soa:?}");
    let (alias, answer) = header("A www.google.com.ns1.svc.cluster.local.")?;
    ensure!(alias.counts == [1, 2, 0, 0], "{alias:?}");
    ensure!(
        wire::Records::of(&answer)?.next()?.is_some_and(|first| first.kind == kind::CNAME && first.ttl == 30)
    );
    // Every section of the resolver's answer, each record where it was.
    for (text, data) in [
        ("A www.bing.com", 4),
        ("SRV _http._tcp.headless.ns1.svc.cluster.local", 20),
        ("NS productpage.ns1", 4),
    ] {
        let (forwarded, answer) = header(text)?;
        ensure!(!authoritative(forwarded) && forwarded.counts == [1, 1, 1, 1], "{text}: {forwarded:?}");
        let first = wire::Records::of(&answer)?.next()?;
        ensure!(first.is_some_and(|record| record.data.len() == data), "{text}: {first:?}");
    }
    Ok(())
}

/// Metrics and log lines.
fn counted(mesh: &Mesh) -> Result<()> {
    let metrics = mesh.node("n1").metrics()?;
    let source = [("source_canonical_service", "client"), ("source_canonical_revision", "v1")];
    for (name, kind, protocol, count) in [
        ("istio_dns_requests_total", "srv", "udp", 1.0),
        ("istio_dns_upstream_requests_total", "srv", "udp", 1.0),
        ("istio_dns_upstream_requests_total", "aaaa", "tcp", 1.0),
        ("istio_dns_upstream_failures_total", "a", "udp", 0.0),
        ("istio_dns_upstream_request_duration_seconds_count", "ns", "udp", 1.0),
    ] {
        let labels = [&source[..], &[("request_query_type", kind), ("request_protocol", protocol)]].concat();
        let found = metrics.sum(name, &labels);
        ensure!((found - count).abs() < 0.5, "{name} {labels:?}: {found}, not {count}");
    }
    let log = mesh.node("n1").stdout();
    for line in [
        "debug\tdns\t\tsrc.workload=client src.namespace=ns1 query=A domain=dual.localhost. result=\"success\" endpoints=1",
        "query=A domain=www.bing.com. result=\"forwarded\" endpoints=1",
        "query=A domain=headless6.ns1.svc.cluster.local. result=\"service does not support this record type\" endpoints=0",
        "query=AAAA domain=v4.localhost. result=\"no records\" endpoints=0",
    ] {
        ensure!(log.contains(line), "not in the log: {line}\n{log}");
    }
    Ok(())
}

/// What is answered leads somewhere.
fn followed(mesh: &Mesh) -> Result<()> {
    let server = Server::echo(mesh.pod("server"), 8080)?;
    let vip = look_up(mesh.pod("client"), By::Udp, &format!("A {SERVER}"))?;
    ensure!(vip == mesh.vip(SERVER).to_string(), "{vip}");
    let answer = mesh.pod("client").dial(format!("{vip}:80").parse()?)?.ask(b"hello")?;
    ensure!(answer == b"hello" && server.peers().len() == 1);
    Ok(())
}
