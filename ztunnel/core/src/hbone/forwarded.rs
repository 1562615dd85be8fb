// SPDX-License-Identifier: Apache-2.0
//! The `forwarded` header (RFC 7239): which application asked, and for which service.
//!
//! Telemetry only: source addresses are preserved by the socket, never by this header.

use std::fmt;
use std::net::SocketAddr;

use crate::Name;

/// The header's name.
pub const HEADER: &str = "forwarded";

/// A host name is no longer than DNS allows.
const MAX_HOST: usize = 253;

/// What the header says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// The application's end of its connection.
    pub source: Option<SocketAddr>,
    /// The service that the application addressed.
    pub host: Option<Name>,
}

/// Reads the header; unknown keys and unusable values are passed over.
pub fn parse(text: &str) -> Forwarded {
    let mut forwarded = Forwarded::default();
    for pair in text.split(';') {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let value = unquoted(value.trim());
        match key.trim() {
            "for" if forwarded.source.is_none() => forwarded.source = value.parse().ok(),
            "host" if forwarded.host.is_none() && is_host(value) => forwarded.host = Some(value.into()),
            _ => {}
        }
    }
    forwarded
}

/// Writes the header.
pub fn print(forwarded: &Forwarded) -> String {
    forwarded.to_string()
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

/// What can stand unquoted in the header, and comes back as it was.
fn is_host(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b';' | b'"' | b',' | b'=');
    !value.is_empty() && value.len() <= MAX_HOST && value.bytes().all(plain)
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().filter(|host| is_host(host));
        match (self.source, host) {
            (Some(source), Some(host)) => write!(f, "for=\"{source}\";host={host}"),
            (Some(source), None) => write!(f, "for=\"{source}\""),
            (None, Some(host)) => write!(f, "host={host}"),
            (None, None) => Ok(()),
        }
    }
}
