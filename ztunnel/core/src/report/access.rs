// SPDX-License-Identifier: Apache-2.0
//! The access log: one line when a connection opens, one when it ends, one when it never began.
//!
//! Names, order and encoding of the fields are Istio's; `path` and `path.reason` at the end are ours.
//! Absent values are left out, not called unknown. Whatever a peer wrote is quoted and escaped, so that
//! one connection is one line.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::labels::{Facts, Reporter, Security};
use crate::addr::Authority;
use crate::hbone::Baggage;
use crate::identity::Identity;
use crate::mesh::Workload;

/// The log target, which `RUST_LOG` and `/logging` know.
pub const TARGET: &str = "access";

/// Every field in the order of the line, and what it says. What is not known is left out.
pub const FIELDS: [(&str, &str); 19] = [
    ("src.addr", "the client's address and port"),
    ("src.workload", "the client's pod, or its canonical service"),
    ("src.namespace", "its namespace"),
    ("src.identity", "its SPIFFE identity, where mutual TLS proved it"),
    ("src.cluster", "its cluster"),
    ("dst.addr", "outbound the next hop; inbound our own HBONE end; in plain TCP the original destination"),
    ("dst.hbone_addr", "the `:authority` of the CONNECT request, for HBONE"),
    ("dst.service", "the host name of the service that the client addressed"),
    ("dst.workload", "the server's pod, or its canonical service"),
    ("dst.namespace", "its namespace"),
    ("dst.identity", "its SPIFFE identity, for mutual TLS"),
    ("dst.cluster", "its cluster"),
    ("direction", "`outbound` or `inbound`, as seen from the pod"),
    ("bytes_sent", "bytes that the pod sent, fast path included"),
    ("bytes_recv", "bytes that the pod was sent, fast path included"),
    ("duration", "from accept to the end, in whole milliseconds with `ms` behind"),
    ("error", "what went wrong; a denial names the policy"),
    ("path", "only here: `ebpf` if messages of the local hop took the fast path, else `tcp`"),
    ("path.reason", "only here: why it is `tcp`"),
];

/// What the line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The connection counts as opened.
    Opened,
    /// The connection ended, one way or the other.
    Complete,
    /// The connection was turned away before it counted.
    Failed,
}

impl Event {
    /// The line's message.
    pub fn message(self) -> &'static str {
        match self {
            Self::Opened => "connection opened",
            Self::Complete => "connection complete",
            Self::Failed => "connection failed",
        }
    }
}

/// How much the line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Off by default.
    Debug,
    /// A connection went as it should.
    Info,
    /// A connection was turned away.
    Warn,
    /// A connection ended badly.
    Error,
}

impl LogLevel {
    /// The level as the line has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Party<'a> {
    /// Address and port.
    pub addr: Option<SocketAddr>,
    /// The pod's name, or the canonical service of a workload that is no pod of ours.
    pub workload: Option<&'a str>,
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// Its identity; shown only for mutual TLS.
    pub identity: Option<Identity>,
    /// Its cluster.
    pub cluster: Option<&'a str>,
}

impl<'a> Party<'a> {
    /// What the mesh, or else the peer itself, says about an end.
    pub fn new(addr: SocketAddr, workload: Option<&'a Workload>, derived: Option<&'a Baggage>) -> Self {
        let mut party = Self { addr: Some(addr), ..Self::default() };
        if let Some(workload) = workload {
            party.workload = present(&workload.name).or_else(|| present(&workload.canonical_name));
            party.namespace = present(&workload.namespace);
            party.cluster = present(&workload.cluster_id);
        } else if let Some(baggage) = derived {
            party.workload = baggage.service_name.as_deref();
            party.namespace = baggage.namespace.as_deref();
            party.cluster = baggage.cluster.as_deref();
        }
        party
    }
}

impl<'a> Party<'a> {
    /// The server's end. What it says about itself, from behind a network gateway, names its workload.
    fn behind(addr: SocketAddr, facts: &Facts<'a>) -> Self {
        let mut party = Self::new(addr, facts.destination, facts.derived_destination);
        if facts.destination.is_none()
            && let Some((_, workload)) = facts.derived_destination.and_then(|it| it.workload.as_ref())
        {
            party.workload = Some(workload);
        }
        party
    }
}

fn present(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Bytes of the application connection, fast path included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// By this side.
    pub sent: u64,
    /// To this side.
    pub received: u64,
}

/// Which way the bytes between application and proxy took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath<'a> {
    /// Through the TCP/IP stack, and why.
    Tcp(&'a str),
    /// From socket to socket in the kernel.
    Ebpf,
}

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct AccessEntry<'a> {
    /// What it is about.
    pub event: Event,
    /// The client's end.
    pub source: Party<'a>,
    /// The server's end: next hop (outbound), our own HBONE end (inbound), original destination (passthrough).
    pub destination: Party<'a>,
    /// The `:authority`, for HBONE.
    pub hbone_addr: Option<&'a Authority>,
    /// The hostname of the service that the source addressed.
    pub service: Option<&'a str>,
    /// Which side we are.
    pub reporter: Reporter,
    /// What was carried.
    pub bytes: Option<Bytes>,
    /// For how long.
    pub duration: Option<Duration>,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// Which way the bytes took.
    pub path: Option<Datapath<'a>>,
    /// How much it matters that a connection opens.
    pub opening: LogLevel,
}

/// One field's value, with the encoding it needs.
#[derive(Clone, Copy)]
enum Value<'a> {
    /// Printed as it is: addresses.
    Plain(&'a dyn fmt::Display),
    /// Quoted and escaped.
    Quoted(&'a dyn fmt::Display),
    Number(u64),
}

type Visit<'v> = dyn FnMut(&'static str, Value<'_>) -> fmt::Result + 'v;

impl<'a> AccessEntry<'a> {
    /// The line of a connection that was turned away early.
    pub fn failed(reporter: Reporter, source: SocketAddr, destination: SocketAddr, error: &'a str) -> Self {
        let end = |addr| Party { addr: Some(addr), ..Party::default() };
        Self {
            event: Event::Failed,
            source: end(source),
            destination: end(destination),
            hbone_addr: None,
            service: None,
            reporter,
            bytes: None,
            duration: None,
            error: Some(error),
            path: None,
            opening: LogLevel::Debug,
        }
    }

    /// The line of a connection that opens; complete it for the line of its end.
    pub fn opened(facts: &Facts<'a>, source: SocketAddr, destination: SocketAddr) -> Self {
        let mut entry = Self {
            event: Event::Opened,
            source: Party::new(source, facts.source, facts.derived_source),
            destination: Party::behind(destination, facts),
            service: facts.service.and_then(|service| present(&service.hostname)),
            ..Self::failed(facts.reporter, source, destination, "")
        };
        entry.error = None;
        if facts.security == Security::MutualTls {
            entry.source.identity = facts.source_principal.cloned();
            entry.destination.identity =
                facts.destination_principal.cloned().or_else(|| facts.destination.map(Workload::identity));
        }
        entry
    }

    /// How much the line matters.
    pub fn level(&self) -> LogLevel {
        match (self.event, self.error) {
            (Event::Opened, _) => self.opening,
            (Event::Failed, _) => LogLevel::Warn,
            (Event::Complete, None) => LogLevel::Info,
            (Event::Complete, Some(_)) => LogLevel::Error,
        }
    }

    /// The whole line as text, without its line feed.
    pub fn text(&self, at: SystemTime) -> String {
        format!("{}\t{}\t{TARGET}\t{self}", Timestamp(at), self.level().as_str())
    }

    /// The whole line as a JSON object, without its line feed.
    pub fn json(&self, at: SystemTime) -> String {
        let mut line = format!(
            r#"{{"level":"{}","time":"{}","scope":"{TARGET}","message":"{}""#,
            self.level().as_str(),
            Timestamp(at),
            self.event.message()
        );
        let written = self.visit(&mut |name, value| {
            write!(line, r#","{name}":"#)?;
            match value {
                Value::Number(number) => write!(line, "{number}"),
                Value::Plain(value) | Value::Quoted(value) => write_json(&mut line, &value.to_string()),
            }
        });
        debug_assert!(written.is_ok(), "a string takes everything");
        line.push('}');
        line
    }

    fn visit(&self, visit: &mut Visit<'_>) -> fmt::Result {
        let full = self.event != Event::Failed;
        if let Some(addr) = self.source.addr {
            visit("src.addr", Value::Plain(&addr))?;
        }
        if full {
            let names = ["src.workload", "src.namespace", "src.identity", "src.cluster"];
            visit_party(&self.source, names, visit)?;
        }
        if let Some(addr) = self.destination.addr {
            visit("dst.addr", Value::Plain(&addr))?;
        }
        if full {
            if let Some(authority) = self.hbone_addr {
                visit("dst.hbone_addr", Value::Plain(authority))?;
            }
            if let Some(service) = self.service {
                visit("dst.service", Value::Quoted(&service))?;
            }
            let names = ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];
            visit_party(&self.destination, names, visit)?;
        }
        visit("direction", Value::Quoted(&self.reporter.direction()))?;
        if self.event == Event::Complete {
            if let Some(bytes) = self.bytes {
                visit("bytes_sent", Value::Number(bytes.sent))?;
                visit("bytes_recv", Value::Number(bytes.received))?;
            }
            if let Some(duration) = self.duration {
                visit("duration", Value::Quoted(&format_args!("{}ms", duration.as_millis())))?;
            }
        }
        if self.event != Event::Opened
            && let Some(error) = self.error
        {
            visit("error", Value::Quoted(&error))?;
        }
        match self.path {
            Some(Datapath::Ebpf) if full => visit("path", Value::Plain(&"ebpf")),
            Some(Datapath::Tcp(reason)) if full => {
                visit("path", Value::Plain(&"tcp"))?;
                visit("path.reason", Value::Plain(&reason))
            }
            Some(Datapath::Ebpf | Datapath::Tcp(_)) | None => Ok(()),
        }
    }
}

/// Who an end is, after its address.
fn visit_party(party: &Party<'_>, names: [&'static str; 4], visit: &mut Visit<'_>) -> fmt::Result {
    let [workload, namespace, identity, cluster] = names;
    if let Some(value) = party.workload {
        visit(workload, Value::Quoted(&value))?;
    }
    if let Some(value) = party.namespace {
        visit(namespace, Value::Quoted(&value))?;
    }
    if let Some(value) = &party.identity {
        visit(identity, Value::Quoted(value))?;
    }
    if let Some(value) = party.cluster {
        visit(cluster, Value::Quoted(&value))?;
    }
    Ok(())
}

/// Message and fields, as they follow the target in the text form.
impl fmt::Display for AccessEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t", self.event.message())?;
        let (mut first, mut text) = (true, String::new());
        self.visit(&mut |name, value| {
            if !std::mem::take(&mut first) {
                f.write_char(' ')?;
            }
            f.write_str(name)?;
            f.write_char('=')?;
            text.clear();
            match value {
                Value::Number(number) => write!(f, "{number}"),
                Value::Plain(value) => {
                    write!(text, "{value}")?;
                    write_plain(f, &text)
                }
                Value::Quoted(value) => {
                    write!(text, "{value}")?;
                    write_quoted(f, &text)
                }
            }
        })
    }
}

/// An unquoted value must not look like two fields or two lines.
fn write_plain(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    if value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
        f.write_str(value)
    } else {
        write!(f, "{value:?}")
    }
}

/// As `{value:?}`, which looks at every character twice; hardly any value has one to escape.
fn write_quoted(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    let is_plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b'"' && byte != b'\\';
    if !value.bytes().all(is_plain) {
        return write!(f, "{value:?}");
    }
    f.write_char('"')?;
    f.write_str(value)?;
    f.write_char('"')
}

fn write_json(out: &mut String, value: &str) -> fmt::Result {
    out.push('"');
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if u32::from(control) < 0x20 => write!(out, "\\u{:04x}", u32::from(control))?,
            other => out.push(other),
        }
    }
    out.push('"');
    Ok(())
}

/// RFC 3339 in UTC with microseconds, as every line of the log begins.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp(pub SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let micros = since.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Year, month and day of a day counted from 1970, by Hinnant's algorithm.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}
