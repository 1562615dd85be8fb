// SPDX-License-Identifier: Apache-2.0
//! Whether an inbound connection is admitted, and why.
//!
//! Input: the policies of the destination, and the facts of the connection. Output: a [`Verdict`] with its
//! reason, and beside it what policies on trial would have done.
//!
//! Invariants: a matching deny policy wins, whatever allows; where an allow policy applies, what none of
//! them matches is denied; a policy on trial never changes the answer. Of several policies that decide alike, the reason
//! names the first: by key among those of the namespace, then among the global ones, then as the workload names them.
//!
//! Previous: [`crate::route::inbound`] found the target. Next: the shell connects, or refuses.

mod news;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use self::news::News;
use self::rule::{policy_matches, rule_matches};
use crate::Name;
use crate::identity::Identity;
use crate::mesh::{Action, AppliedPolicies, Mesh, Policy, Subject, Workload};

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
    /// Policies that the workload names and that are not known (yet).
    pub missing: Vec<Name>,
}

/// What a policy means that a workload names and that is not known.
///
/// It may be on its way: the control plane describes workloads and policies in separate messages. It may also never come,
/// and what it would have denied is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing: the other policies decide.
    #[default]
    Skip,
    /// Nobody is let in before it is known.
    Deny,
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
    /// Denied: nobody knows what this policy says.
    Unknown(Name),
    /// Denied: the mesh does not know the destination any more.
    NoWorkload,
}

impl Because {
    /// Whether the connection is admitted.
    #[must_use]
    pub fn allows(&self) -> bool {
        match self {
            Self::NoAllowPolicies | Self::AllowedBy(_) => true,
            Self::DeniedBy(_) | Self::NotAllowed | Self::Unknown(_) | Self::NoWorkload => false,
        }
    }

    /// The policy that decided, if one did.
    #[must_use]
    pub fn policy(&self) -> Option<&Name> {
        match self {
            Self::AllowedBy(policy) | Self::DeniedBy(policy) | Self::Unknown(policy) => Some(policy),
            Self::NoAllowPolicies | Self::NotAllowed | Self::NoWorkload => None,
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
            Self::Unknown(_) => "unknown policy, deny",
            Self::NoWorkload => "workload not found, deny",
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
            Self::Unknown(policy) => write!(f, "policy is not known (yet): {policy}"),
            Self::NoWorkload => f.write_str("workload not found"),
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
pub fn evaluate(mesh: &Mesh, facts: &Facts<'_>, unknown: Unknown) -> Verdict {
    let applied = mesh.policies_for(facts.destination);
    let subject = Subject {
        identity: facts.identity,
        principal: facts.identity.map(Identity::principal),
        source_ip: facts.source_ip.to_canonical(),
        destination_ip: facts.dst.ip().to_canonical(),
        destination_port: facts.dst.port(),
    };
    let found = Found::among(&applied, &subject);
    let mut dry_run: Vec<DryRun> = found.tried_denies.into_iter().cloned().map(DryRun::Deny).collect();
    let because = match (found.deny, applied.missing.first()) {
        (Some(policy), _) => Because::DeniedBy(Name::clone(policy)),
        (None, Some(policy)) if unknown == Unknown::Deny => Because::Unknown(Name::clone(policy)),
        (None, _) => {
            let allows = applied.allows();
            if allows.enforced == 0 && allows.tried > 0 && found.tried_allows.is_empty() {
                dry_run.push(DryRun::NoneAllowed);
            }
            dry_run.extend(found.tried_allows.into_iter().cloned().map(DryRun::Allow));
            match found.allow {
                _ if allows.enforced == 0 => Because::NoAllowPolicies,
                Some(policy) => Because::AllowedBy(Name::clone(policy)),
                None => Because::NotAllowed,
            }
        }
    };
    Verdict { allowed: because.allows(), because, dry_run, missing: applied.missing }
}

/// The policies that match.
#[derive(Debug, Default)]
struct Found<'m> {
    /// The first that denies.
    deny: Option<&'m Name>,
    /// The first that allows.
    allow: Option<&'m Name>,
    /// Those that would deny.
    tried_denies: Vec<&'m Name>,
    /// Those that would allow.
    tried_allows: Vec<&'m Name>,
}

impl<'m> Found<'m> {
    fn among(applied: &AppliedPolicies<'m>, subject: &Subject<'_>) -> Self {
        let mut all = Self::default();
        for set in applied.sets.iter().flatten() {
            let mut of_set = Self::default();
            set.suspects(subject, |key, policy, rule| {
                if rule_matches(rule, subject) {
                    of_set.add(key, policy);
                }
            });
            all.append(of_set);
        }
        for (key, policy) in &applied.named {
            if policy_matches(policy, subject) {
                let mut one = Self::default();
                one.add(key, policy);
                all.append(one);
            }
        }
        all
    }

    /// Adds a policy of a set, whose rules come in no order.
    fn add(&mut self, key: &'m Name, policy: &Policy) {
        let first = match (policy.action, policy.dry_run) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Deny, true) => return self.tried_denies.push(key),
            (Action::Allow, true) => return self.tried_allows.push(key),
        };
        if first.is_none_or(|first| key < first) {
            *first = Some(key);
        }
    }

    /// Adds what comes after all of these.
    fn append(&mut self, mut later: Self) {
        self.deny = self.deny.or(later.deny);
        self.allow = self.allow.or(later.allow);
        for (all, more) in [
            (&mut self.tried_denies, &mut later.tried_denies),
            (&mut self.tried_allows, &mut later.tried_allows),
        ] {
            more.sort_unstable();
            more.dedup();
            // Nor is it a second event where a workload names a policy twice.
            more.retain(|key| !all.contains(key));
            all.append(more);
        }
    }
}
