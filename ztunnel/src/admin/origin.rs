// SPDX-License-Identifier: Apache-2.0
//! Whether a browser asks for somebody else: the admin server trusts whoever reaches localhost, and a page of any site can
//! have the browser of an operator reach it.
//!
//! A page of another site is told by `Origin` and `Sec-Fetch-*`; a site whose name leads to localhost (DNS rebinding) by
//! `Host`. Programs send none of the first, and a name or address of this host.
//! Source: RFC 6454, section 7; W3C Fetch Metadata; RFC 9110, section 7.2.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use http::uri::Authority;

const ELSEWHERE: &str = "a page of another site must not ask the admin server\n";

/// Why the request is not answered, if so.
pub(super) fn refuse(headers: &HeaderMap) -> Option<&'static str> {
    let named = |name: &str| headers.get(name).map(|value| value.as_bytes());
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    if host.is_some_and(|host| !is_here(host)) {
        return Some("ask for localhost or an address: the admin server has no other name\n");
    }
    if let Some(origin) = headers.get(ORIGIN) {
        let site = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
        if site.is_none() || site != host {
            return Some(ELSEWHERE);
        }
    }
    // To follow a link from a dashboard is fine.
    let foreign = named("sec-fetch-site").is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    let followed = named("sec-fetch-mode").is_none_or(|mode| mode == b"navigate");
    (foreign && !followed).then_some(ELSEWHERE)
}

/// Whether an authority is this host, whichever name of its own it was called by.
fn is_here(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn refused(headers: &[(&str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        });
        refuse(&headers.collect()).is_some()
    }

    #[test]
    fn programs_and_our_own_page_are_answered() {
        for host in [
            "localhost",
            "LOCALHOST:15000",
            "ztunnel.localhost:8000",
            "127.0.0.1:15000",
            "[::1]:15000",
            "10.1.0.1",
        ] {
            assert!(!refused(&[("host", host)]), "{host}");
        }
        assert!(!refused(&[]), "HTTP/1.0 has no host");
        let page = [
            ("host", "localhost:15000"),
            ("origin", "http://localhost:15000"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert!(!refused(&page));
        let link =
            [("host", "localhost:15000"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(!refused(&link), "a link from elsewhere");
        assert!(
            !refused(&[("host", "localhost"), ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]),
            "typed in"
        );
    }

    #[test]
    fn pages_of_others_are_not() {
        for host in [
            "evil.example:15000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
            "user@evil.example",
        ] {
            assert!(refused(&[("host", host)]), "{host}");
        }
        for origin in ["http://evil.example", "null", "http://localhost:3000", "http://localhost", ""] {
            assert!(refused(&[("host", "localhost:15000"), ("origin", origin)]), "{origin}");
        }
        let image =
            [("host", "localhost:15000"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert!(refused(&image));
        assert!(refused(&[("origin", "http://localhost")]), "no host to compare it with");
    }
}
