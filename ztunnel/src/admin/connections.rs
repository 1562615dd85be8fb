// SPDX-License-Identifier: Apache-2.0
//! `/connections`: what is open now, who talks to whom, which path the bytes take and why.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::{Reporter, Security};

use super::Doors;
use super::query::Query;
use crate::fastpath::{FastPath, Path};
use crate::telemetry::live::{Entry, Registry};

/// Connections in an answer, if the query does not say how many.
const DEFAULT_LIMIT: usize = 100;
/// At most.
const MAX_LIMIT: usize = 10_000;
/// What a query may say.
const PARAMETERS: [&str; 4] = ["pod", "peer", "path", "limit"];

/// The answer: the connections that carried most first.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Open connections that match.
    pub total: usize,
    /// The first of them.
    pub connections: Vec<Row>,
}

/// One open connection.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Unique in its pod.
    pub id: u64,
    /// The pod of this node.
    pub pod: String,
    /// `outbound` or `inbound`, as the pod sees it.
    pub direction: &'static str,
    /// `HBONE` or `TCP`.
    pub protocol: &'static str,
    /// The client's end.
    pub source: Party,
    /// The server's end.
    pub destination: Party,
    /// The hostname of the service that was addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `ebpf`, `tcp`, or `opening`: not yet through to the application.
    pub path: &'static str,
    /// Why that path.
    pub reason: &'static str,
    /// Bytes that the pod sent.
    pub sent: u64,
    /// Bytes that the pod was sent.
    pub received: u64,
    /// Bytes of them that took the fast path on the hop to the application.
    pub redirected: u64,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
    /// Microseconds from accept until bytes could flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opening_us: Option<u64>,
}

/// One end of a connection.
#[derive(Debug, Serialize)]
pub struct Party {
    /// `namespace/name`, if the mesh knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its address.
    pub address: SocketAddr,
    /// What mutual TLS proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// How many connections take which path, and why not the fast one.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Paths {
    /// Through the kernel.
    pub ebpf: usize,
    /// Through TCP.
    pub tcp: usize,
    /// Not through yet.
    pub opening: usize,
    /// Those through TCP, by reason.
    pub reasons: BTreeMap<&'static str, usize>,
}

impl Paths {
    /// Counts a pod's open connections.
    pub fn of(registry: &Registry, fastpath: &FastPath) -> Self {
        let mut paths = Self::default();
        for entry in registry.open() {
            match now(&entry, fastpath) {
                None => paths.opening += 1,
                Some(path) if path.redirected => paths.ebpf += 1,
                Some(path) => {
                    paths.tcp += 1;
                    *paths.reasons.entry(path.reason).or_default() += 1;
                }
            }
        }
        paths
    }
}

/// Which connections are asked for.
#[derive(Debug, Default)]
pub struct Wanted {
    pod: Option<String>,
    peer: Option<String>,
    path: Option<String>,
    limit: usize,
}

impl Wanted {
    /// Reads `pod=namespace/name`, `peer=` a part of its name, identity, address or service, `path=` a path or a reason,
    /// `limit=`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(query: &Query) -> Result<Self, String> {
        if let Some(name) = query.unknown(&PARAMETERS).next() {
            return Err(format!("unknown parameter `{name}`: expected {}", PARAMETERS.join(", ")));
        }
        let limit = match query.get("limit").map(str::parse::<usize>) {
            None => DEFAULT_LIMIT,
            Some(Ok(limit)) => limit.min(MAX_LIMIT),
            Some(Err(_)) => return Err(format!("limit: expected a number, at most {MAX_LIMIT}")),
        };
        let text = |name: &str| query.get(name).map(str::to_owned);
        Ok(Self { pod: text("pod"), peer: text("peer"), path: text("path"), limit })
    }

    fn is_met_by(&self, row: &Row) -> bool {
        let peer = self.peer.as_ref().is_none_or(|wanted| row.peer().contains(wanted));
        peer && self.path.as_ref().is_none_or(|wanted| row.path == wanted || row.reason == wanted)
    }
}

/// The connections that are wanted.
pub fn answer(doors: &Doors, wanted: &Wanted) -> Answer {
    let fastpath = &doors.shared.fastpath;
    let mut total = 0;
    let mut rows: Vec<Row> = Vec::new();
    for context in doors.pods.contexts() {
        let pod = context.pod.to_string();
        if wanted.pod.as_ref().is_some_and(|wanted| *wanted != pod) {
            continue;
        }
        for entry in context.live.open() {
            let row = row(&pod, &entry, fastpath);
            if !wanted.is_met_by(&row) {
                continue;
            }
            total += 1;
            rows.push(row);
            // Never many more of them at once than are asked for.
            if rows.len() >= 2 * wanted.limit.max(1) {
                shorten(&mut rows, wanted.limit);
            }
        }
    }
    shorten(&mut rows, wanted.limit);
    Answer { total, connections: rows }
}

fn shorten(rows: &mut Vec<Row>, limit: usize) {
    rows.sort_by_key(|row| Reverse(row.sent + row.received));
    rows.truncate(limit);
}

/// How the hop to the application goes now; `None`: it is not there yet.
fn now(entry: &Entry, fastpath: &FastPath) -> Option<Path> {
    let hop = entry.hop()?;
    Some(hop.place.and_then(|place| fastpath.look(place)).unwrap_or(hop.path))
}

fn row(pod: &str, entry: &Entry, fastpath: &FastPath) -> Row {
    let ends = &entry.ends;
    let (sent, received) = entry.bytes();
    let path = now(entry, fastpath);
    let secure = ends.security == Security::MutualTls;
    let identity = |known: Option<String>| known.filter(|_| secure);
    Row {
        id: entry.id,
        pod: pod.to_owned(),
        direction: ends.reporter.direction(),
        protocol: if secure { "HBONE" } else { "TCP" },
        source: Party {
            name: ends.source.as_deref().map(name),
            address: ends.source_addr,
            identity: identity(ends.source_principal.as_ref().map(ToString::to_string)),
        },
        destination: Party {
            name: ends.destination.as_deref().map(name),
            address: ends.target,
            identity: identity(ends.destination.as_ref().map(|workload| workload.identity().to_string())),
        },
        service: ends.service.as_ref().map(|service| service.hostname.to_string()),
        path: match path {
            None => "opening",
            Some(path) if path.redirected => "ebpf",
            Some(_) => "tcp",
        },
        reason: path.map_or("opening", |path| path.reason),
        sent,
        received,
        redirected: path.map_or(0, |path| path.tx_bytes + path.rx_bytes),
        age_ms: millis(entry.start.elapsed()),
        opening_us: entry.hop().map(|hop| u64::try_from(hop.opening.as_micros()).unwrap_or(u64::MAX)),
    }
}

impl Row {
    /// Everything that the other end may be called, in one text.
    fn peer(&self) -> String {
        let party =
            if self.direction == Reporter::Source.direction() { &self.destination } else { &self.source };
        let service = self.service.as_deref().unwrap_or_default();
        let (name, identity) = (party.name.as_deref(), party.identity.as_deref());
        [name.unwrap_or_default(), identity.unwrap_or_default(), &party.address.to_string(), service]
            .join(" ")
    }
}

/// `namespace/name`, as everywhere on the page and the command line.
pub fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_query_cannot_mean_is_refused() {
        let parse = |text: &str| Wanted::parse(&Query::parse(text));
        let wanted = parse("pod=shop%2Fweb&limit=99999999").unwrap();
        assert_eq!((wanted.pod.as_deref(), wanted.limit), (Some("shop/web"), MAX_LIMIT));
        assert_eq!(parse("").unwrap().limit, DEFAULT_LIMIT);
        assert!(parse("limit=-1").unwrap_err().starts_with("limit: expected a number"));
        assert!(parse("pods=x").unwrap_err().contains("`pods`"));
    }
}
