// SPDX-License-Identifier: Apache-2.0
//! Addresses as the proxies speak of them: original destinations, CONNECT authorities, network addresses.
//!
//! Invariant: an IPv4 address is never held in its IPv6-mapped form, so that equal addresses compare equal.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Serialize, Serializer};

use crate::Name;

/// Where redirected outbound connections arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where redirected inbound connections arrive that are not HBONE.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Where HBONE tunnels arrive, on every node.
pub const INBOUND_HBONE_PORT: u16 = 15008;
/// Our own listeners: a connection routed to one of them would come back to us.
pub const ILLEGAL_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, INBOUND_HBONE_PORT];

/// No host name is longer than this (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;

/// The address without the IPv6 disguise of IPv4 that a dual-stack socket reports.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => addr,
        },
    }
}

/// The host itself: to connect to the unspecified address is to connect to localhost (`ip_route_output_key_hash`).
#[must_use]
pub fn is_this_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

/// Where the application connected before redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The `:authority` of a CONNECT request: what the tunnel's stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address.
    Addr(SocketAddr),
    /// A service by its host name.
    Host {
        /// The host name, as sent.
        host: Name,
        /// The service port.
        port: u16,
    },
}

impl Authority {
    /// The port, which is mandatory in either form.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Why a text is no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// There is no `:port` at the end, or it is no port number.
    #[error("no valid port")]
    Port,
    /// What stands before the port is neither an address nor a host name.
    #[error("no valid host")]
    Host,
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        // `u16::from_str` would take `+80`.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AuthorityError::Port);
        }
        let port: u16 = port.parse().ok().ok_or(AuthorityError::Port)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(AuthorityError::Host)?;
            let ip: std::net::Ipv6Addr = inner.parse().ok().ok_or(AuthorityError::Host)?;
            return Ok(Self::Addr(canonical(SocketAddr::new(ip.into(), port))));
        }
        if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Addr(SocketAddr::new(ip.into(), port)));
        }
        if !is_host(host) {
            return Err(AuthorityError::Host);
        }
        Ok(Self::Host { host: host.into(), port })
    }
}

/// Strict enough that a host may be printed into a header or a log line as it is.
fn is_host(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
    !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(allowed)
}

/// An address in one of the mesh's networks; the default network has the empty name.
///
/// Its text form is `network/ip`, hence `/10.0.0.1` in the default network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddr {
    /// The network's name.
    pub network: Name,
    /// The address in it.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl Serialize for NetworkAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not `network/ip`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `network/ip`")]
pub struct NetworkAddrError(pub String);

impl FromStr for NetworkAddr {
    type Err = NetworkAddrError;

    fn from_str(text: &str) -> Result<Self, NetworkAddrError> {
        let refuse = || NetworkAddrError(text.to_owned());
        let (network, ip) = text.split_once('/').ok_or_else(refuse)?;
        let ip: IpAddr = ip.parse().ok().ok_or_else(refuse)?;
        Ok(Self { network: network.into(), ip: ip.to_canonical() })
    }
}

/// The range without the IPv6 disguise of IPv4, as [`canonical`] does for addresses.
#[must_use]
pub fn canonical_net(net: IpNet) -> IpNet {
    match net {
        IpNet::V4(_) => net,
        IpNet::V6(v6) => {
            let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
            match v4.and_then(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok()) {
                Some(v4) => IpNet::V4(v4),
                None => net,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let said = text.parse::<Authority>().map_or_else(|error| error.to_string(), |it| it.to_string());
        assert_eq!(said, expected, "{text}");
    }

    #[test]
    fn an_authority_is_an_address_or_a_host_with_a_port() {
        check("10.0.0.1:80", "10.0.0.1:80");
        check("[fd00::1]:80", "[fd00::1]:80");
        check("[::ffff:10.0.0.1]:80", "10.0.0.1:80");
        check("web.shop.svc:80", "web.shop.svc:80");
        for text in ["", "web", "10.0.0.1", "[fd00::1]", "web:", "web:65536", "web:+80", "web:8a", "web:-1"] {
            check(text, "no valid port");
        }
        let long = format!("{}:80", "a".repeat(MAX_HOST + 1));
        for text in [
            ":80",
            "fd00::1:80",
            "[fd00::1:80",
            "[fe80::1%2]:80",
            "[10.0.0.1]:80",
            "a b:80",
            "u@h:80",
            "h/x:80",
            "h\n:80",
            &long,
        ] {
            check(text, "no valid host");
        }
    }

    #[test]
    fn a_network_address_is_split_at_the_first_slash() {
        let text = |text: &str| text.parse::<NetworkAddr>().map(|address| address.to_string());
        assert_eq!(text("/10.0.0.1").as_deref(), Ok("/10.0.0.1"));
        assert_eq!(text("net/fd00::1").as_deref(), Ok("net/fd00::1"));
        assert_eq!(text("/::ffff:10.0.0.1").as_deref(), Ok("/10.0.0.1"));
        for wrong in ["10.0.0.1", "a/b/10.0.0.1", "/10.0.0", ""] {
            assert!(text(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mapped_range_is_the_range_that_it_stands_for() {
        let canonical = |text: &str| canonical_net(text.parse().unwrap()).to_string();
        assert_eq!(canonical("::ffff:10.0.0.0/104"), "10.0.0.0/8");
        assert_eq!(canonical("::ffff:0.0.0.0/96"), "0.0.0.0/0");
        assert_eq!(canonical("::/0"), "::/0");
        assert_eq!(canonical("fd00::/8"), "fd00::/8");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed_back(ip in any::<IpAddr>(), port in any::<u16>(), host in "[a-z*][a-z0-9._-]{0,40}x") {
            for authority in [
                Authority::Addr(canonical(SocketAddr::new(ip, port))),
                Authority::Host { host: host.as_str().into(), port },
            ] {
                prop_assert_eq!(authority.to_string().parse(), Ok(authority));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,40}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse(), Ok(authority));
            }
        }
    }
}
