// SPDX-License-Identifier: Apache-2.0
//! What needs somebody's attention: the one list that the page, `ztunnel status` and the bug report begin with.

use serde::Serialize;

use super::status::{CertStatus, SessionStatus, Status};

/// A refusal that was seen within this many seconds is news.
const RECENT: u64 = 300;
/// A certificate that is renewed in time never has less than this part of its life left.
const LAST_PART: i64 = 5;

/// Something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

fn problem(what: String, fix: &str) -> Problem {
    Problem { what, fix: fix.to_owned() }
}

/// Everything that is wrong, the worst first.
pub fn find(status: &Status) -> Vec<Problem> {
    let mut found = Vec::new();
    if !status.pending.is_empty() {
        found.push(problem(
            format!("not ready: waiting for {}", status.pending.join(", ")),
            "see the sessions below; `ztunnel doctor` checks what this node needs",
        ));
    }
    let sessions = &status.sessions;
    found.extend(session(
        "the control plane",
        &sessions.xds,
        "the mesh stays as it was last known; check XDS_ADDRESS and istiod, `ztunnel doctor` tries to reach it",
    ));
    found.extend(session(
        "the node agent",
        &sessions.agent,
        "new pods are not served until it is back; check istio-cni on this node, and INPOD_UDS",
    ));
    found.extend(status.certificates.iter().filter_map(certificate));
    let recent: Vec<_> = status.denials.iter().filter(|denial| denial.seconds_ago <= RECENT).collect();
    if let Some(latest) = recent.first() {
        let count: u64 = recent.iter().map(|denial| denial.count).sum();
        let times =
            if count == 1 { "1 connection was".to_owned() } else { format!("{count} connections were") };
        found.push(problem(
            format!("{times} refused, the latest of {} {}: {}", latest.direction, latest.pod, latest.error),
            "`ztunnel denials` lists them with the policies that denied them",
        ));
    }
    for pod in status.pods.iter().filter(|pod| !pod.unknown_policies.is_empty()) {
        found.push(problem(
            format!("{}/{} names policies that are not known: {}", pod.namespace, pod.name, pod.unknown_policies.join(", ")),
            "they do not protect it until istiod sends them; AUTHZ_UNKNOWN_POLICY=deny would let nobody in meanwhile",
        ));
    }
    found.extend(fastpath(status));
    found
}

fn session(with: &str, status: &SessionStatus, fix: &str) -> Option<Problem> {
    let error = status.error.as_ref().filter(|_| status.state == "disconnected")?;
    let since = status.since.as_deref().unwrap_or("the start");
    Some(problem(format!("no connection to {with} since {since}: {error}"), fix))
}

fn certificate(status: &CertStatus) -> Option<Problem> {
    let identity = &status.identity;
    if let Some(error) = &status.error {
        return Some(problem(
            format!("no certificate for {identity}: {error}"),
            "its pod can neither open nor accept mTLS; check CA_ADDRESS, the token, and istiod's log",
        ));
    }
    let remaining = status.remaining_seconds?;
    let life = i64::try_from(status.life_seconds?).unwrap_or(i64::MAX);
    let what = if remaining <= 0 {
        format!("the certificate of {identity} has ended")
    } else if remaining < life / LAST_PART {
        format!("the certificate of {identity} ends in {remaining} s and is not being renewed")
    } else {
        return None;
    };
    Some(problem(what, "check istiod and CA_ADDRESS; what the log says of this identity has the reason"))
}

fn fastpath(status: &Status) -> Option<Problem> {
    let mode = &status.fastpath.mode;
    if mode.configured == "off" || mode.on {
        return None;
    }
    Some(if mode.effective == "off" {
        problem(
            format!("the fast path is off, everything takes TCP: {}", mode.reason),
            "`ztunnel doctor` says what is missing; EBPF_FASTPATH=off says that this is meant",
        )
    } else {
        problem(
            "the fast path was switched off by hand".to_owned(),
            "`ztunnel accel on` switches it on again",
        )
    })
}
