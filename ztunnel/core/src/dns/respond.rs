// SPDX-License-Identifier: Apache-2.0
//! Our own responses as messages (data-plane contract, section 5.3).

use std::net::IpAddr;

use super::wire::{HEADER, Header, Query, Rcode, UDP_DEFAULT, Unanswerable};
use super::{Edns, Records, kind, name};

/// How long an address may be remembered, in seconds.
pub const TTL: u32 = 30;
/// How long it may be remembered that there is none, in seconds: a headless service may get its first endpoint any moment.
pub const NEGATIVE_TTL: u32 = 5;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
/// Opcode and RD, which are the client's.
const KEPT: u8 = 0x79;
const RA: u8 = 0x80;
/// CD, which is the client's.
const CD: u8 = 0x10;
/// The name of the question, by reference.
const QUESTION: [u8; 2] = [0xc0, 0x0c];
/// Bytes of an EDNS record without options.
const OPT_LENGTH: usize = 11;

/// A message under construction, never longer than its limit.
struct Writer {
    message: Vec<u8>,
    /// Bytes that may be used, those of the EDNS record not counted.
    limit: usize,
    edns: Option<Edns>,
}

impl Writer {
    /// Header and question; `limit` is at least [`UDP_DEFAULT`], in which both have room.
    fn new(query: &Query<'_>, limit: usize) -> Self {
        let mut message = Vec::with_capacity(UDP_DEFAULT);
        let header = query.header;
        message.extend(header.id.to_be_bytes());
        message.extend([QR | AA | header.flags & KEPT, RA | header.more & CD]);
        message.extend([0; 8]);
        if let Some(question) = &query.question {
            message.extend(question.name);
            message.extend(question.kind.to_be_bytes());
            message.extend(question.class.to_be_bytes());
        }
        let limit = limit.max(UDP_DEFAULT) - query.edns.map_or(0, |_| OPT_LENGTH);
        let mut writer = Self { message, limit, edns: query.edns };
        writer.set_count(0, u16::from(query.question.is_some()));
        writer
    }

    fn set_count(&mut self, section: usize, count: u16) {
        if let Some(field) = self.message.get_mut(4 + 2 * section..).and_then(<[u8]>::first_chunk_mut) {
            *field = count.to_be_bytes();
        }
    }

    /// A record of the Internet; false if it does not fit.
    fn record(&mut self, owner: &[u8], kind: u16, ttl: u32, data: &[&[u8]]) -> bool {
        let length: usize = data.iter().map(|part| part.len()).sum();
        let Ok(size) = u16::try_from(length) else { return false };
        if self.message.len() + owner.len() + 10 + length > self.limit {
            return false;
        }
        self.message.extend(owner);
        self.message.extend(kind.to_be_bytes());
        self.message.extend(kind::IN.to_be_bytes());
        self.message.extend(ttl.to_be_bytes());
        self.message.extend(size.to_be_bytes());
        self.message.extend(data.iter().copied().flatten());
        true
    }

    fn truncated(&mut self) {
        if let Some(flags) = self.message.get_mut(2) {
            *flags |= TC;
        }
    }

    /// Ends with what we say about EDNS: the client's own words.
    fn finish(mut self) -> Vec<u8> {
        if let Some(edns) = self.edns {
            let payload = edns.payload.max(512);
            let flags = if edns.dnssec_ok { 0x80 } else { 0 };
            self.message.push(0);
            self.message.extend(kind::OPT.to_be_bytes());
            self.message.extend(payload.to_be_bytes());
            self.message.extend([0, edns.version, flags, 0, 0, 0]);
            self.set_count(3, 1);
        }
        self.message
    }
}

/// Addresses, as many as fit into `limit` bytes; if not all do, the response says so.
#[must_use]
pub fn found(query: &Query<'_>, records: &Records, limit: usize) -> Vec<u8> {
    let mut writer = Writer::new(query, limit);
    let mut owner = QUESTION;
    let mut count = 0;
    if let Some(target) = records.canonical.as_deref().and_then(name::encode) {
        // Its data begins after owner, type, class, TTL and length.
        let at = writer.message.len() + QUESTION.len() + 10;
        if !writer.record(&QUESTION, kind::CNAME, TTL, &[&target]) {
            writer.truncated();
            return writer.finish();
        }
        count += 1;
        // A question ends long before the 16,384 bytes that can be pointed at.
        let pointer = u16::try_from(at).unwrap_or_default() | 0xc000;
        owner = pointer.to_be_bytes();
    }
    for address in &records.addresses {
        let fits = match address {
            IpAddr::V4(v4) => writer.record(&owner, kind::A, TTL, &[&v4.octets()]),
            IpAddr::V6(v6) => writer.record(&owner, kind::AAAA, TTL, &[&v6.octets()]),
        };
        if !fits {
            writer.truncated();
            break;
        }
        count += 1;
    }
    writer.set_count(1, count);
    writer.finish()
}

/// The name exists and has no such record. The SOA says how long that may be remembered (RFC 2308, section 3): without
/// one, resolvers may not remember it at all.
#[must_use]
pub fn no_data(query: &Query<'_>, domain: &str, limit: usize) -> Vec<u8> {
    let mut writer = Writer::new(query, limit);
    let names = [format!("ns.dns.{domain}"), format!("hostmaster.{domain}")].map(|name| name::encode(&name));
    if let [Some(server), Some(mailbox)] = names {
        // Serial, refresh, retry, expire, minimum.
        let numbers: Vec<u8> =
            [1, 7200, 1800, 86_400, NEGATIVE_TTL].into_iter().flat_map(u32::to_be_bytes).collect();
        if writer.record(&QUESTION, kind::SOA, NEGATIVE_TTL, &[&server, &mailbox, &numbers]) {
            writer.set_count(2, 1);
        }
    }
    writer.finish()
}

/// Nothing but a code, for a query that was understood.
#[must_use]
pub fn error(query: &Query<'_>, rcode: Rcode) -> Vec<u8> {
    let question = query.question.map(|question| HEADER + question.name.len() + 4);
    bare(query.message, query.header, question, rcode)
}

/// What a message gets that has no answer, if anything.
#[must_use]
pub fn unanswerable(message: &[u8], why: Unanswerable) -> Option<Vec<u8>> {
    match why {
        Unanswerable::Ignore => None,
        Unanswerable::Respond(rcode) => {
            Header::parse(message).map(|header| bare(message, header, None, rcode))
        }
    }
}

fn bare(message: &[u8], header: Header, question_end: Option<usize>, rcode: Rcode) -> Vec<u8> {
    let question = question_end.and_then(|end| message.get(HEADER..end));
    let [high, low] = rcode.number().to_be_bytes();
    let mut response = Vec::with_capacity(HEADER + question.map_or(0, <[u8]>::len));
    response.extend(header.id.to_be_bytes());
    response.extend([QR | header.flags & KEPT, header.more & CD | low & 0xf]);
    let edns = high != 0 || low > 0xf;
    response.extend([0, u8::from(question.is_some()), 0, 0, 0, 0, 0, u8::from(edns)]);
    response.extend(question.unwrap_or_default());
    if edns {
        // The upper eight of twelve bits (RFC 6891, section 6.1.3).
        let upper = high << 4 | low >> 4;
        response.push(0);
        response.extend(kind::OPT.to_be_bytes());
        response.extend([0x02, 0x00, upper, 0, 0, 0, 0, 0]);
    }
    response
}

/// A resolver's response cut to what the client takes over UDP: header and question, and the word that there is more.
#[must_use]
pub fn cut(query: &Query<'_>, response: &[u8]) -> Vec<u8> {
    let mut short = error(query, Rcode::NoError);
    if let (Some(flags), Some(theirs)) = (short.get_mut(2..4), response.get(2..4)) {
        flags.copy_from_slice(theirs);
        flags[0] |= TC;
    }
    short
}
