// SPDX-License-Identifier: Apache-2.0
//! A CONNECT request and its headers, as another proxy writes them.
//!
//! The input is lines: the method, the authority, then `name: value`.

use http::{HeaderMap, HeaderName, HeaderValue};
use ztunnel_core::hbone::connect::{parse_request, request};
use ztunnel_core::hbone::{TraceParent, baggage, forwarded, traceparent};

/// A refusal is a line in a log: it repeats at most so much of what the peer sent.
const MAX_REFUSAL: usize = 256;

pub(super) fn run(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let method = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let authority = lines.next().and_then(|line| str::from_utf8(line).ok());
    let headers = lines.filter_map(header).fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.append(name, value);
        headers
    });
    for value in headers.values().filter_map(|value| value.to_str().ok()) {
        each_alone(value);
    }
    let read = match parse_request(&method, authority, &headers) {
        Ok(read) => read,
        Err(refusal) => {
            assert_eq!(refusal.status(), 400);
            assert!(
                refusal.to_string().len() < MAX_REFUSAL,
                "{} bytes of refusal",
                refusal.to_string().len()
            );
            return;
        }
    };
    assert_eq!(method, "CONNECT");
    assert_eq!(read.authority.to_string().parse(), Ok(read.authority.clone()));
    // What we understood is what the next proxy understands.
    let trace = read.traceparent.unwrap_or(TraceParent { version: 0, trace_id: 1, span_id: 1, flags: 0 });
    let Ok(sent) = request(&read.authority, baggage::header(&read.baggage), &read.forwarded, &trace) else {
        return;
    };
    let authority = sent.uri().authority().map(http::uri::Authority::as_str);
    let again = parse_request("CONNECT", authority, sent.headers()).expect("we wrote it ourselves");
    assert_eq!(again.authority, read.authority);
    assert_eq!(again.baggage, read.baggage);
    assert_eq!(again.forwarded, read.forwarded);
    assert_eq!(again.traceparent, Some(trace));
}

/// Each parser by itself, also with text that is meant for another.
fn each_alone(text: &str) {
    let read = baggage::parse([text]);
    assert_eq!(baggage::parse([baggage::print(&read).as_str()]), read);
    let read = forwarded::parse(text);
    assert_eq!(forwarded::parse(&forwarded::print(&read)), read);
    if let Some(read) = traceparent::parse(text) {
        assert!(traceparent::print(&read).eq_ignore_ascii_case(text));
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let at = line.iter().position(|&byte| byte == b':')?;
    let value = line.get(at + 1..)?;
    Some((HeaderName::from_bytes(line.get(..at)?).ok()?, HeaderValue::from_bytes(value).ok()?))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "CONNECT\n10.0.0.1:80",
        "CONNECT\n[fd00::1]:15008\nbaggage:k8s.namespace.name=shop\ntraceparent:",
        "CONNECT\nweb.shop.svc.cluster.local:80\n\
         baggage:k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=d,service.name=s,service.version=v\n\
         baggage:cloud.region=r,cloud.availability_zone=z,k8s.job.name=j\n\
         forwarded:for=\"10.0.0.1:4000\";host=web.shop\n\
         traceparent:00-0123456789abcdef0123456789abcdef-0123456789abcdef-00\n\
         x-forwarded-network:n2",
        "CONNECT\n*.example.com:443\nforwarded:for=\"[fd00::1]:4000\";by=x;host=\"a\"",
        "CONNECT\n1.1.1.1:1\ntraceparent:0000000000000000000000000000000000000000000000000000000",
        "GET\n/",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
