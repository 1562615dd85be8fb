// SPDX-License-Identifier: Apache-2.0
//! What peers may write into a CONNECT request, from well-formed to hostile.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::baggage::Kind;
use super::connect::{ConnectRefusal, parse_request, request};
use super::{Baggage, Forwarded, TraceParent, baggage, forwarded, traceparent};
use crate::Name;
use crate::addr::Authority;
use crate::mesh::Workload;

fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(value).unwrap()))
        .collect()
}

#[test]
fn baggage_names_what_is_known_in_the_contract_order() {
    let workload = Workload {
        cluster_id: "c1".into(),
        namespace: "shop".into(),
        workload_name: "web".into(),
        workload_type: "cronjob".into(),
        canonical_name: "web-app".into(),
        canonical_revision: "v2".into(),
        ..Workload::default()
    };
    assert_eq!(
        baggage::print(&Baggage::of(&workload)),
        "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.cronjob.name=web,service.name=web-app,service.version=v2"
    );
    assert_eq!(baggage::print(&Baggage::default()), "");
}

#[test]
fn baggage_is_read_without_trimming_and_later_entries_win() {
    let read = |text: &str| baggage::print(&baggage::parse([text]));
    let cases = [
        ("", ""),
        ("service.name=a,service.name=b", "service.name=b"),
        ("service.name=a,service.name=", ""),
        ("service.name", ""),
        (" service.name=a", ""),
        ("service.name= a ", "service.name= a "),
        ("service.name=a=b", "service.name=a"),
        ("unknown=a,,=,k8s.job.name=j", "k8s.job.name=j"),
        ("k8s.pod.name=p,k8s.deployment.name=d", "k8s.deployment.name=d"),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text), expected, "{text}");
    }
    assert_eq!(read(&format!("service.name={}", "x".repeat(70_000))), "");
}

#[test]
fn a_line_of_baggage_that_is_not_ascii_spoils_all_lines() {
    let two = headers(&[("baggage", b"service.name=a"), ("baggage", b"service.version=b")]);
    assert_eq!(baggage::print(&baggage::from_headers(&two)), "service.name=a,service.version=b");
    let spoiled = headers(&[("baggage", b"service.name=a"), ("baggage", b"service.version=\xff")]);
    assert_eq!(baggage::from_headers(&spoiled), Baggage::default());
}

#[test]
fn baggage_does_not_carry_what_would_come_back_as_something_else() {
    for value in ["a,k8s.pod.name=evil", "a=b", "a\r\nb", "é", ""] {
        let baggage = Baggage { service_name: Some(value.into()), ..Baggage::default() };
        assert_eq!(baggage::header(&baggage), "", "{value}");
    }
}

#[test]
fn forwarded_says_who_asked_and_for_what() {
    let text = |source: &str, host: Option<&str>| {
        forwarded::print(&Forwarded { source: Some(source.parse().unwrap()), host: host.map(Name::from) })
    };
    assert_eq!(text("10.0.0.1:4000", None), r#"for="10.0.0.1:4000""#);
    assert_eq!(text("[fd00::1]:4000", Some("web.shop")), r#"for="[fd00::1]:4000";host=web.shop"#);
    assert_eq!(text("10.0.0.1:4000", Some("a;b")), r#"for="10.0.0.1:4000""#);
}

#[test]
fn forwarded_hosts_are_read_from_any_peer() {
    let long = format!("host={}", "h".repeat(254));
    let cases: [(&str, Option<&str>); 9] = [
        (r#"for="1.2.3.4:5";host="web.shop""#, Some("web.shop")),
        ("by=x; host=web ", Some("web")),
        ("host=", None),
        (r#"host="""#, None),
        (r#"host=""#, None),
        ("host", None),
        ("Host=x", None),
        ("host=a b", None),
        (&long, None),
    ];
    for (text, host) in cases {
        assert_eq!(forwarded::parse(text).host.as_deref(), host, "{text}");
    }
}

#[test]
fn traceparent_is_read_in_its_one_form_only() {
    let good = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";
    let read = traceparent::parse(good).unwrap();
    assert_eq!(read.trace_id, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    assert_eq!(traceparent::print(&read), good);
    let dashless = "0".repeat(55);
    let misplaced = "000-123456789abcdef0123456789abcdef-0123456789abcdef-00";
    let signed = "00-+123456789abcdef0123456789abcdef-0123456789abcdef-00";
    let multibyte = "00-é23456789abcdef0123456789abcdef-0123456789abcdef-00";
    for bad in ["", "00", &dashless, &"-".repeat(55), misplaced, signed, multibyte, &good[1..]] {
        assert_eq!(traceparent::parse(bad), None, "{bad}");
    }
    assert_eq!(multibyte.len(), 55, "the multibyte case is long enough to reach the fields");
}

#[test]
fn a_new_trace_uses_all_of_its_randomness() {
    let mut next = 0;
    let mut entropy = || {
        next += 1;
        next
    };
    let text = TraceParent::new(&mut entropy).to_string();
    assert_eq!(text, "00-00000000000000010000000000000002-0000000000000003-00");
}

#[test]
fn a_request_is_plain_connect_with_three_headers() {
    let authority: Authority = "[fd00::1]:80".parse().unwrap();
    let forwarded = forwarded::parse(r#"for="10.0.0.1:4000";host=web.shop"#);
    let trace = TraceParent { version: 0, trace_id: 1, span_id: 2, flags: 0 };
    let request = request(&authority, HeaderValue::from_static(""), &forwarded, &trace).unwrap();
    assert_eq!(request.method(), "CONNECT");
    assert_eq!(request.uri().authority().unwrap().as_str(), "[fd00::1]:80");
    assert_eq!((request.uri().scheme(), request.uri().path()), (None, ""));
    let names: Vec<&str> = request.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["baggage", "forwarded", "traceparent"]);
    assert_eq!(request.headers()["baggage"], "");

    let read = parse_request("CONNECT", Some("[fd00::1]:80"), request.headers()).unwrap();
    assert_eq!((read.authority, read.forwarded, read.traceparent), (authority, forwarded, Some(trace)));
}

#[test]
fn hosts_can_be_asked_for() {
    for text in ["web.shop.svc.cluster.local:80", "web_1:80", "10.0.0.1:65535"] {
        let authority: Authority = text.parse().unwrap();
        let trace = TraceParent { version: 0, trace_id: 1, span_id: 2, flags: 0 };
        let request = request(&authority, HeaderValue::from_static(""), &Forwarded::default(), &trace);
        assert_eq!(request.unwrap().uri().to_string(), text);
    }
}

#[test]
fn what_is_no_connect_request_is_refused_with_400() {
    let huge = format!("{}:80", "h".repeat(70_000));
    let cases = [
        ("GET", Some("10.0.0.1:80"), "expected method CONNECT, got GET"),
        ("connect", Some("10.0.0.1:80"), "expected method CONNECT, got connect"),
        ("CONNECT", None, "no valid authority pseudo header: "),
        ("CONNECT", Some(""), "no valid authority pseudo header: "),
        ("CONNECT", Some("10.0.0.1"), "no valid authority pseudo header: 10.0.0.1"),
        ("CONNECT", Some("web"), "no valid authority pseudo header: web"),
        ("CONNECT", Some("10.0.0.1:"), "no valid authority pseudo header: 10.0.0.1:"),
        ("CONNECT", Some("10.0.0.1:65536"), "no valid authority pseudo header: 10.0.0.1:65536"),
        ("CONNECT", Some("10.0.0.1:+80"), "no valid authority pseudo header: 10.0.0.1:+80"),
        ("CONNECT", Some(":80"), "no valid authority pseudo header: :80"),
        ("CONNECT", Some("me@10.0.0.1:80"), "no valid authority pseudo header: me@10.0.0.1:80"),
        ("CONNECT", Some("[fe80::1%eth0]:80"), "no valid authority pseudo header: [fe80::1%eth0]:80"),
        ("CONNECT", Some("fd00::1:80"), "no valid authority pseudo header: fd00::1:80"),
        ("CONNECT", Some("a b:80"), "no valid authority pseudo header: a b:80"),
        ("CONNECT", Some("héllo:80"), "no valid authority pseudo header: héllo:80"),
    ];
    for (method, authority, text) in cases {
        let refusal = parse_request(method, authority, &HeaderMap::new()).unwrap_err();
        assert_eq!((refusal.status(), refusal.to_string().as_str()), (400, text));
    }
    let refusal = parse_request("CONNECT", Some(&huge), &HeaderMap::new()).unwrap_err();
    let ConnectRefusal::Authority(echo) = refusal else { panic!("{refusal}") };
    assert!(echo.len() < 200, "a refusal must not repeat {} bytes", echo.len());
}

#[test]
fn unusable_headers_are_as_good_as_absent() {
    let hostile = headers(&[
        ("baggage", b"service.name=\xff"),
        ("forwarded", b"host=\xff"),
        ("traceparent", b"00000000000000000000000000000000000000000000000000-0000"),
        ("x-forwarded-network", b"\xff"),
    ]);
    let read = parse_request("CONNECT", Some("10.0.0.1:80"), &hostile).unwrap();
    assert_eq!(read, parse_request("CONNECT", Some("10.0.0.1:80"), &HeaderMap::new()).unwrap());
    let gateway = headers(&[("x-forwarded-network", b"n2")]);
    let read = parse_request("CONNECT", Some("10.0.0.1:80"), &gateway).unwrap();
    assert_eq!(read.forwarded_network.as_deref(), Some("n2"));
}

fn value() -> impl Strategy<Value = Option<Name>> {
    proptest::option::of("[ -+.-<>-~--]{1,40}".prop_map(Name::from))
}

prop_compose! {
    fn any_baggage()(
        [cluster, namespace, service_name, service_version, region, zone] in
            [value(), value(), value(), value(), value(), value()],
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        workload in value(),
    ) -> Baggage {
        let workload = workload.map(|name| (kind, name));
        Baggage { cluster, namespace, workload, service_name, service_version, region, zone }
    }
}

proptest! {
    #[test]
    fn baggage_comes_back_as_it_was(baggage in any_baggage()) {
        let mut headers = HeaderMap::new();
        headers.insert(baggage::HEADER, baggage::header(&baggage));
        prop_assert_eq!(baggage::from_headers(&headers), baggage);
    }

    #[test]
    fn forwarded_comes_back_as_it_was(
        source in proptest::option::of(any::<SocketAddr>()),
        host in proptest::option::of("[a-zA-Z0-9._-]{1,253}"),
    ) {
        // A flow label or scope is no part of the text form.
        let source = source.map(|source| SocketAddr::new(source.ip(), source.port()));
        let forwarded = Forwarded { source, host: host.map(Name::from) };
        prop_assert_eq!(forwarded::parse(&forwarded::print(&forwarded)), forwarded);
    }

    #[test]
    fn traceparent_comes_back_as_it_was(version: u8, trace_id: u128, span_id: u64, flags: u8) {
        let trace = TraceParent { version, trace_id, span_id, flags };
        prop_assert_eq!(traceparent::parse(&traceparent::print(&trace)), Some(trace));
    }

    #[test]
    fn no_text_breaks_a_parser(text in "\\PC{0,80}", hex in "[0-9a-f-]{55}") {
        for text in [&text, &hex] {
            let read = baggage::parse([text.as_str()]);
            prop_assert_eq!(baggage::parse([baggage::print(&read).as_str()]), read);
            let read = forwarded::parse(text);
            prop_assert_eq!(forwarded::parse(&forwarded::print(&read)), read);
            if let Some(read) = traceparent::parse(text) {
                prop_assert_eq!(&traceparent::print(&read), text);
            }
            drop(parse_request("CONNECT", Some(text), &HeaderMap::new()));
        }
    }
}
