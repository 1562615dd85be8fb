// SPDX-License-Identifier: Apache-2.0
//! The PROXY header, version 2, for applications that take tunneled connections themselves, such as waypoints.
//!
//! Source: HAProxy's `proxy-protocol.txt`, section 2.2; the type for the identity is Istio's (`ApplicationTunnel` in
//! workload.proto).

use std::net::SocketAddr;

use crate::addr::canonical;
use crate::identity::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// The peer's SPIFFE ID, as mutual TLS proved it.
pub const TLV_PEER_IDENTITY: u8 = 0xD0;

/// Bytes of two IPv6 addresses with ports.
const MAX_ADDRESSES: u16 = 36;

/// The header of a connection from `source` to `destination`. Addresses of two families have no form in the protocol and
/// are left out, the identity is not.
#[must_use]
pub fn header(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let mut body = Vec::new();
    let family = match (canonical(source), canonical(destination)) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            body.extend(from.ip().octets());
            body.extend(to.ip().octets());
            0x11
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            body.extend(from.ip().octets());
            body.extend(to.ip().octets());
            0x21
        }
        _ => 0x01,
    };
    if family != 0x01 {
        body.extend(source.port().to_be_bytes());
        body.extend(destination.port().to_be_bytes());
    }
    // An identity is as long as a certificate allows; one that no header can hold is as good as none.
    let identity = identity.map(ToString::to_string).unwrap_or_default();
    if let Ok(length) = u16::try_from(identity.len())
        && (1..=u16::MAX - MAX_ADDRESSES - 3).contains(&length)
    {
        body.push(TLV_PEER_IDENTITY);
        body.extend(length.to_be_bytes());
        body.extend(identity.into_bytes());
    }
    let length = u16::try_from(body.len()).expect("checked for the only part without a bound");
    let mut header = Vec::with_capacity(16 + body.len());
    header.extend(SIGNATURE);
    header.extend([PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[track_caller]
    fn check(source: &str, destination: &str, identity: Option<&str>, expected: &str) {
        let identity: Option<Identity> = identity.map(|text| text.parse().unwrap());
        let header = header(source.parse().unwrap(), destination.parse().unwrap(), identity.as_ref());
        assert_eq!(hex(&header), format!("0d0a0d0a000d0a515549540a21{expected}"), "{source} {destination}");
    }

    #[test]
    fn a_header_names_both_ends_and_the_identity() {
        check("10.0.0.1:40000", "10.96.0.1:80", None, "11000c0a0000010a6000019c400050");
        check("[::ffff:10.0.0.1]:40000", "10.96.0.1:80", None, "11000c0a0000010a6000019c400050");
        let (from, to) = ("fd0000000000000000000000000000019c40", "fd000000000000000000000000000002");
        let (from_ip, port) = from.split_at(32);
        check("[fd00::1]:40000", "[fd00::2]:80", None, &format!("210024{from_ip}{to}{port}0050"));
        let identity = "spiffe://td/ns/n/sa/s";
        let tlv = format!("d00015{}", hex(identity.as_bytes()));
        check("10.0.0.1:1", "10.0.0.2:2", Some(identity), &format!("1100240a0000010a00000200010002{tlv}"));
        check("10.0.0.1:1", "[fd00::2]:2", Some(identity), &format!("010018{tlv}"));
    }

    #[test]
    fn an_identity_that_is_too_long_is_left_out() {
        let long = Identity {
            trust_domain: "t".repeat(70_000).into(),
            namespace: "n".into(),
            service_account: "s".into(),
        };
        let header = header("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), Some(&long));
        assert_eq!(header.len(), 16 + 12);
    }
}
