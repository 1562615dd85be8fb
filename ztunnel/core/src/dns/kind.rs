// SPDX-License-Identifier: Apache-2.0
//! Record types, and their names in metrics and logs.

/// An IPv4 address.
pub const A: u16 = 1;
/// The name that this one stands for.
pub const CNAME: u16 = 5;
/// The start of a zone.
pub const SOA: u16 = 6;
/// An IPv6 address.
pub const AAAA: u16 = 28;
/// EDNS.
pub const OPT: u16 = 41;
/// A zone's changes.
pub const IXFR: u16 = 251;
/// A whole zone.
pub const AXFR: u16 = 252;
/// The class of the Internet.
pub const IN: u16 = 1;

/// What clients ask for, in lower case. The rest is `other`, so that a client cannot make up any number of metric series.
#[must_use]
pub fn label(kind: u16) -> &'static str {
    match kind {
        A => "a",
        2 => "ns",
        CNAME => "cname",
        SOA => "soa",
        10 => "null",
        12 => "ptr",
        13 => "hinfo",
        15 => "mx",
        16 => "txt",
        24 => "sig",
        25 => "key",
        AAAA => "aaaa",
        33 => "srv",
        35 => "naptr",
        39 => "dname",
        OPT => "opt",
        43 => "ds",
        44 => "sshfp",
        46 => "rrsig",
        47 => "nsec",
        48 => "dnskey",
        50 => "nsec3",
        51 => "nsec3param",
        52 => "tlsa",
        59 => "cds",
        60 => "cdnskey",
        61 => "openpgpkey",
        62 => "csync",
        64 => "svcb",
        65 => "https",
        250 => "tsig",
        IXFR => "ixfr",
        AXFR => "axfr",
        255 => "any",
        257 => "caa",
        _ => "other",
    }
}
