// SPDX-License-Identifier: Apache-2.0
//! What a connection must have for a rule to match it, as far as it can be looked up by hash.
//!
//! A clue is necessary, never sufficient: whoever finds a rule by one still has to ask the whole rule. So two clues may
//! share a hash: that costs a question, never an answer.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Clause, Match, Rule, StringMatch};
use crate::addr::canonical_net;
use crate::identity::Identity;

/// A connection as policies see it.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What the peer's certificate says; none without mutual TLS.
    pub identity: Option<&'a Identity>,
    /// The identity without `spiffe://`.
    pub principal: Option<String>,
    /// The TCP peer, IPv4 never in its mapped form.
    pub source_ip: IpAddr,
    /// Where the application is reached, IPv4 never in its mapped form.
    pub destination_ip: IpAddr,
    /// The port there.
    pub destination_port: u16,
}

impl Subject<'_> {
    /// The namespace of the identity; the empty text without one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.identity.map_or("", |identity| &*identity.namespace)
    }
}

/// Something that a connection has, or does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Clue<'a> {
    Principal(&'a str),
    Account(&'a str, &'a str),
    Namespace(&'a str),
    /// The beginning or the end of a text.
    Part(Scale, &'a [u8]),
    Net(Scale, IpNet),
    Port(u16),
    /// It has an identity.
    Authenticated,
    /// It has none.
    Anonymous,
}

/// What a clue is a part of, where a connection has one part per length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scale {
    PrincipalStart,
    PrincipalEnd,
    NamespaceStart,
    NamespaceEnd,
    Source4,
    Source6,
    Destination4,
    Destination6,
}

/// A clue as rules are filed under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filing {
    pub(super) hash: u64,
    /// For a part: of what, and how long.
    pub(super) length: Option<(Scale, u16)>,
}

/// How often a rule of this kind is asked in vain, beside those that share its clue. Only the order counts.
const RARE: usize = 0;
const COMMON: usize = 64;
const NEARLY_ALL: usize = 1 << 20;

impl Clue<'_> {
    fn filing(self) -> Filing {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        let length = match self {
            Self::Part(scale, part) => Some((scale, u16::try_from(part.len()).unwrap_or(u16::MAX))),
            Self::Net(scale, net) => Some((scale, net.prefix_len().into())),
            Self::Principal(_)
            | Self::Account(..)
            | Self::Namespace(_)
            | Self::Port(_)
            | Self::Authenticated
            | Self::Anonymous => None,
        };
        Filing { hash: hasher.finish(), length }
    }

    fn cost(self) -> usize {
        match self {
            Self::Principal(_) | Self::Account(..) => RARE,
            Self::Net(_, net) if net.prefix_len() > 8 => RARE,
            Self::Namespace(_) | Self::Part(..) | Self::Port(_) | Self::Net(..) => COMMON,
            Self::Authenticated | Self::Anonymous => NEARLY_ALL,
        }
    }
}

/// Under what to file a rule so that every connection that it can match finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It can match nothing.
    Nowhere,
    /// Under each of these.
    Under(Vec<Filing>),
    /// There is nothing to look for: every connection has to ask it.
    Everywhere,
}

/// Chooses among all that could be looked for what leads the fewest connections here: `popularity` says how many rules
/// a clue has already.
pub(super) fn place(rule: &Rule, popularity: &impl Fn(&Filing) -> usize) -> Place {
    let mut best: Option<(usize, Vec<Filing>)> = None;
    for clause in &rule.clauses {
        match of_clause(clause, popularity) {
            // All clauses have to hold.
            Some((_, filings)) if filings.is_empty() => return Place::Nowhere,
            Some(found) if best.as_ref().is_none_or(|(cost, _)| found.0 < *cost) => best = Some(found),
            Some(_) | None => {}
        }
    }
    best.map_or(Place::Everywhere, |(_, filings)| Place::Under(filings))
}

/// The clues of a clause, one of which a connection must have; `None` if there is no telling.
fn of_clause(clause: &Clause, popularity: &impl Fn(&Filing) -> usize) -> Option<(usize, Vec<Filing>)> {
    if clause.matches.is_empty() {
        return None;
    }
    let mut all = (0, Vec::new());
    for one in clause.matches.iter().filter(|one| **one != Match::default()) {
        let (cost, filings) = of_match(one, popularity)?;
        all.0 += cost;
        all.1.extend(filings);
    }
    Some(all)
}

/// The clues of the field that is the most telling.
fn of_match(one: &Match, popularity: &impl Fn(&Filing) -> usize) -> Option<(usize, Vec<Filing>)> {
    let accounts = one.service_accounts.iter();
    let strict = one.not_principals.contains(&StringMatch::Presence());
    let fields: [Option<Vec<Clue<'_>>>; 7] = [
        said(one.principals.iter().map(|value| text(value, TextOf::Principal))),
        said(accounts.map(|account| Some(Clue::Account(&account.namespace, &account.service_account)))),
        said(one.source_ips.iter().map(|net| range(*net, Scale::Source4, Scale::Source6))),
        said(one.namespaces.iter().map(|value| text(value, TextOf::Namespace))),
        said(one.destination_ports.iter().map(|port| Some(Clue::Port(*port)))),
        said(one.destination_ips.iter().map(|net| range(*net, Scale::Destination4, Scale::Destination6))),
        strict.then(|| vec![Clue::Anonymous]),
    ];
    let priced = fields.into_iter().flatten().map(|clues| {
        let filings: Vec<Filing> = clues.iter().map(|clue| clue.filing()).collect();
        let cost: usize =
            clues.iter().zip(&filings).map(|(clue, filing)| clue.cost() + popularity(filing)).sum();
        (cost, filings)
    });
    priced.min_by_key(|(cost, _)| *cost)
}

/// The clues of a field; `None` if it says nothing, or if one of its values cannot be looked for.
fn said<'a>(values: impl ExactSizeIterator<Item = Option<Clue<'a>>>) -> Option<Vec<Clue<'a>>> {
    if values.len() == 0 { None } else { values.collect() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextOf {
    Principal,
    Namespace,
}

fn text(value: &StringMatch, of: TextOf) -> Option<Clue<'_>> {
    let (exact, start, end): (fn(_) -> _, _, _) = match of {
        TextOf::Principal => (|text| Clue::Principal(text), Scale::PrincipalStart, Scale::PrincipalEnd),
        TextOf::Namespace => (|text| Clue::Namespace(text), Scale::NamespaceStart, Scale::NamespaceEnd),
    };
    // Parts are told apart by their length.
    let fits = |part: &str| u16::try_from(part.len()).is_ok();
    match value {
        StringMatch::Exact(text) => Some(exact(text)),
        StringMatch::Prefix(part) | StringMatch::Suffix(part) if part.is_empty() => match of {
            TextOf::Principal => Some(Clue::Authenticated),
            // Without an identity, the namespace is empty: that has any beginning that is.
            TextOf::Namespace => None,
        },
        StringMatch::Prefix(part) => fits(part).then(|| Clue::Part(start, part.as_bytes())),
        StringMatch::Suffix(part) => fits(part).then(|| Clue::Part(end, part.as_bytes())),
        StringMatch::Presence() => Some(Clue::Authenticated),
    }
}

fn range(net: IpNet, v4: Scale, v6: Scale) -> Option<Clue<'static>> {
    let net = canonical_net(net).trunc();
    Some(Clue::Net(if net.addr().is_ipv4() { v4 } else { v6 }, net))
}

/// Tells every clue that a connection has; of those with a length, the ones that `lengths` names.
pub(super) fn of_subject<L: Iterator<Item = u16>>(
    subject: &Subject<'_>,
    lengths: impl Fn(Scale) -> L,
    mut found: impl FnMut(u64),
) {
    let mut tell = |clue: Clue<'_>| found(clue.filing().hash);
    let parts = |tell: &mut dyn FnMut(Clue<'_>), text: &str, start: Scale, end: Scale| {
        let bytes = text.as_bytes();
        for length in lengths(start) {
            if let Some(part) = bytes.get(..length.into()) {
                tell(Clue::Part(start, part));
            }
        }
        for length in lengths(end) {
            let rest = bytes.len().checked_sub(length.into());
            if let Some(part) = rest.and_then(|from| bytes.get(from..)) {
                tell(Clue::Part(end, part));
            }
        }
    };
    match (subject.identity, &subject.principal) {
        (Some(identity), Some(principal)) => {
            tell(Clue::Authenticated);
            tell(Clue::Principal(principal));
            tell(Clue::Account(&identity.namespace, &identity.service_account));
            parts(&mut tell, principal, Scale::PrincipalStart, Scale::PrincipalEnd);
        }
        _ => tell(Clue::Anonymous),
    }
    tell(Clue::Namespace(subject.namespace()));
    parts(&mut tell, subject.namespace(), Scale::NamespaceStart, Scale::NamespaceEnd);
    tell(Clue::Port(subject.destination_port));
    let ends = [
        (subject.source_ip, Scale::Source4, Scale::Source6),
        (subject.destination_ip, Scale::Destination4, Scale::Destination6),
    ];
    for (ip, v4, v6) in ends {
        let scale = if ip.is_ipv4() { v4 } else { v6 };
        for length in lengths(scale) {
            // A length of a range of this family.
            let net = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
            if let Some(net) = net {
                tell(Clue::Net(scale, net.trunc()));
            }
        }
    }
}
