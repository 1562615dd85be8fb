// SPDX-License-Identifier: Apache-2.0
//! DNS messages, as far as a proxy reads them: the header, one question, and EDNS (RFC 1035, section 4; RFC 6891).

use super::{kind, name};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// Bytes of a message over UDP if the client does not say that it takes more (RFC 1035, section 2.3.4).
pub const UDP_DEFAULT: usize = 512;
/// Bytes of any message.
pub const MAX_MESSAGE: usize = 65_535;

/// An ordinary question.
const OPCODE_QUERY: u8 = 0;

/// Response codes that we use ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// The answer follows.
    NoError,
    /// The message cannot be read.
    FormErr,
    /// There is no answer now.
    ServFail,
    /// We do not do this.
    Refused,
    /// An EDNS version that we do not know (RFC 6891, section 6.1.3).
    BadVers,
}

impl Rcode {
    /// Its number; the upper eight bits are EDNS'.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }
}

/// A response code in the words of RFC 1035 and its successors.
#[must_use]
pub fn rcode_text(rcode: u8) -> &'static str {
    match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        _ => "an unknown response code",
    }
}

/// The first twelve bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Ties the response to the query.
    pub id: u16,
    /// QR, opcode, AA, TC, RD.
    pub flags: u8,
    /// RA, Z, AD, CD, response code.
    pub more: u8,
    /// How many questions, answers, authority and additional records there are.
    pub counts: [u16; 4],
}

impl Header {
    /// Reads it, if it is there.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = message.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self {
            id: word(0),
            flags: header[2],
            more: header[3],
            counts: [word(4), word(6), word(8), word(10)],
        })
    }

    /// It answers a question.
    #[must_use]
    pub fn is_response(self) -> bool {
        self.flags & 0x80 != 0
    }

    /// What is wanted: 0 is a query.
    #[must_use]
    pub fn opcode(self) -> u8 {
        self.flags >> 3 & 0xf
    }

    /// There was more than fitted.
    #[must_use]
    pub fn is_truncated(self) -> bool {
        self.flags & 0x02 != 0
    }

    /// How it went, without EDNS' upper bits.
    #[must_use]
    pub fn rcode(self) -> u8 {
        self.more & 0xf
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The name as it came: labels with lengths, its end included.
    pub name: &'a [u8],
    /// The record type ([`kind`]).
    pub kind: u16,
    /// The class; 1 is the Internet.
    pub class: u16,
}

impl<'a> Question<'a> {
    /// Reads one at the start of `bytes`; gives the bytes it takes.
    fn parse(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let length = name::length(bytes)?;
        let (name, rest) = bytes.split_at_checked(length)?;
        let &[kind_high, kind_low, class_high, class_low] = rest.first_chunk()?;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let class = u16::from_be_bytes([class_high, class_low]);
        Some((Self { name, kind, class }, length + 4))
    }

    /// The same question; the case of letters does not matter (RFC 4343).
    fn is_same(&self, other: &Question<'_>) -> bool {
        self.kind == other.kind && self.class == other.class && self.name.eq_ignore_ascii_case(other.name)
    }
}

/// The client's EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Bytes that it takes over UDP.
    pub payload: u16,
    /// 0 is the only one there is.
    pub version: u8,
    /// It wants signatures.
    pub dnssec_ok: bool,
}

/// A message that has no answer but this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// Nobody asked anything: too short, or itself a response.
    Ignore,
    /// To be answered with nothing but this code.
    Respond(Rcode),
}

/// A message from a client.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// All of it.
    pub message: &'a [u8],
    /// Its header.
    pub header: Header,
    /// Its question; `None` only for messages that are not queries: they may be anything.
    pub question: Option<Question<'a>>,
    /// Its EDNS.
    pub edns: Option<Edns>,
}

impl<'a> Query<'a> {
    /// Reads a message. A query is read whole; any other operation is for the resolver to understand.
    ///
    /// # Errors
    /// What it is answered with instead.
    pub fn parse(message: &'a [u8]) -> Result<Self, Unanswerable> {
        let header = Header::parse(message).filter(|header| !header.is_response());
        let header = header.ok_or(Unanswerable::Ignore)?;
        let rest = message.get(HEADER..).unwrap_or_default();
        let question = (header.counts[0] > 0).then(|| Question::parse(rest)).flatten();
        if header.opcode() != OPCODE_QUERY {
            let question = question.map(|(question, _)| question);
            return Ok(Self { message, header, question, edns: None });
        }
        if header.counts[0] != 1 {
            return Err(Unanswerable::Respond(Rcode::ServFail));
        }
        let malformed = Unanswerable::Respond(Rcode::FormErr);
        let (question, length) = question.ok_or(malformed)?;
        let mut records = Records { header, message, at: HEADER + length, left: header.records() };
        let mut edns = None;
        while let Some(record) = records.next().map_err(|_malformed| malformed)? {
            if record.kind == kind::OPT {
                // RFC 6891, section 6.1.1: at the root, and only one.
                if edns.replace(record.edns()).is_some() || !record.at_root {
                    return Err(malformed);
                }
            }
        }
        if records.at != message.len() {
            return Err(malformed);
        }
        if edns.is_some_and(|edns| edns.version != 0) {
            return Err(Unanswerable::Respond(Rcode::BadVers));
        }
        Ok(Self { message, header, question: Some(question), edns })
    }

    /// It asks something, rather than changing or announcing it.
    #[must_use]
    pub fn is_question(&self) -> bool {
        self.header.opcode() == OPCODE_QUERY
    }

    /// It asks for more than one message can hold (RFC 5936, RFC 1995).
    #[must_use]
    pub fn is_transfer(&self) -> bool {
        self.question.is_some_and(|question| matches!(question.kind, kind::AXFR | kind::IXFR))
    }

    /// Bytes of a response that the client takes over UDP.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_DEFAULT, |edns| usize::from(edns.payload).max(UDP_DEFAULT))
    }

    /// Whether `response` answers this query when it went out as `id`: the same operation and question. Servers may leave
    /// the question out of what is no plain answer.
    #[must_use]
    pub fn is_answered_by(&self, id: u16, response: &[u8]) -> bool {
        let Some(header) = Header::parse(response) else { return false };
        if !header.is_response() || header.id != id || header.opcode() != self.header.opcode() {
            return false;
        }
        let theirs = response.get(HEADER..).and_then(Question::parse).map(|(question, _)| question);
        match (&self.question, theirs) {
            _ if header.counts[0] == 0 => !self.is_question() || header.rcode() != 0,
            (Some(ours), Some(theirs)) => ours.is_same(&theirs),
            (None, _) => true,
            (Some(_), None) => false,
        }
    }
}

impl Header {
    fn records(self) -> u32 {
        self.counts[1..].iter().map(|&count| u32::from(count)).sum()
    }
}

/// One record, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its type.
    pub kind: u16,
    /// Its class; of EDNS: the payload size.
    pub class: u16,
    /// Its time to live in seconds; of EDNS: upper bits of the response code, version, flags.
    pub ttl: u32,
    /// What it says.
    pub data: &'a [u8],
    at_root: bool,
}

impl Record<'_> {
    fn edns(&self) -> Edns {
        let [_rcode, version, flags, _] = self.ttl.to_be_bytes();
        Edns { payload: self.class, version, dnssec_ok: flags & 0x80 != 0 }
    }
}

/// A message that ends in the middle of something, or holds a name that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be read")]
pub struct Malformed;

/// Steps through the records of a message, all sections alike.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// Of the message.
    pub header: Header,
    message: &'a [u8],
    at: usize,
    left: u32,
}

impl<'a> Records<'a> {
    /// The records of a message with at most one question.
    ///
    /// # Errors
    /// It is too short, its question is none, or there are several.
    pub fn of(message: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(message).ok_or(Malformed)?;
        let question = match header.counts[0] {
            0 => 0,
            1 => message.get(HEADER..).and_then(Question::parse).ok_or(Malformed)?.1,
            _ => return Err(Malformed),
        };
        Ok(Self { header, message, at: HEADER + question, left: header.records() })
    }

    /// The next one.
    ///
    /// # Errors
    /// There should be one, and there is something else.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot fail")]
    pub fn next(&mut self) -> Result<Option<Record<'a>>, Malformed> {
        if self.left == 0 {
            return Ok(None);
        }
        let rest = self.message.get(self.at..).ok_or(Malformed)?;
        let name = name::skip(rest).ok_or(Malformed)?;
        let fixed: &[u8; 10] = rest.get(name..).and_then(<[u8]>::first_chunk).ok_or(Malformed)?;
        let &[k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = fixed;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let start = name + fixed.len();
        let data = rest.get(start..start + length).ok_or(Malformed)?;
        self.at += start + length;
        self.left -= 1;
        Ok(Some(Record {
            kind: u16::from_be_bytes([k0, k1]),
            class: u16::from_be_bytes([c0, c1]),
            ttl: u32::from_be_bytes([t0, t1, t2, t3]),
            data,
            at_root: rest.first() == Some(&0),
        }))
    }
}

/// The addresses of `kind` in the answer section of a response, in its order.
///
/// # Errors
/// It cannot be read.
pub fn addresses(response: &[u8], kind: u16) -> Result<Vec<std::net::IpAddr>, Malformed> {
    let mut records = Records::of(response)?;
    let mut found = Vec::new();
    for _ in 0..records.header.counts[1] {
        let Some(record) = records.next()? else { break };
        if record.kind != kind || record.class != kind::IN {
            continue;
        }
        if let Ok(v4) = <[u8; 4]>::try_from(record.data) {
            found.push(v4.into());
        } else if let Ok(v6) = <[u8; 16]>::try_from(record.data) {
            found.push(v6.into());
        }
    }
    Ok(found)
}

/// How long the answer section of a response holds, in seconds: the shortest of its records' times. None if it is empty.
///
/// # Errors
/// It cannot be read.
pub fn lifetime(response: &[u8]) -> Result<Option<u32>, Malformed> {
    let mut records = Records::of(response)?;
    let mut shortest = None;
    for _ in 0..records.header.counts[1] {
        let Some(record) = records.next()? else { break };
        shortest = Some(shortest.map_or(record.ttl, |ttl: u32| ttl.min(record.ttl)));
    }
    Ok(shortest)
}

/// A query for one type of one host, recursion desired. `None` if the name does not fit.
#[must_use]
pub fn question(host: &str, kind: u16, id: u16) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + host.len() + 6);
    message.extend(id.to_be_bytes());
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name::encode(host.trim_end_matches('.'))?);
    message.extend(kind.to_be_bytes());
    message.extend(kind::IN.to_be_bytes());
    Some(message)
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}
