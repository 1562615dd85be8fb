// SPDX-License-Identifier: Apache-2.0
//! `/denials`: who was turned away lately, and which policy did it.
//!
//! The destination's node knows the policy. The source's node is told no more than 401, but it has the same policies: it
//! asks them again, so that the answer is found where the question is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use ztunnel_core::authz::{self, Because, Facts, Unknown};
use ztunnel_core::mesh::{Action, Mesh, Scope, Workload};
use ztunnel_core::report::access::Timestamp;
use ztunnel_core::report::{Flag, Reporter};

use super::connections::{Party, name};
use crate::proxy::Shared;
use crate::telemetry::refusals::Refusal;

/// What a denied CONNECT is answered.
const UNAUTHORIZED: u16 = 401;
/// Policies in a list; who has more of them looks at `config_dump`.
const MAX_LISTED: usize = 8;

/// One kind of refusal, the latest first.
#[derive(Debug, Serialize)]
pub struct Denial {
    /// The pod of this node.
    pub pod: String,
    /// `outbound`: the pod's own request failed. `inbound`: a request to the pod was refused.
    pub direction: &'static str,
    /// Who asked.
    pub source: Party,
    /// Who was asked for.
    pub destination: Party,
    /// The hostname of the service that was addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// As in the access log.
    pub error: String,
    /// `response_flags` of the metrics.
    pub flag: &'static str,
    /// The policy that denies, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Policies that say who may; none of them means this source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_policies: Vec<String>,
    /// What the policies say now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// How often.
    pub count: u64,
    /// For the first time (RFC 3339).
    pub first: String,
    /// For the last time.
    pub last: String,
    /// Seconds since then.
    pub seconds_ago: u64,
}

/// The refusals of one pod, or of all, with the policies that explain them.
pub fn list(shared: &Shared, refusals: Vec<Refusal>, pod: Option<&str>) -> Vec<Denial> {
    let unknown = shared.config.unknown_policies;
    let now = SystemTime::now();
    let mut allowing = HashMap::new();
    let wanted = refusals.into_iter().filter(|refusal| pod.is_none_or(|pod| *refusal.pod == *pod));
    wanted
        .map(|refusal| {
            let verdict = shared.mesh.read(|mesh| verdict(mesh, &refusal, unknown, &mut allowing));
            denial(refusal, verdict, now)
        })
        .collect()
}

/// What the policies say, and those of them that would have to let somebody in.
type Verdict = Option<(Because, Vec<String>)>;

fn verdict(
    mesh: &Mesh,
    refusal: &Refusal,
    unknown: Unknown,
    allowing: &mut HashMap<Arc<str>, Vec<String>>,
) -> Verdict {
    let told = refusal.reporter == Reporter::Source && refusal.error.contains(&UNAUTHORIZED.to_string());
    if refusal.flag != Flag::Deny && !told {
        return None;
    }
    let destination = refusal.destination.as_deref()?;
    let facts = Facts {
        destination,
        source_ip: refusal.source_addr.ip(),
        dst: refusal.target,
        identity: refusal.source_identity.as_ref(),
    };
    let because = authz::evaluate(mesh, &facts, unknown).because;
    let policies = match because {
        Because::NotAllowed => {
            let known = allowing.entry(Arc::clone(&destination.uid));
            known.or_insert_with(|| allow_policies(mesh, destination)).clone()
        }
        _ => Vec::new(),
    };
    Some((because, policies))
}

/// The policies that say who may reach a workload.
fn allow_policies(mesh: &Mesh, workload: &Workload) -> Vec<String> {
    let mut found: Vec<String> = mesh
        .policies()
        .into_iter()
        .filter(|policy| policy.action == Action::Allow && !policy.dry_run)
        .filter(|policy| match policy.scope {
            Scope::Global => true,
            Scope::Namespace => policy.namespace == workload.namespace,
            Scope::WorkloadSelector => workload.authorization_policies.contains(&policy.key()),
        })
        .map(|policy| policy.key().to_string())
        .collect();
    found.sort_unstable();
    found.truncate(MAX_LISTED);
    found
}

fn denial(refusal: Refusal, verdict: Verdict, now: SystemTime) -> Denial {
    let (because, allow_policies) = verdict.map_or((None, Vec::new()), |(because, all)| (Some(because), all));
    // One who is allowed by now was refused by a policy that is gone: to name another would mislead.
    let denies = because.as_ref().filter(|because| !because.allows());
    Denial {
        pod: refusal.pod.to_string(),
        direction: refusal.reporter.direction(),
        source: Party {
            name: refusal.source.as_deref().map(name),
            address: refusal.source_addr,
            identity: refusal.source_identity.as_ref().map(ToString::to_string),
        },
        destination: Party {
            name: refusal.destination.as_deref().map(name),
            address: refusal.target,
            identity: refusal.destination.as_ref().map(|workload| workload.identity().to_string()),
        },
        service: refusal.service,
        flag: refusal.flag.as_str(),
        policy: denies.and_then(|because| because.policy()).map(ToString::to_string),
        allow_policies,
        verdict: because.as_ref().map(ToString::to_string),
        error: refusal.error,
        count: refusal.count,
        first: Timestamp(refusal.first).to_string(),
        last: Timestamp(refusal.last).to_string(),
        seconds_ago: now.duration_since(refusal.last).unwrap_or_default().as_secs(),
    }
}
