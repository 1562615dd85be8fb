// SPDX-License-Identifier: Apache-2.0
//! Golden lines and tables of what is said about a connection.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::access::{Bytes, LogLevel, Timestamp};
use super::labels::escape;
use super::*;
use crate::hbone::{Baggage, baggage};
use crate::identity::Identity;
use crate::mesh::{Service, Workload};

fn workload(name: &str) -> Workload {
    let mut workload = Workload {
        name: format!("{name}-7d9f").into(),
        namespace: "shop".into(),
        trust_domain: "cluster.local".into(),
        service_account: name.into(),
        workload_name: name.into(),
        canonical_name: format!("{name}-app").into(),
        canonical_revision: "v1".into(),
        cluster_id: "c1".into(),
        ..Workload::default()
    };
    workload.locality.region = "eu".into();
    workload
}

fn service() -> Service {
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        ..Service::default()
    }
}

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042)
}

#[test]
fn every_outcome_has_a_status_a_flag_and_a_text() {
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let timed_out = io::Error::new(io::ErrorKind::TimedOut, "kernel gave up");
    let tls = |stage| Outcome::Tls { stage, error: "e".into() };
    let h2 = |stage| Outcome::H2 { stage, error: "e".into() };
    let policy = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: ";
    let cases = [
        (
            Outcome::BadRequest(ConnectRefusal::Method("GET".into())),
            400,
            "CONNECT",
            "expected method CONNECT, got GET",
        ),
        (
            Outcome::Denied("explicitly denied by: a/b".into()),
            401,
            "DENY",
            "connection closed due to policy rejection: explicitly denied by: a/b",
        ),
        (
            Outcome::connect_failed(&refused, Leg::Hbone),
            503,
            "CONNECT",
            "connection failed: connection refused",
        ),
        (Outcome::connect_timed_out(Leg::Plain), 503, "CONNECT", "connection failed: deadline has elapsed"),
        (
            Outcome::connect_timed_out(Leg::Hbone),
            503,
            "NETWORK_POLICY",
            &format!("{policy}deadline has elapsed"),
        ),
        (
            Outcome::connect_failed(&timed_out, Leg::Hbone),
            503,
            "NETWORK_POLICY",
            &format!("{policy}kernel gave up"),
        ),
        (tls(TlsStage::Config), 503, "TLS_FAILURE", "tls error: e"),
        (tls(TlsStage::Connect), 503, "CONNECT", "io error: e"),
        (tls(TlsStage::Accept), 503, "CONNECT", "tls handshake error: e"),
        (h2(H2Stage::Handshake), 503, "H2_HANDSHAKE_FAILURE", "http2 handshake failed: e"),
        (h2(H2Stage::Stream), 503, "H2_HANDSHAKE_FAILURE", "h2 failed: e"),
        (Outcome::Http(401), 503, "CONNECT", "http status: 401 Unauthorized"),
        (Outcome::Identity("no CA".into()), 503, "IDENTITY_ERROR", "identity error: no CA"),
        (Outcome::Cut(Cut::PolicyChange), 401, "DENY", "connection closed due to policy change"),
        (Outcome::Cut(Cut::Drain), 503, "-", "connection closed due to connection drain"),
        (
            Outcome::Cut(Cut::Revoked),
            503,
            "CERT_REVOKED",
            "connection closed: peer certificate revoked by CRL",
        ),
        (Outcome::Cut(Cut::Untracked), 401, "CONNECT", "connection tracking failed"),
        (Outcome::Io("e".into()), 503, "CONNECT", "io error: e"),
    ];
    for (outcome, status, flag, text) in cases {
        assert_eq!((outcome.status(), outcome.flag().as_str()), (status, flag), "{outcome}");
        assert_eq!(outcome.error().as_deref(), Some(text));
    }
    assert_eq!((Outcome::Complete.status(), Outcome::Complete.flag()), (200, Flag::None));
    assert_eq!(Outcome::Complete.error(), None);
}

#[test]
fn refusals_are_503_except_for_a_wrong_address() {
    let mismatch =
        Refusal::IpMismatch { pod: "10.0.0.1".parse().unwrap(), authority: "10.0.0.2".parse().unwrap() };
    assert_eq!(Outcome::Refused(mismatch).status(), 400);
    assert_eq!(Outcome::Refused(Refusal::LoopToSelf).status(), 503);
    assert_eq!(Outcome::Refused(Refusal::LoopToSelf).flag(), Flag::Connect);
}

#[test]
fn a_peer_that_goes_away_does_not_fail_the_connection() {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, Other, UnexpectedEof, WriteZero};
    for kind in [BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof] {
        assert_eq!(Outcome::copy(CopyStage::Send, &kind.into()), Outcome::Complete);
    }
    let text = |stage, kind: io::ErrorKind| Outcome::copy(stage, &io::Error::new(kind, "e")).to_string();
    assert_eq!(text(CopyStage::Send, Other), "send: e");
    assert_eq!(text(CopyStage::Receive, Other), "receive: e");
    assert_eq!(text(CopyStage::CloseSend, Other), "while closing connection: e");
    assert_eq!(
        text(CopyStage::Receive, WriteZero),
        "receive: client disconnected before all data was written"
    );
    assert_eq!(
        text(CopyStage::Send, WriteZero),
        "send: destination disconnected before all data was written"
    );
}

/// What is shown, in order.
fn shown(labels: &Labels) -> impl Iterator<Item = (&'static str, &str)> {
    labels::NAMES.into_iter().zip(labels.values()).filter_map(|(name, value)| Some((name, value?)))
}

fn print(labels: &Labels) -> String {
    shown(labels).map(|(name, value)| format!("{name}={value}\n")).collect()
}

#[test]
fn labels_of_a_meshed_connection_are_complete_and_in_order() {
    let (source, destination, service) = (workload("front"), workload("web"), service());
    let principal = source.identity();
    let labels = Labels::new(&Facts {
        source: Some(&source),
        destination: Some(&destination),
        service: Some(&service),
        source_principal: Some(&principal),
        security: Security::MutualTls,
        ..Facts::new(Reporter::Source)
    });
    let expected = "\
reporter=source
source_workload=front
source_canonical_service=front-app
source_canonical_revision=v1
source_workload_namespace=shop
source_principal=spiffe://cluster.local/ns/shop/sa/front
source_app=front-app
source_version=v1
source_cluster=c1
destination_service=web.shop.svc.cluster.local
destination_service_namespace=shop
destination_service_name=web
destination_workload=web
destination_canonical_service=web-app
destination_canonical_revision=v1
destination_workload_namespace=shop
destination_principal=spiffe://cluster.local/ns/shop/sa/web
destination_app=web-app
destination_version=v1
destination_cluster=c1
request_protocol=tcp
response_flags=-
connection_security_policy=mutual_tls
source_region=eu
source_zone=unknown
destination_region=eu
destination_zone=unknown
";
    assert_eq!(print(&labels), expected);
    let failed = print(&labels.with_flag(Flag::Connect));
    assert_eq!(failed, expected.replace("response_flags=-", "response_flags=CONNECT"));
}

#[test]
fn names_flags_and_places_are_in_the_order_of_the_contract() {
    let workload = workload("web");
    let labels = Labels::new(&Facts { source: Some(&workload), ..Facts::new(Reporter::Source) });
    assert!(labels.values().iter().all(Option::is_some));
    assert_eq!(labels::NAMES[labels::place::FLAGS], "response_flags");
    for (number, flag) in Flag::ALL.into_iter().enumerate() {
        assert_eq!(flag as usize, number);
    }
}

#[test]
fn labels_that_are_not_wanted_tell_nothing_apart() {
    let (front, back, service) = (workload("front"), workload("back"), service());
    let of = |source: &Workload| {
        let facts = Facts {
            source: Some(source),
            destination: Some(&back),
            service: Some(&service),
            security: Security::MutualTls,
            ..Facts::new(Reporter::Source)
        };
        Labels::new(&facts)
    };
    let filter: LabelFilter = " destination_service_name,source_version ,destination_region".parse().unwrap();
    let kept = of(&front).only(filter);
    assert_eq!(kept, of(&back).only(filter));
    let said: Vec<String> = (0..labels::NAMES.len())
        .filter(|place| filter.keeps(*place))
        .filter_map(|place| Some(format!("{}={}", labels::NAMES[place], kept.values()[place]?)))
        .collect();
    let expected =
        ["reporter=source", "source_version=v1", "destination_service_name=web", "response_flags=-"];
    assert_eq!(said[..4], expected);
    assert_eq!(said[4..], ["destination_region=eu"]);

    assert_eq!("".parse(), Ok(LabelFilter::ALL));
    assert_eq!(of(&front).only(LabelFilter::ALL), of(&front));
    assert_ne!(of(&front), of(&back));
    let error = "reporter,port".parse::<LabelFilter>().unwrap_err().to_string();
    assert!(
        error.starts_with("there is no label `port`; expected a list") && error.contains("source_zone"),
        "{error}"
    );
}

#[test]
fn what_overflows_is_told_apart_by_our_own_side_alone() {
    let (front, back) = (workload("front"), workload("back"));
    let of = |reporter, source, destination| {
        let facts = Facts { source: Some(source), destination: Some(destination), ..Facts::new(reporter) };
        print(&Labels::new(&facts).overflow())
    };
    let outbound = of(Reporter::Source, &front, &back);
    assert!(outbound.contains("source_workload=front") && outbound.contains("destination_workload=overflow"));
    assert!(outbound.contains("destination_principal=unknown"), "{outbound}");
    let inbound = of(Reporter::Destination, &front, &back);
    assert!(inbound.contains("source_workload=overflow") && inbound.contains("destination_workload=back"));
    let all = |source| {
        Labels::new(&Facts { source: Some(source), ..Facts::new(Reporter::Source) }).overflow_of_all()
    };
    assert_eq!(all(&front), all(&back));
}

#[test]
fn what_is_not_known_is_unknown_and_has_no_locality() {
    let labels = Labels::new(&Facts::new(Reporter::Destination));
    let known: Vec<_> = shown(&labels).filter(|(_, value)| *value != "unknown").collect();
    assert_eq!(known, [("reporter", "destination"), ("request_protocol", "tcp"), ("response_flags", "-")]);
    assert_eq!(shown(&labels).count(), 23);
}

#[test]
fn a_source_outside_the_mesh_is_what_it_says_it_is() {
    let baggage = baggage::parse(["k8s.namespace.name=far,k8s.pod.name=p,service.name=s,cloud.region=us"]);
    let facts = Facts { derived_source: Some(&baggage), ..Facts::new(Reporter::Destination) };
    let text = print(&Labels::new(&facts));
    for line in ["source_workload=p", "source_canonical_service=s", "source_app=p", "source_region=us"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let empty = Workload::default();
    let text = print(&Labels::new(&Facts { source: Some(&empty), ..facts }));
    assert!(text.contains("source_workload=unknown"), "the mesh's word comes first, even if empty: {text}");
}

#[test]
fn label_values_are_escaped_for_the_exposition() {
    assert_eq!(escape("plain é"), "plain é");
    assert_eq!(escape("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
}

#[test]
fn a_complete_connection_is_one_line() {
    let (source, destination, service) = (workload("front"), workload("web"), service());
    let principal = source.identity();
    let facts = Facts {
        source: Some(&source),
        destination: Some(&destination),
        service: Some(&service),
        source_principal: Some(&principal),
        security: Security::MutualTls,
        ..Facts::new(Reporter::Source)
    };
    let authority = "10.0.0.2:8080".parse().unwrap();
    let mut entry =
        AccessEntry::opened(&facts, "10.0.0.1:4000".parse().unwrap(), "10.0.0.2:15008".parse().unwrap());
    entry.hbone_addr = Some(&authority);
    let ends = "src.addr=10.0.0.1:4000 src.workload=\"front-7d9f\" src.namespace=\"shop\" \
        src.identity=\"spiffe://cluster.local/ns/shop/sa/front\" src.cluster=\"c1\" \
        dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service=\"web.shop.svc.cluster.local\" \
        dst.workload=\"web-7d9f\" dst.namespace=\"shop\" \
        dst.identity=\"spiffe://cluster.local/ns/shop/sa/web\" dst.cluster=\"c1\" direction=\"outbound\"";
    let stamp = "2023-11-14T22:13:20.000042Z";
    assert_eq!(entry.text(at()), format!("{stamp}\tdebug\taccess\tconnection opened\t{ends}"));

    entry.opening = LogLevel::Info;
    assert_eq!(entry.text(at()), format!("{stamp}\tinfo\taccess\tconnection opened\t{ends}"));

    entry.event = Event::Complete;
    entry.bytes = Some(Bytes { sent: 12, received: 34 });
    entry.duration = Some(Duration::from_micros(5_999));
    entry.path = Some(Datapath::Ebpf);
    assert_eq!(
        entry.text(at()),
        format!(
            "{stamp}\tinfo\taccess\tconnection complete\t{ends} \
             bytes_sent=12 bytes_recv=34 duration=\"5ms\" path=ebpf"
        )
    );

    entry.error = Some("send: \"x\"\n");
    entry.path = Some(Datapath::Tcp("not_qualified"));
    assert!(entry.text(at()).starts_with(&format!("{stamp}\terror\taccess\tconnection complete\t")));
    assert!(
        entry.text(at()).ends_with(r#" error="send: \"x\"\n" path=tcp path.reason=not_qualified"#),
        "{entry}"
    );
}

#[test]
fn the_fields_of_a_line_are_those_that_are_documented() {
    let (source, destination, service) = (workload("front"), workload("web"), service());
    let principal = source.identity();
    let facts = Facts {
        source: Some(&source),
        destination: Some(&destination),
        service: Some(&service),
        source_principal: Some(&principal),
        security: Security::MutualTls,
        ..Facts::new(Reporter::Source)
    };
    let authority = "10.0.0.2:8080".parse().unwrap();
    let mut entry =
        AccessEntry::opened(&facts, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:15008".parse().unwrap());
    entry.event = Event::Complete;
    entry.hbone_addr = Some(&authority);
    entry.bytes = Some(Bytes::default());
    entry.duration = Some(Duration::ZERO);
    entry.error = Some("e");
    entry.path = Some(Datapath::Tcp("mode_off"));
    let line = entry.to_string();
    let fields = line.split_once('\t').unwrap().1.split(' ');
    let names: Vec<&str> = fields.map(|field| field.split_once('=').unwrap().0).collect();
    assert_eq!(names, access::FIELDS.map(|(name, _)| name));
}

#[test]
fn a_denied_connection_names_both_ends_and_the_policy() {
    let (source, destination) = (workload("front"), workload("web"));
    let principal = source.identity();
    let facts = Facts {
        source: Some(&source),
        destination: Some(&destination),
        source_principal: Some(&principal),
        security: Security::MutualTls,
        ..Facts::new(Reporter::Destination)
    };
    let authority = "10.0.0.2:8080".parse().unwrap();
    let error = Outcome::Denied("explicitly denied by: shop/no-front".into()).to_string();
    let mut entry =
        AccessEntry::opened(&facts, "10.0.0.1:4000".parse().unwrap(), "10.0.0.2:15008".parse().unwrap());
    entry.hbone_addr = Some(&authority);
    entry.event = Event::Complete;
    entry.bytes = Some(Bytes::default());
    entry.duration = Some(Duration::ZERO);
    entry.error = Some(&error);
    assert_eq!(
        entry.text(at()),
        "2023-11-14T22:13:20.000042Z\terror\taccess\tconnection complete\t\
         src.addr=10.0.0.1:4000 src.workload=\"front-7d9f\" src.namespace=\"shop\" \
         src.identity=\"spiffe://cluster.local/ns/shop/sa/front\" src.cluster=\"c1\" \
         dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 \
         dst.workload=\"web-7d9f\" dst.namespace=\"shop\" \
         dst.identity=\"spiffe://cluster.local/ns/shop/sa/web\" dst.cluster=\"c1\" direction=\"inbound\" \
         bytes_sent=0 bytes_recv=0 duration=\"0ms\" \
         error=\"connection closed due to policy rejection: explicitly denied by: shop/no-front\""
    );
}

#[test]
fn a_connection_turned_away_is_a_short_line() {
    let entry = AccessEntry::failed(
        Reporter::Destination,
        "[fd00::1]:4000".parse().unwrap(),
        "[fd00::2]:15008".parse().unwrap(),
        "attempted recursive call to ourselves",
    );
    assert_eq!(
        entry.text(at()),
        "2023-11-14T22:13:20.000042Z\twarn\taccess\tconnection failed\t\
         src.addr=[fd00::1]:4000 dst.addr=[fd00::2]:15008 direction=\"inbound\" \
         error=\"attempted recursive call to ourselves\""
    );
}

#[test]
fn the_json_form_says_the_same() {
    let source =
        Identity { trust_domain: "td".into(), namespace: "a".into(), service_account: "b\"\u{1}".into() };
    let derived = Baggage { service_name: Some("s".into()), ..Baggage::default() };
    let facts = Facts {
        source_principal: Some(&source),
        derived_source: Some(&derived),
        security: Security::MutualTls,
        ..Facts::new(Reporter::Destination)
    };
    let mut entry =
        AccessEntry::opened(&facts, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:15008".parse().unwrap());
    entry.event = Event::Complete;
    entry.bytes = Some(Bytes { sent: 1, received: u64::MAX });
    entry.path = Some(Datapath::Tcp("mode_off"));
    let read: serde_json::Value = serde_json::from_str(&entry.json(at())).unwrap();
    let expected = serde_json::json!({
        "level": "info", "time": "2023-11-14T22:13:20.000042Z", "scope": "access",
        "message": "connection complete", "src.addr": "10.0.0.1:1", "src.workload": "s",
        "src.identity": "spiffe://td/ns/a/sa/b\"\u{1}", "dst.addr": "10.0.0.2:15008",
        "direction": "inbound", "bytes_sent": 1, "bytes_recv": u64::MAX, "path": "tcp",
        "path.reason": "mode_off",
    });
    assert_eq!(read, expected);
}

#[test]
fn time_is_told_in_utc() {
    let cases = [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
        (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
    ];
    for (seconds, expected) in cases {
        assert_eq!(Timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), expected);
    }
}
