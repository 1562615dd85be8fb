// SPDX-License-Identifier: Apache-2.0
//! The SOCKS5 handshake (RFC 1928): CONNECT without authentication.
//!
//! The machine says how many bytes it wants next, and never one that belongs to the connection itself.
//! Source: data-plane contract, section 5.7.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addr::canonical;

/// Where a SOCKS5 client connects, on 127.0.0.1 of its pod.
pub const PORT: u16 = 15080;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Where the client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Addr(SocketAddr),
    /// A name, to be resolved, and a port.
    Host(String, u16),
}

/// Codes of a reply (RFC 1928, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Go ahead.
    Succeeded,
    /// Anything that has no code of its own.
    Failure,
    /// We do not go there.
    NotAllowed,
    /// The name could not be resolved.
    HostUnreachable,
    /// Something else than CONNECT.
    CommandNotSupported,
    /// A kind of address that we do not know.
    AddressNotSupported,
}

/// A reply with this code. The address in it is always 0.0.0.0:0: whoever wants to know ours may ask the kernel.
#[must_use]
pub fn reply(code: Code) -> [u8; 10] {
    let code = match code {
        Code::Succeeded => 0,
        Code::Failure => 1,
        Code::NotAllowed => 2,
        Code::HostUnreachable => 4,
        Code::CommandNotSupported => 7,
        Code::AddressNotSupported => 8,
    };
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Why a handshake ends without a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another version, or no SOCKS at all.
    #[error("expected SOCKS version 5, got {0}")]
    Version(u8),
    /// The client insists on authentication.
    #[error("the client does not offer to go without authentication")]
    Authentication,
    /// BIND, UDP ASSOCIATE, or nonsense.
    #[error("expected the command CONNECT (1), got {0}")]
    Command(u8),
    /// Neither IPv4, IPv6 nor a name.
    #[error("expected address type 1, 3 or 4, got {0}")]
    AddressType(u8),
    /// A name that is none.
    #[error("the name is not a host name")]
    Name,
}

impl Refusal {
    /// What the client is told before the end; nothing where it would not understand us.
    #[must_use]
    pub fn reply(self) -> Vec<u8> {
        match self {
            Self::Version(_) => Vec::new(),
            Self::Authentication => vec![VERSION, NO_ACCEPTABLE_METHOD],
            Self::Command(_) => reply(Code::CommandNotSupported).into(),
            Self::AddressType(_) => reply(Code::AddressNotSupported).into(),
            Self::Name => reply(Code::HostUnreachable).into(),
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read exactly this many bytes, at least one, and hand them over.
    Read(usize),
    /// Send this, then read as many bytes.
    Reply([u8; 2], usize),
    /// The client wants to go there, and waits for a [`reply`].
    Connect(Target),
    /// Send [`Refusal::reply`] and end.
    Refuse(Refusal),
}

/// What the bytes will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Greeting,
    Methods,
    Request,
    NameLength,
    Name(usize),
    V4,
    V6,
}

/// A handshake, as far as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Handshake(Expect);

impl Handshake {
    /// A new one, and how many bytes it wants first.
    #[must_use]
    pub fn start() -> (Self, usize) {
        (Self(Expect::Greeting), 2)
    }

    /// Takes the bytes that it asked for.
    #[must_use]
    pub fn handle(&mut self, bytes: &[u8]) -> Step {
        self.step(bytes).unwrap_or_else(Step::Refuse)
    }

    fn read(&mut self, expect: Expect, bytes: usize) -> Step {
        self.0 = expect;
        Step::Read(bytes)
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        let at = |index: usize| bytes.get(index).copied().unwrap_or_default();
        let is_five = |version: u8| if version == VERSION { Ok(()) } else { Err(Refusal::Version(version)) };
        match self.0 {
            Expect::Greeting => {
                is_five(at(0))?;
                match at(1) {
                    0 => Err(Refusal::Authentication),
                    methods => Ok(self.read(Expect::Methods, methods.into())),
                }
            }
            Expect::Methods if bytes.contains(&NO_AUTHENTICATION) => {
                self.0 = Expect::Request;
                Ok(Step::Reply([VERSION, NO_AUTHENTICATION], 4))
            }
            Expect::Methods => Err(Refusal::Authentication),
            Expect::Request => {
                is_five(at(0))?;
                match (at(1), at(3)) {
                    (CONNECT, 1) => Ok(self.read(Expect::V4, 4 + 2)),
                    (CONNECT, 3) => Ok(self.read(Expect::NameLength, 1)),
                    (CONNECT, 4) => Ok(self.read(Expect::V6, 16 + 2)),
                    (CONNECT, kind) => Err(Refusal::AddressType(kind)),
                    (command, _) => Err(Refusal::Command(command)),
                }
            }
            Expect::NameLength => match usize::from(at(0)) {
                0 => Err(Refusal::Name),
                length => Ok(self.read(Expect::Name(length), length + 2)),
            },
            Expect::Name(length) => {
                let (name, port) = bytes.split_at_checked(length).ok_or(Refusal::Name)?;
                let host =
                    std::str::from_utf8(name).ok().filter(|name| is_host(name)).ok_or(Refusal::Name)?;
                // Some clients send every address as a name.
                let target = match host.parse() {
                    Ok(ip) => Target::Addr(canonical(SocketAddr::new(ip, word(port)))),
                    Err(_) => Target::Host(host.to_owned(), word(port)),
                };
                Ok(Step::Connect(target))
            }
            Expect::V4 => Ok(addr::<4>(bytes, |octets| Ipv4Addr::from(octets).into())),
            Expect::V6 => Ok(addr::<16>(bytes, |octets| Ipv6Addr::from(octets).into())),
        }
    }
}

/// What may stand in a log line as it is.
fn is_host(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':'))
}

fn addr<const N: usize>(bytes: &[u8], ip: impl Fn([u8; N]) -> std::net::IpAddr) -> Step {
    match bytes.split_first_chunk() {
        Some((octets, port)) => {
            Step::Connect(Target::Addr(canonical(SocketAddr::new(ip(*octets), word(port)))))
        }
        None => Step::Refuse(Refusal::Name),
    }
}

fn word(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything the client sends; what it is told, and where it gets.
    fn run(mut input: &[u8]) -> (Vec<u8>, Option<Step>, usize) {
        let (mut handshake, mut wanted) = Handshake::start();
        let mut said = Vec::new();
        loop {
            assert!(wanted > 0 && wanted <= 257, "{wanted}");
            let Some((bytes, rest)) = input.split_at_checked(wanted) else {
                return (said, None, input.len());
            };
            input = rest;
            match handshake.handle(bytes) {
                Step::Read(next) => wanted = next,
                Step::Reply(bytes, next) => {
                    said.extend(bytes);
                    wanted = next;
                }
                Step::Refuse(refusal) => {
                    said.extend(refusal.reply());
                    return (said, Some(Step::Refuse(refusal)), input.len());
                }
                end @ Step::Connect(_) => return (said, Some(end), input.len()),
            }
        }
    }

    #[track_caller]
    fn check(request: &[u8], target: Target) {
        let input = [b"\x05\x02\x02\x00", request, b"early"].concat();
        assert_eq!(run(&input), (vec![5, 0], Some(Step::Connect(target)), 5), "what follows is not ours");
    }

    #[test]
    fn addresses_and_names_are_understood() {
        check(b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", Target::Addr("10.0.0.1:80".parse().unwrap()));
        check(b"\x05\x01\x00\x03\x03a.b\x1f\x90", Target::Host("a.b".into(), 8080));
        check(b"\x05\x01\x00\x03\x0810.0.0.1\x00\x50", Target::Addr("10.0.0.1:80".parse().unwrap()));
        let v6 = [&b"\x05\x01\x00\x04"[..], &[0xfd], &[0; 14], &[1, 0, 80]].concat();
        check(&v6, Target::Addr("[fd00::1]:80".parse().unwrap()));
        let mapped = [&b"\x05\x01\x00\x04"[..], &[0; 10], &[0xff, 0xff, 10, 0, 0, 1, 0, 80]].concat();
        check(&mapped, Target::Addr("10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn every_refusal_says_why_in_the_words_of_the_phase() {
        for (input, refusal, said) in [
            (&b"\x04\x01"[..], Refusal::Version(4), &b""[..]),
            (b"GET / HTTP/1.1", Refusal::Version(b'G'), b""),
            (b"\x05\x00", Refusal::Authentication, b"\x05\xff"),
            (b"\x05\x01\x02", Refusal::Authentication, b"\x05\xff"),
            (b"\x05\x01\x00\x05\x02\x00\x01", Refusal::Command(2), b"\x05\x00\x05\x07\x00\x01\0\0\0\0\0\0"),
            (
                b"\x05\x01\x00\x05\x01\x00\x09",
                Refusal::AddressType(9),
                b"\x05\x00\x05\x08\x00\x01\0\0\0\0\0\0",
            ),
            (b"\x05\x01\x00\x05\x01\x00\x03\x00", Refusal::Name, b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0"),
            (
                b"\x05\x01\x00\x05\x01\x00\x03\x02a\n\0\0",
                Refusal::Name,
                b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0",
            ),
        ] {
            let (spoken, end, _) = run(input);
            assert_eq!((spoken.as_slice(), end), (said, Some(Step::Refuse(refusal))), "{input:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end_or_want_more(input in prop::collection::vec(any::<u8>(), 0..600)) {
            let (said, end, _) = run(&input);
            prop_assert!(said.len() <= 12);
            prop_assert!(end.is_some() || input.len() < 600);
        }
    }
}
