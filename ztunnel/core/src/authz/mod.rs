// SPDX-License-Identifier: Apache-2.0
//! Whether an inbound connection is admitted, and why.
//!
//! Input: the policies of the destination, and the facts of the connection. Output: a [`Verdict`] with its
//! reason, and beside it what policies on trial would have done.
//!
//! Invariants: a matching deny policy wins, whatever allows; where an allow policy applies, what none of
//! them matches is denied; a policy on trial never changes the answer.
//!
//! Previous: [`crate::route::inbound`] found the target. Next: the shell connects, or refuses.

mod rule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use self::rule::{Subject, policy_matches};
use crate::Name;
use crate::identity::Identity;
use crate::mesh::{Action, Mesh, Policy, Workload};

/// What is known of an inbound connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The workload that we serve.
    pub destination: &'a Workload,
    /// The TCP peer: a waypoint's or gateway's address if one is in between.
    pub source_ip: IpAddr,
    /// Where the application is about to be reached.
    pub dst: SocketAddr,
    /// What the peer's certificate says; none without mutual TLS.
    pub identity: Option<&'a Identity>,
}

/// Whether a connection is admitted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is admitted.
    pub allowed: bool,
    /// The reason.
    pub because: Because,
    /// What policies would have done that are only tried. To be logged, in this order.
    pub dry_run: Vec<DryRun>,
    /// Policies that the workload names and that are not known (yet); they are skipped.
    pub missing: Vec<Name>,
}

/// The reason of a verdict. Policies are named `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// Allowed: no policy says who may.
    NoAllowPolicies,
    /// Allowed by this policy.
    AllowedBy(Name),
    /// Denied by this policy.
    DeniedBy(Name),
    /// Denied: policies say who may, and none of them means this connection.
    NotAllowed,
}

impl Because {
    /// The policy that decided, if one did.
    #[must_use]
    pub fn policy(&self) -> Option<&Name> {
        match self {
            Self::AllowedBy(policy) | Self::DeniedBy(policy) => Some(policy),
            Self::NoAllowPolicies | Self::NotAllowed => None,
        }
    }

    /// How the decision's log event reads.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self {
            Self::NoAllowPolicies => "no allow policies, allow",
            Self::AllowedBy(_) => "allow policy match",
            Self::DeniedBy(_) => "deny policy match",
            Self::NotAllowed => "no allow policies matched",
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicies => f.write_str("no allow policies, allow"),
            Self::AllowedBy(policy) => write!(f, "explicitly allowed by: {policy}"),
            Self::DeniedBy(policy) => write!(f, "explicitly denied by: {policy}"),
            Self::NotAllowed => f.write_str("allow policies exist, but none allowed"),
        }
    }
}

/// What a policy would have done that is only tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// This policy would have denied.
    Deny(Name),
    /// This policy would have allowed.
    Allow(Name),
    /// None of the policies that are only tried would have allowed, so they would have denied.
    NoneAllowed,
}

impl DryRun {
    /// The policy in question, if it is one.
    #[must_use]
    pub fn policy(&self) -> Option<&Name> {
        match self {
            Self::Deny(policy) | Self::Allow(policy) => Some(policy),
            Self::NoneAllowed => None,
        }
    }

    /// How the log event reads.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self {
            Self::Deny(_) => "dry-run: deny policy match",
            Self::Allow(_) => "dry-run: allow policy match",
            Self::NoneAllowed => "dry-run: no allow policies match",
        }
    }
}

/// Judges an inbound connection.
#[must_use]
pub fn evaluate(mesh: &Mesh, facts: &Facts<'_>) -> Verdict {
    let applied = mesh.policies_for(facts.destination);
    let subject = Subject {
        identity: facts.identity,
        principal: facts.identity.map(Identity::principal),
        source_ip: facts.source_ip.to_canonical(),
        destination_ip: facts.dst.ip().to_canonical(),
        destination_port: facts.dst.port(),
    };
    let policies = |action: Action, dry_run: Enforcement| {
        applied
            .known
            .iter()
            .filter(move |(_, policy)| policy.action == action && Enforcement::of(policy) == dry_run)
    };
    let matches = |policy: &Policy| policy_matches(policy, &subject);
    let first_match = |action: Action| {
        let found = policies(action, Enforcement::Enforced).find(|(_, policy)| matches(policy));
        found.map(|&(key, _)| Name::clone(key))
    };

    let mut dry_run: Vec<DryRun> = policies(Action::Deny, Enforcement::DryRun)
        .filter(|(_, policy)| matches(policy))
        .map(|&(key, _)| DryRun::Deny(Name::clone(key)))
        .collect();
    let because = match first_match(Action::Deny) {
        Some(policy) => Because::DeniedBy(policy),
        None => {
            let none_enforced = policies(Action::Allow, Enforcement::Enforced).next().is_none();
            let on_trial: Vec<_> = policies(Action::Allow, Enforcement::DryRun).collect();
            let before = dry_run.len();
            let allowing = on_trial.iter().filter(|(_, policy)| matches(policy));
            dry_run.extend(allowing.map(|&&(key, _)| DryRun::Allow(Name::clone(key))));
            if none_enforced && !on_trial.is_empty() && dry_run.len() == before {
                dry_run.push(DryRun::NoneAllowed);
            }
            match first_match(Action::Allow) {
                _ if none_enforced => Because::NoAllowPolicies,
                Some(policy) => Because::AllowedBy(policy),
                None => Because::NotAllowed,
            }
        }
    };
    let allowed = match because {
        Because::NoAllowPolicies | Because::AllowedBy(_) => true,
        Because::DeniedBy(_) | Because::NotAllowed => false,
    };
    Verdict { allowed, because, dry_run, missing: applied.missing }
}

/// Whether a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enforcement {
    Enforced,
    DryRun,
}

impl Enforcement {
    fn of(policy: &Policy) -> Self {
        if policy.dry_run { Self::DryRun } else { Self::Enforced }
    }
}
