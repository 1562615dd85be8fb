// SPDX-License-Identifier: Apache-2.0
//! Whether one policy matches a connection: any rule, all of its clauses, any match of each, all fields.
//!
//! What is empty differs by level: a policy without rules never matches, a rule without clauses and a
//! clause without matches always do, a match without any field never does.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::canonical_net;
use crate::identity::Identity;
use crate::mesh::{Clause, Match, Policy, Rule, ServiceAccountMatch, StringMatch, Subject};

pub(super) fn policy_matches(policy: &Policy, subject: &Subject<'_>) -> bool {
    policy.rules.iter().any(|rule| rule_matches(rule, subject))
}

pub(super) fn rule_matches(rule: &Rule, subject: &Subject<'_>) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, subject))
}

fn clause_matches(clause: &Clause, subject: &Subject<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|one| match_matches(one, subject))
}

fn match_matches(one: &Match, subject: &Subject<'_>) -> bool {
    let Match {
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
    } = one;
    let namespace = subject.namespace();
    let principal = subject.principal.as_deref();
    // A connection without identity has an empty namespace, but no principal and no service account at
    // all: then none of their values holds, and a `not_` field does.
    let fields = [
        Field::of(namespaces, not_namespaces, |value| string_matches(value, namespace)),
        Field::of(service_accounts, not_service_accounts, |value| account_matches(value, subject.identity)),
        Field::of(principals, not_principals, |value| principal.is_some_and(|p| string_matches(value, p))),
        Field::of(source_ips, not_source_ips, |net| net_matches(net, subject.source_ip)),
        Field::of(destination_ips, not_destination_ips, |net| net_matches(net, subject.destination_ip)),
        Field::of(destination_ports, not_destination_ports, |&port| port == subject.destination_port),
    ];
    let says_nothing = fields.iter().all(|field| *field == Field::Absent);
    !says_nothing && !fields.contains(&Field::Fails)
}

/// A field and its `not_` twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Absent,
    Holds,
    Fails,
}

impl Field {
    /// Any of the positive values must hold, none of the negative ones may; a side that is empty is silent.
    fn of<T>(positive: &[T], negative: &[T], holds: impl Fn(&T) -> bool) -> Self {
        if positive.is_empty() && negative.is_empty() {
            return Self::Absent;
        }
        let admitted = positive.is_empty() || positive.iter().any(&holds);
        let excluded = negative.iter().any(&holds);
        if admitted && !excluded { Self::Holds } else { Self::Fails }
    }
}

fn string_matches(pattern: &StringMatch, text: &str) -> bool {
    match pattern {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence() => !text.is_empty(),
    }
}

fn account_matches(account: &ServiceAccountMatch, identity: Option<&Identity>) -> bool {
    identity.is_some_and(|identity| {
        identity.namespace == account.namespace && identity.service_account == account.service_account
    })
}

fn net_matches(net: &IpNet, ip: IpAddr) -> bool {
    canonical_net(*net).contains(&ip)
}
