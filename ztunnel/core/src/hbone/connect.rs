// SPDX-License-Identifier: Apache-2.0
//! The CONNECT request itself: what a server reads of it, and what a client sends.

use std::str::FromStr as _;

use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use super::{Baggage, Forwarded, TraceParent, baggage, forwarded, traceparent};
use crate::Name;
use crate::addr::Authority;

/// Only on the inner request of double HBONE: the network of the caller.
pub const FORWARDED_NETWORK: &str = "x-forwarded-network";

/// How much of a peer's text a refusal repeats.
const MAX_ECHO: usize = 128;

/// A CONNECT request that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the stream wants to go.
    pub authority: Authority,
    /// Who the caller says it is; empty where the header is absent or unusable.
    pub baggage: Baggage,
    /// Which application asked, and for which service.
    pub forwarded: Forwarded,
    /// The trace, if the caller named one.
    pub traceparent: Option<TraceParent>,
    /// The caller's network, if the request came through a network gateway.
    pub forwarded_network: Option<Name>,
}

/// Why a request is no CONNECT request of HBONE. Every one of them is answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectRefusal {
    /// Another method.
    #[error("expected method CONNECT, got {0}")]
    Method(String),
    /// No authority, or none with a usable host and port.
    #[error("no valid authority pseudo header: {0}")]
    Authority(String),
}

impl ConnectRefusal {
    /// What the peer is answered.
    pub fn status(&self) -> u16 {
        match self {
            Self::Method(_) | Self::Authority(_) => 400,
        }
    }
}

/// Reads a request that came out of a tunnel.
pub fn parse_request(
    method: &str,
    authority: Option<&str>,
    headers: &HeaderMap,
) -> Result<ConnectRequest, ConnectRefusal> {
    if method != Method::CONNECT.as_str() {
        return Err(ConnectRefusal::Method(echo(method)));
    }
    let text = authority.unwrap_or_default();
    let authority = Authority::from_str(text).ok().ok_or_else(|| ConnectRefusal::Authority(echo(text)))?;
    let ascii = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    Ok(ConnectRequest {
        authority,
        baggage: baggage::from_headers(headers),
        forwarded: ascii(forwarded::HEADER).map(forwarded::parse).unwrap_or_default(),
        traceparent: ascii(traceparent::HEADER).and_then(traceparent::parse),
        forwarded_network: ascii(FORWARDED_NETWORK).map(Name::from),
    })
}

/// The request that opens a stream to `authority`. `baggage` comes from [`baggage::header`], once per
/// workload. Fails only for a host name that no URI can carry.
pub fn request(
    authority: &Authority,
    baggage: HeaderValue,
    forwarded: &Forwarded,
    traceparent: &TraceParent,
) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(authority.to_string()).build()?;
    Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .version(Version::HTTP_2)
        .header(baggage::HEADER, baggage)
        .header(forwarded::HEADER, forwarded.to_string())
        .header(traceparent::HEADER, traceparent.to_string())
        .body(())
}

/// The request inside a tunnel to a network gateway: it also says which network the caller is in. Fails only for a network
/// that no header can carry.
pub fn across_networks(mut request: Request<()>, network: &str) -> Result<Request<()>, http::Error> {
    request.headers_mut().insert(FORWARDED_NETWORK, HeaderValue::from_str(network)?);
    Ok(request)
}

/// A peer's text, short enough for a log line.
fn echo(text: &str) -> String {
    match text.floor_char_boundary(MAX_ECHO) {
        cut if cut < text.len() => format!("{}...", &text[..cut]),
        _ => text.to_owned(),
    }
}
