// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy as tables: the conformance table of the data-plane contract (section 5.6), messages byte by byte, and
//! messages of any shape.

use std::net::IpAddr;

use proptest::prelude::*;

use super::wire::{self, HEADER, Header, MAX_MESSAGE, Unanswerable};
use super::{Answer, Client, Query, Records, Settings, answer, kind, respond, search_domains};
use crate::mesh::{Mesh, local};

const MESH: &str = "
workloads:
- {uid: pod0, name: pod0, namespace: ns1, workloadIps: [10.0.0.1, 'fd00::1'],
   services: {ns1/headless.ns1.svc.cluster.local: {}, ns1/headless6.ns1.svc.cluster.local: {}, ns1/bare.example: {}}}
- {uid: pod1, name: pod1, namespace: ns1, workloadIps: ['fd00::2', 10.0.0.2, 10.0.0.22],
   services: {ns1/headless.ns1.svc.cluster.local: {}, ns1/headless6.ns1.svc.cluster.local: {}}}
services:
- {name: productpage, namespace: ns1, hostname: productpage.ns1.svc.cluster.local, vips: [/9.9.9.9], ports: {80: 80}}
- {name: example, namespace: ns2, hostname: example.ns2.svc.cluster.local, vips: [/10.10.10.10], ports: {}}
- {name: nslocal, namespace: ns2, hostname: nslocal.ns2.svc.cluster.local, vips: [/10.10.10.11], ports: {},
   visibility: Namespace}
- {name: nslocalsame, namespace: ns1, hostname: nslocalsame.ns1.svc.cluster.local, vips: [/10.10.10.12], ports: {},
   visibility: Namespace}
- {name: details, namespace: ns2, hostname: details.ns2.svc.cluster.remote, ports: {},
   vips: [/11.11.11.11, /12.12.12.12, /13.13.13.13, /14.14.14.14]}
- {name: google, namespace: ns1, hostname: www.google.com, vips: [/1.1.1.1], ports: {}}
- {name: dual, namespace: ns1, hostname: dual.localhost, vips: [/2.2.2.2, '/2001:db8::2'], ports: {}}
- {name: v4, namespace: ns1, hostname: v4.localhost, vips: [/2.2.2.2], ports: {}, ipFamilies: IPv4}
- {name: v6, namespace: ns1, hostname: v6.localhost, vips: ['/2001:db8::2'], ports: {}, ipFamilies: IPv6}
- {name: only4, namespace: ns1, hostname: only4.localhost, vips: [/2.2.2.2], ports: {}}
- {name: wild, namespace: ns1, hostname: '*.wildcard', vips: [/3.3.3.3], ports: {}}
- {name: wilder, namespace: ns1, hostname: '*.b.wildcard', vips: [/3.3.3.4], ports: {}}
- {name: company, namespace: ns1, hostname: '*.svc.mesh.company.net', vips: [/5.5.5.5], ports: {}}
- {name: elsewhere, namespace: ns1, hostname: elsewhere.example, vips: [net2/6.6.6.6], ports: {}}
- {name: both, namespace: ns1, hostname: both.example, vips: [/7.7.7.7, net2/7.7.7.8], ports: {}}
- {name: headless, namespace: ns1, hostname: headless.ns1.svc.cluster.local, vips: [], ports: {}}
- {name: headless6, namespace: ns1, hostname: headless6.ns1.svc.cluster.local, vips: [], ports: {}, ipFamilies: IPv6}
- {name: empty, namespace: ns1, hostname: empty.ns1.svc.cluster.local, vips: [], ports: {}}
- {name: bare, namespace: ns1, hostname: bare.example, vips: [], ports: {}}
- {name: lone, namespace: ns1, hostname: lone.example, vips: [], ports: {}}
- {name: p, namespace: preferred-ns, hostname: preferred.io, vips: [/8.0.0.1], ports: {}}
- {name: p, namespace: ns9, hostname: preferred.io, vips: [/8.0.0.2], ports: {}}
- {name: q, namespace: ns9, hostname: own.io, vips: [/8.0.0.3], ports: {}}
- {name: q, namespace: preferred-ns, hostname: own.io, vips: [/8.0.0.4], ports: {}}
- {name: q, namespace: ns1, hostname: own.io, vips: [/8.0.0.5], ports: {}}
- {name: c, namespace: ns9, hostname: canonical.io, vips: [/8.0.0.6], ports: {}}
- {name: c, namespace: ns8, hostname: canonical.io, vips: [/8.0.0.7], ports: {}, canonical: true}
- {name: c, namespace: ns7, hostname: canonical.io, vips: [/8.0.0.8], ports: {}, canonical: true}
- {name: c, namespace: preferred-ns, hostname: canonical.io, vips: [/8.0.0.9], ports: {}}
- {name: o, namespace: ns8, hostname: owned.io, vips: [/8.0.0.10], ports: {}, canonical: true}
- {name: o, namespace: ns1, hostname: owned.io, vips: [/8.0.0.11], ports: {}}
- {name: h, namespace: ns8, hostname: hidden.io, vips: [/8.0.0.12], ports: {}, visibility: Namespace}
- {name: h, namespace: ns9, hostname: hidden.io, vips: [/8.0.0.13], ports: {}}
- {name: range, namespace: ns1, hostname: range.example, vips: [], cidrVips: [{network: '', cidr: 10.97.0.0/16}],
   ports: {}}
";

fn settings() -> Settings {
    Settings { domain: "cluster.local".into(), preferred_namespace: Some("preferred-ns".into()), ipv6: true }
}

fn ask_with(mesh: &Mesh, settings: &Settings, message: &[u8]) -> Answer {
    let workload = crate::mesh::Workload { namespace: "ns1".into(), ..Default::default() };
    let search = search_domains("ns1", &settings.domain);
    let client = Client { workload: &workload, search: &search };
    let query = Query::parse(message).unwrap();
    answer(mesh, &query.question.unwrap(), &client, settings, &mut || 0)
}

/// The answer in words: `type name`.
fn ask(mesh: &Mesh, settings: &Settings, question: &str) -> String {
    let (kind, name) = question.split_once(' ').unwrap();
    let kind = match kind {
        "A" => kind::A,
        "AAAA" => kind::AAAA,
        "SRV" => 33,
        "NS" => 2,
        other => panic!("{other}"),
    };
    match ask_with(mesh, settings, &wire::question(name, kind, 7).unwrap()) {
        Answer::Forward => "forwarded".into(),
        Answer::NoData(why) => format!("nothing: {why:?}"),
        Answer::Found(Records { canonical, mut addresses }) => {
            addresses.sort();
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let canonical = canonical.map(|name| format!("{name}: ")).unwrap_or_default();
            format!("{canonical}{}", addresses.join(" "))
        }
    }
}

#[track_caller]
fn check(settings: &Settings, rows: &[(&str, &str)]) {
    let mesh = local::parse(MESH).unwrap();
    for (question, expected) in rows {
        assert_eq!(ask(&mesh, settings, question), *expected, "{question}");
    }
}

#[test]
fn the_contracts_table() {
    check(
        &settings(),
        &[
            ("NS productpage.ns1.", "forwarded"),
            ("A www.google.com", "1.1.1.1"),
            ("A WWW.Google.COM", "1.1.1.1"),
            ("A www.google.com.ns1.svc.cluster.local.", "www.google.com: 1.1.1.1"),
            ("A www.bing.com", "forwarded"),
            ("A productpage.ns1.svc.cluster.local.", "9.9.9.9"),
            ("A productpage.ns1.", "9.9.9.9"),
            ("A productpage.", "9.9.9.9"),
            ("A productpage.ns1.ns1.svc.cluster.local.", "productpage.ns1: 9.9.9.9"),
            ("AAAA productpage.ns1.ns1.svc.cluster.local.", "nothing: Empty"),
            ("A example.ns2.", "10.10.10.10"),
            ("A example.ns2.svc.", "10.10.10.10"),
            ("A example.ns2.svc.cluster.local.", "10.10.10.10"),
            ("A example.", "forwarded"),
            ("A nslocal.ns2.svc.cluster.local.", "forwarded"),
            ("A nslocalsame.ns1.svc.cluster.local.", "10.10.10.12"),
            ("A details.ns2.svc.cluster.remote.", "11.11.11.11 12.12.12.12 13.13.13.13 14.14.14.14"),
            ("A details.ns2.", "forwarded"),
            ("A dual.localhost.", "2.2.2.2"),
            ("AAAA dual.localhost.", "2001:db8::2"),
            ("A v6.localhost.", "nothing: Family"),
            ("AAAA v4.localhost.", "nothing: Family"),
            ("AAAA only4.localhost.", "nothing: Empty"),
            ("A foo.wildcard.", "3.3.3.3"),
            ("A a.b.wildcard.", "3.3.3.4"),
            ("A x.a.b.wildcard.", "3.3.3.4"),
            ("A wildcard.", "forwarded"),
            ("A foo.foons.svc.mesh.company.net.", "5.5.5.5"),
            ("A foo.foons.svc.mesh.company.net.ns1.svc.cluster.local.", "5.5.5.5"),
            ("A elsewhere.example.", "nothing: Empty"),
            ("A both.example.", "7.7.7.7"),
            ("A headless.ns1.svc.cluster.local.", "10.0.0.1 10.0.0.2"),
            ("AAAA headless.ns1.svc.cluster.local.", "fd00::1 fd00::2"),
            ("A headless6.ns1.svc.cluster.local.", "nothing: Family"),
            ("AAAA headless6.ns1.svc.cluster.local.", "fd00::1 fd00::2"),
            ("A empty.ns1.svc.cluster.local.", "nothing: Empty"),
            ("A headless.pod0.ns1.svc.cluster.local.", "forwarded"),
            ("A pod0.headless.ns1.svc.cluster.local.", "forwarded"),
            ("SRV _http._tcp.headless.ns1.svc.cluster.local.", "forwarded"),
            ("A bare.example.", "forwarded"),
            ("A lone.example.", "forwarded"),
            ("A range.example.", "forwarded"),
            ("A preferred.io.", "8.0.0.1"),
            ("A own.io.", "8.0.0.5"),
            ("A canonical.io.", "8.0.0.8"),
            ("A owned.io.", "8.0.0.11"),
            ("A hidden.io.", "8.0.0.13"),
        ],
    );
}

#[test]
fn settings_change_domain_preference_and_family() {
    let other = Settings { domain: "cluster.remote".into(), preferred_namespace: None, ipv6: false };
    check(
        &other,
        &[
            ("A details.ns2.", "11.11.11.11 12.12.12.12 13.13.13.13 14.14.14.14"),
            ("A productpage.ns1.", "forwarded"),
            ("A preferred.io.", "8.0.0.1"),
            ("AAAA dual.localhost.", "nothing: Family"),
            ("AAAA www.bing.com.", "forwarded"),
            ("A headless.ns1.svc.cluster.local.", "forwarded"),
        ],
    );
}

#[test]
fn odd_names_and_classes_are_forwarded() {
    let mesh = local::parse(MESH).unwrap();
    let mut chaos = wire::question("www.google.com", kind::A, 1).unwrap();
    *chaos.last_mut().unwrap() = 3;
    assert_eq!(ask_with(&mesh, &settings(), &chaos), Answer::Forward);
    let mut odd = wire::question("www.google.com", kind::A, 1).unwrap();
    odd[HEADER + 1] = b'.';
    assert_eq!(ask_with(&mesh, &settings(), &odd), Answer::Forward);
}

/// A query with EDNS.
fn with_edns(name: &str, payload: u16, version: u8) -> Vec<u8> {
    let mut message = wire::question(name, kind::A, 0x1234).unwrap();
    message[11] = 1;
    message.push(0);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(payload.to_be_bytes());
    message.extend([0, version, 0x80, 0, 0, 0]);
    message
}

fn many(count: u32) -> Records {
    let addresses = (0..count).map(|number| IpAddr::from((0x0a00_0000 + number).to_be_bytes())).collect();
    Records { canonical: None, addresses }
}

#[test]
fn an_answer_is_authoritative_and_repeats_the_question() {
    let message = wire::question("WWW.google.com", kind::A, 0x1234).unwrap();
    let query = Query::parse(&message).unwrap();
    let records =
        Records { canonical: Some("google.com".into()), addresses: vec!["1.2.3.4".parse().unwrap()] };
    let response = respond::found(&query, &records, 512);
    let mut expected = vec![0x12, 0x34, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
    expected.extend(&message[HEADER..]);
    expected.extend(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x1e\x00\x0c\x06google\x03com\x00");
    expected.extend(b"\xc0\x2c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x01\x02\x03\x04");
    assert_eq!(response, expected);
    assert_eq!(wire::addresses(&response, kind::A).unwrap(), records.addresses);
    assert!(query.is_answered_by(0x1234, &response));
    assert!(!query.is_answered_by(0x1235, &response));
}

#[test]
fn a_response_fits_into_what_the_client_takes() {
    for (message, limit, fit) in [
        (wire::question("n.example", kind::A, 1).unwrap(), 512, 30),
        (with_edns("n.example", 1232, 0), 1232, 74),
        (with_edns("n.example", 100, 0), 512, 29),
    ] {
        let query = Query::parse(&message).unwrap();
        assert_eq!(query.udp_limit(), limit);
        let response = respond::found(&query, &many(200), query.udp_limit());
        let header = Header::parse(&response).unwrap();
        assert!(header.is_truncated() && response.len() <= limit, "{}", response.len());
        assert_eq!(usize::from(header.counts[1]), fit);
        assert_eq!(wire::addresses(&response, kind::A).unwrap().len(), fit);
        let whole = respond::found(&query, &many(200), MAX_MESSAGE);
        assert!(!Header::parse(&whole).unwrap().is_truncated());
        assert_eq!(wire::addresses(&whole, kind::A).unwrap().len(), 200);
    }
}

#[test]
fn nothing_is_an_answer_too_and_says_for_how_long() {
    let message = with_edns("n.example", 1232, 0);
    let query = Query::parse(&message).unwrap();
    let response = respond::no_data(&query, "cluster.local", 512);
    let mut records = wire::Records::of(&response).unwrap();
    assert_eq!((records.header.rcode(), records.header.counts), (0, [1, 0, 1, 1]));
    let soa = records.next().unwrap().unwrap();
    assert_eq!((soa.kind, soa.ttl), (kind::SOA, respond::NEGATIVE_TTL));
    assert!(soa.data.ends_with(&respond::NEGATIVE_TTL.to_be_bytes()));
    let edns = records.next().unwrap().unwrap();
    assert_eq!((edns.kind, edns.class, edns.ttl), (kind::OPT, 1232, 0x8000));
    assert_eq!(records.next().unwrap().map(|record| record.kind), None);
}

#[test]
fn what_cannot_be_answered_gets_a_code_or_nothing() {
    let good = wire::question("a.example", kind::A, 7).unwrap();
    let change = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        message
    };
    let rcode = |message: &[u8]| match Query::parse(message) {
        Ok(_) => None,
        Err(why) => {
            respond::unanswerable(message, why).map(|response| Header::parse(&response).unwrap().rcode())
        }
    };
    assert_eq!(Query::parse(&good[..11]).unwrap_err(), Unanswerable::Ignore);
    assert_eq!(Query::parse(&change(2, 0x81)).unwrap_err(), Unanswerable::Ignore);
    assert_eq!(rcode(&change(5, 0)), Some(2), "no question");
    assert_eq!(rcode(&change(5, 2)), Some(2), "two questions");
    assert_eq!(rcode(&change(HEADER, 0xc0)), Some(1), "a name that points elsewhere");
    assert_eq!(rcode(&good[..good.len() - 1]), Some(1), "cut off");
    assert_eq!(rcode(&change(11, 1)), Some(1), "a record that is not there");
    assert_eq!(rcode(&[&good[..], b"x"].concat()), Some(1), "more than announced");
    let twice = [&with_edns("a.example", 512, 0)[..], &with_edns("a.example", 512, 0)[27..]].concat();
    let mut twice = twice;
    twice[11] = 2;
    assert_eq!(rcode(&twice), Some(1), "EDNS twice");
    let future = with_edns("a.example", 512, 1);
    let response = respond::unanswerable(&future, Query::parse(&future).unwrap_err()).unwrap();
    let opt = wire::Records::of(&response).unwrap().next().unwrap().unwrap();
    assert_eq!((opt.kind, opt.ttl >> 24), (kind::OPT, 1), "BADVERS, by its upper bits");
}

#[test]
fn any_operation_but_a_query_may_be_anything() {
    // UPDATE (RFC 2136), with a zone section or with nonsense.
    let mut update = wire::question("example", kind::SOA, 7).unwrap();
    update[2] = 0x28;
    let query = Query::parse(&update).unwrap();
    assert!(!query.is_question() && query.question.is_some());
    let nonsense = [&update[..HEADER], b"\xff\xff"].concat();
    assert!(Query::parse(&nonsense).unwrap().question.is_none());
    let mut response = update[..HEADER].to_vec();
    response[2] = 0xa8;
    response[5] = 0;
    assert!(query.is_answered_by(7, &response), "the zone may be left out of the response");
}

#[test]
fn a_response_answers_the_question_that_was_asked() {
    let message = wire::question("a.example", kind::A, 7).unwrap();
    let query = Query::parse(&message).unwrap();
    let respond = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut response = message.clone();
        response[2] |= 0x80;
        change(&mut response);
        query.is_answered_by(7, &response)
    };
    assert!(respond(&|_| {}));
    assert!(respond(&|response| response[HEADER + 1] = b'A'), "case does not matter");
    assert!(!respond(&|response| response[HEADER + 1] = b'b'), "another name");
    assert!(!respond(&|response| response[1] = 8), "another id");
    assert!(!respond(&|response| response[2] = 0x01), "no response");
    assert!(!respond(&|response| response[2] |= 0x28), "another operation");
    let last = message.len() - 3;
    assert!(!respond(&|response| response[last] = 28), "another type");
    assert!(!respond(&|response| response.truncate(11)));
    assert!(!respond(&|response| response.truncate(14)));
    assert!(!respond(&|response| response[5] = 0), "an answer without a question");
    assert!(respond(&|response| (response[5], response[3]) = (0, 5)), "a refusal may come without");
}

#[test]
fn a_long_response_is_cut_to_its_question() {
    let message = wire::question("a.example", kind::A, 7).unwrap();
    let query = Query::parse(&message).unwrap();
    let whole = respond::found(&query, &many(100), MAX_MESSAGE);
    let short = respond::cut(&query, &whole);
    let header = Header::parse(&short).unwrap();
    assert!(header.is_truncated() && short.len() == message.len());
    assert_eq!((header.id, header.counts), (7, [1, 0, 0, 0]));
}

proptest! {
    #[test]
    fn any_message_is_read_or_refused(message in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(wire::addresses(&message, kind::A));
        match Query::parse(&message) {
            Err(why) => {
                if let Some(response) = respond::unanswerable(&message, why) {
                    prop_assert!(response.len() <= 64);
                }
            }
            Ok(query) => {
                prop_assert!(!query.is_answered_by(query.header.id, &message));
                prop_assert!(respond::error(&query, super::Rcode::ServFail).len() <= message.len());
            }
        }
    }

    #[test]
    fn any_change_to_a_query_is_read_or_refused(at in 0_usize..60, byte in any::<u8>(), cut in 0_usize..60) {
        let mesh = local::parse(MESH).unwrap();
        let mut message = with_edns("www.google.com.ns1.svc.cluster.local", 1232, 0);
        message.truncate(cut.max(1) + 12);
        let at = at % message.len();
        message[at] = byte;
        let Ok(query) = Query::parse(&message) else { return Ok(()) };
        let Some(question) = query.question else { return Ok(()) };
        let workload = crate::mesh::Workload { namespace: "ns1".into(), ..Default::default() };
        let search = search_domains("ns1", "cluster.local");
        let client = Client { workload: &workload, search: &search };
        let response = match answer(&mesh, &question, &client, &settings(), &mut || 1) {
            Answer::Forward => return Ok(()),
            Answer::NoData(_) => respond::no_data(&query, "cluster.local", query.udp_limit()),
            Answer::Found(records) => respond::found(&query, &records, query.udp_limit()),
        };
        prop_assert!(response.len() <= query.udp_limit());
        prop_assert!(query.is_answered_by(query.header.id, &response));
        prop_assert!(wire::addresses(&response, question.kind).is_ok());
    }
}
