// SPDX-License-Identifier: Apache-2.0
//! `/status`: the node at a glance, for the page and `ztunnel status`: what is wrong first, then everything else.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};
use ztunnel_core::Name;
use ztunnel_core::addr::{INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use ztunnel_core::mesh::Mesh;
use ztunnel_core::report::access::Timestamp;
use ztunnel_core::socks5;

use super::connections::Paths;
use super::denials::{self, Denial};
use super::{Doors, problems};
use crate::certs::store::State as CertState;
use crate::config::dns::Listen;
use crate::config::{Config, ProxyMode};
use crate::fastpath;
use crate::proxy::unknown::Counts;
use crate::telemetry::live::Totals;
use crate::telemetry::standing::Session;
use crate::tls::revocation::Revocations;
use crate::version;

/// Refusals in an answer; `/denials` has all.
const MAX_DENIALS: usize = 20;

/// The node.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What this binary is.
    pub version: &'static str,
    /// When this was true (RFC 3339).
    pub now: String,
    /// `NODE_NAME`.
    pub node: Option<String>,
    /// What needs somebody's attention.
    pub problems: Vec<problems::Problem>,
    /// What readiness waits for.
    pub pending: Vec<&'static str>,
    /// The fast path: mode, self-test, counters.
    #[serde(flatten)]
    pub fastpath: fastpath::Status,
    /// `CRL_PATH` and what came of it.
    pub revocation: Option<Value>,
    /// Who tells this node what to do.
    pub sessions: Sessions,
    /// How much of the mesh is known.
    pub mesh: Value,
    /// Connections that were judged without a policy that their pod names.
    pub unknown_policy_connections: Counts,
    /// Every certificate.
    pub certificates: Vec<CertStatus>,
    /// Who was turned away lately.
    pub denials: Vec<Denial>,
    /// Every pod.
    pub pods: Vec<Pod>,
}

/// The sessions that feed this node.
#[derive(Debug, Serialize)]
pub struct Sessions {
    /// The control plane.
    pub xds: SessionStatus,
    /// The node agent.
    pub agent: SessionStatus,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct SessionStatus {
    /// `connected`, `disconnected`, `idle`: not tried yet; `not used`: the settings name none.
    pub state: &'static str,
    /// Since when (RFC 3339).
    pub since: Option<String>,
    /// What is wrong.
    pub error: Option<String>,
}

impl SessionStatus {
    fn of(session: Session, wanted: bool) -> Self {
        Self {
            state: if wanted { session.state.as_str() } else { "not used" },
            since: session.since.map(|since| Timestamp(since).to_string()),
            error: session.error,
        }
    }
}

/// One identity's certificate.
#[derive(Debug, Serialize)]
pub struct CertStatus {
    /// Whose.
    pub identity: String,
    /// `available`, `initializing`, `unavailable`.
    pub state: &'static str,
    /// Why there is none.
    pub error: Option<String>,
    /// When it ends (RFC 3339).
    pub not_after: Option<String>,
    /// Seconds until then; negative: since then.
    pub remaining_seconds: Option<i64>,
    /// Seconds from its begin to its end.
    pub life_seconds: Option<u64>,
}

/// One pod.
#[derive(Debug, Serialize)]
pub struct Pod {
    /// The node agent's id.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Its identity, once the mesh knows it.
    pub identity: Option<String>,
    /// Kernel id of the network namespace.
    pub netns_cookie: u64,
    /// Ports that listen in its namespace.
    pub listeners: Vec<u16>,
    /// Fast-path level: off, half or full.
    pub level: String,
    /// Why that level.
    pub reason: String,
    /// Whether the fast path is switched on for it.
    pub on: bool,
    /// Open connections.
    pub connections: usize,
    /// Which path they take.
    pub paths: Paths,
    /// Policies that it names and that have not arrived.
    pub unknown_policies: Vec<Name>,
    /// Since it is served: connections, and bytes as the pod sees them.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Looks at everything.
pub fn status(doors: &Doors) -> Status {
    let shared = &doors.shared;
    let now = SystemTime::now();
    let mut refusals = shared.refusals.list();
    refusals.truncate(MAX_DENIALS);
    let mut status = Status {
        version: version::VERSION,
        now: Timestamp(now).to_string(),
        node: shared.config.node.name.clone(),
        problems: Vec::new(),
        pending: doors.readiness.pending(),
        fastpath: shared.fastpath.status(),
        revocation: shared.certs.tls().revocations.as_ref().map(|lists| json!(Revocations::status(lists))),
        sessions: Sessions {
            xds: SessionStatus::of(shared.standings.xds.look(), shared.config.xds.is_some()),
            agent: SessionStatus::of(shared.standings.agent.look(), shared.config.mode == ProxyMode::Shared),
        },
        mesh: shared.mesh.read(size),
        unknown_policy_connections: shared.unknown_policies.counts(),
        certificates: certificates(doors, now),
        denials: denials::list(shared, refusals, None),
        pods: pods(doors),
    };
    status.problems = problems::find(&status);
    status
}

fn size(mesh: &Mesh) -> Value {
    json!({
        "workloads": mesh.size(),
        "services": mesh.services().len(),
        "policies": mesh.policies().len(),
    })
}

/// Every certificate of the node, by identity.
pub fn certificates(doors: &Doors, now: SystemTime) -> Vec<CertStatus> {
    let all = doors.shared.certs.all();
    all.iter()
        .map(|(identity, state)| {
            let mut status = CertStatus {
                identity: identity.to_string(),
                state: "initializing",
                error: None,
                not_after: None,
                remaining_seconds: None,
                life_seconds: None,
            };
            match state {
                CertState::Initializing => {}
                CertState::Unavailable(error) => {
                    status.state = "unavailable";
                    status.error = Some(error.to_string());
                }
                CertState::Available(certificate) => {
                    let validity = &certificate.validity;
                    status.state = "available";
                    status.not_after = Some(Timestamp(validity.not_after).to_string());
                    status.remaining_seconds = Some(until(now, validity.not_after));
                    status.life_seconds = validity
                        .not_after
                        .duration_since(validity.not_before)
                        .ok()
                        .map(|life| life.as_secs());
                }
            }
            status
        })
        .collect()
}

fn until(now: SystemTime, end: SystemTime) -> i64 {
    let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match end.duration_since(now) {
        Ok(left) => seconds(left),
        Err(past) => -seconds(past.duration()),
    }
}

fn pods(doors: &Doors) -> Vec<Pod> {
    let shared = &doors.shared;
    let listeners = listeners(&shared.config);
    let pods = doors.pods.served().into_iter();
    let mut pods: Vec<Pod> = pods
        .map(|(context, eligibility)| Pod {
            uid: context.uid.to_string(),
            name: context.pod.name.to_string(),
            namespace: context.pod.namespace.to_string(),
            service_account: context.pod.service_account.to_string(),
            identity: shared.mesh.find_local(&context.pod).map(|workload| workload.identity().to_string()),
            netns_cookie: context.netns_cookie,
            listeners: listeners.clone(),
            level: eligibility.level.to_string(),
            reason: eligibility.reason.to_string(),
            on: shared.fastpath.is_on(context.netns_cookie),
            connections: context.connections.load(Ordering::Relaxed),
            paths: Paths::of(&context.live, &shared.fastpath),
            unknown_policies: context.unknown_policies(),
            totals: context.live.totals(),
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    pods
}

/// The ports that listen in every pod.
fn listeners(config: &Config) -> Vec<u16> {
    let mut ports = Vec::new();
    if config.proxy {
        ports.extend([OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, INBOUND_HBONE_PORT]);
        ports.extend(config.socks5.then_some(socks5::PORT));
    }
    ports.extend(config.dns.as_ref().map(|dns| match dns.listen {
        Listen::Localhost(port) => port,
        Listen::Addr(addr) => addr.port(),
    }));
    ports
}
