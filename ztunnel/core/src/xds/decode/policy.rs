// SPDX-License-Identifier: Apache-2.0
//! `istio.security.Authorization`. Source: control-plane contract, section 3.
//!
//! A policy with any part that cannot be read is refused whole: leaving the part out would widen an allow, or narrow
//! a deny. While no readable version of it is in force, a stand-in denies what the policy may have been about: who
//! wrote it wanted traffic restricted, and does not get it unrestricted.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Decoder, Reason, ip, known, port};
use crate::Name;
use crate::mesh::{Action, Change, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
use crate::xds::proto::security as api;

pub(super) fn policy(decoder: &mut Decoder, raw: &api::Authorization) -> Result<Policy, Reason> {
    let scope = scope(raw.scope)?;
    let action = match known("action", raw.action)? {
        api::Action::Allow => Action::Allow,
        api::Action::Deny => Action::Deny,
    };
    let mut rules = Vec::with_capacity(raw.rules.len());
    for rule in &raw.rules {
        let mut clauses = Vec::with_capacity(rule.clauses.len());
        for clause in &rule.clauses {
            let matches = clause.matches.iter().map(|raw| criteria(decoder, raw));
            clauses.push(Clause { matches: matches.collect::<Result<_, Reason>>()? });
        }
        rules.push(Rule { clauses });
    }
    let (name, namespace) = (decoder.name(&raw.name), decoder.name(&raw.namespace));
    Ok(Policy { name, namespace, scope, action, rules, dry_run: raw.dry_run })
}

/// What is enforced in the place of a policy that cannot be read: as far as its scope is known, deny; a policy that
/// was only to be tried out needs nobody in its place.
pub(super) fn stand_in(key: &Name, raw: Option<&api::Authorization>) -> Option<Change> {
    let (namespace, name) = key.split_once('/')?;
    if raw.is_some_and(|raw| raw.dry_run) {
        return None;
    }
    // Of an unknown scope, the namespace is as far as a policy reaches that is not in the root namespace.
    let scope = raw.map_or(Ok(Scope::Namespace), |raw| scope(raw.scope)).unwrap_or(Scope::Namespace);
    let policy = Policy {
        name: name.into(),
        namespace: namespace.into(),
        scope,
        action: Action::Deny,
        // A rule without clauses always matches.
        rules: vec![Rule::default()],
        dry_run: false,
    };
    Some(Change::Policy(Name::clone(key), Arc::new(policy)))
}

fn scope(raw: i32) -> Result<Scope, Reason> {
    Ok(match known("scope", raw)? {
        api::Scope::Global => Scope::Global,
        api::Scope::Namespace => Scope::Namespace,
        api::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

fn criteria(decoder: &mut Decoder, raw: &api::Match) -> Result<Match, Reason> {
    let accounts = |decoder: &mut Decoder, all: &[api::ServiceAccountMatch]| {
        let account = |raw: &api::ServiceAccountMatch| ServiceAccountMatch {
            namespace: decoder.name(&raw.namespace),
            service_account: decoder.name(&raw.service_account),
        };
        all.iter().map(account).collect()
    };
    Ok(Match {
        namespaces: texts(decoder, "namespaces", &raw.namespaces)?,
        not_namespaces: texts(decoder, "not_namespaces", &raw.not_namespaces)?,
        service_accounts: accounts(decoder, &raw.service_accounts),
        not_service_accounts: accounts(decoder, &raw.not_service_accounts),
        principals: texts(decoder, "principals", &raw.principals)?,
        not_principals: texts(decoder, "not_principals", &raw.not_principals)?,
        source_ips: ranges("source_ips", &raw.source_ips)?,
        not_source_ips: ranges("not_source_ips", &raw.not_source_ips)?,
        destination_ips: ranges("destination_ips", &raw.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &raw.not_destination_ips)?,
        destination_ports: ports("destination_ports", &raw.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &raw.not_destination_ports)?,
    })
}

fn texts(
    decoder: &mut Decoder,
    field: &'static str,
    all: &[api::StringMatch],
) -> Result<Vec<StringMatch>, Reason> {
    use api::string_match::MatchType;
    let text = |raw: &api::StringMatch| match &raw.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(decoder.name(text))),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(decoder.name(text))),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(decoder.name(text))),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence()),
        None => Err(Reason::Nothing(field)),
    };
    all.iter().map(text).collect()
}

fn ranges(field: &'static str, all: &[api::Address]) -> Result<Vec<IpNet>, Reason> {
    let range = |raw: &api::Address| {
        // A range of IPv6-mapped addresses keeps its prefix, hence its form.
        let ip = match <[u8; 16]>::try_from(&raw.address[..]) {
            Ok(v6) => v6.into(),
            Err(_) => ip(field, &raw.address)?,
        };
        let net = u8::try_from(raw.length).ok().and_then(|length| IpNet::new(ip, length).ok());
        net.ok_or(Reason::Range { field, ip, prefix: raw.length })
    };
    all.iter().map(range).collect()
}

fn ports(field: &'static str, all: &[u32]) -> Result<Vec<u16>, Reason> {
    all.iter().map(|&raw| port(field, raw)).collect()
}
