// SPDX-License-Identifier: Apache-2.0
//! All policies, by whom they apply to, and by what a connection must have for one of their rules to match.
//!
//! A pod may have thousands of rules to pass. Each one is filed under a clue ([`super::clue`]), so that a
//! connection asks the few that it has a clue of, and those that have none.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::clue::{self, Filing, Place, Scale, Subject};
use super::{Action, Policy, Rule, Scope, Workload};
use crate::Name;

/// All policies.
#[derive(Debug, Default)]
pub(super) struct Policies {
    all: HashMap<Name, Arc<Policy>>,
    global: PolicySet,
    of_namespace: HashMap<Name, PolicySet>,
}

/// The policies that apply to one workload.
#[derive(Clone, Debug)]
pub struct AppliedPolicies<'m> {
    /// Those of its namespace, and the global ones.
    pub sets: [Option<&'m PolicySet>; 2],
    /// Those that it names and that are in neither, in its order, and as often as it names them.
    pub named: Vec<(&'m Name, &'m Arc<Policy>)>,
    /// What it names and the mesh does not know.
    pub missing: Vec<Name>,
}

impl<'m> AppliedPolicies<'m> {
    /// All of them: the sets by key, then what is named.
    pub fn iter(&self) -> impl Iterator<Item = (&'m Name, &'m Arc<Policy>)> {
        let of_sets = self.sets.iter().flatten().flat_map(|set| set.iter());
        of_sets.chain(self.named.iter().copied())
    }

    /// How many allow policies there are, of those that are in force and of those that are only tried.
    #[must_use]
    pub fn allows(&self) -> Allows {
        let mut all = Allows::default();
        for set in self.sets.iter().flatten() {
            all.enforced += set.allows.enforced;
            all.tried += set.allows.tried;
        }
        self.named.iter().for_each(|(_, policy)| *all.of(policy) += usize::from(is_allow(policy)));
        all
    }
}

/// How many policies allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allows {
    /// In force.
    pub enforced: usize,
    /// Only tried.
    pub tried: usize,
}

impl Allows {
    fn of(&mut self, policy: &Policy) -> &mut usize {
        if policy.dry_run { &mut self.tried } else { &mut self.enforced }
    }
}

fn is_allow(policy: &Policy) -> bool {
    policy.action == Action::Allow
}

impl Policies {
    pub(super) fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.all.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<Policy>)> {
        self.all.iter()
    }

    pub(super) fn applied(&self, workload: &Workload) -> AppliedPolicies<'_> {
        let sets = [self.of_namespace.get(&workload.namespace), Some(&self.global)];
        let mut applied = AppliedPolicies { sets, named: Vec::new(), missing: Vec::new() };
        for key in &workload.authorization_policies {
            match self.all.get_key_value(key) {
                None => applied.missing.push(Name::clone(key)),
                Some((key, policy)) => {
                    let in_a_set = match policy.scope {
                        Scope::Global => true,
                        Scope::Namespace => policy.namespace == workload.namespace,
                        Scope::WorkloadSelector => false,
                    };
                    if !in_a_set {
                        applied.named.push((key, policy));
                    }
                }
            }
        }
        applied
    }

    pub(super) fn insert(&mut self, key: Name, policy: Arc<Policy>) {
        self.remove(&key);
        match policy.scope {
            Scope::Global => self.global.insert(Name::clone(&key), Arc::clone(&policy)),
            Scope::Namespace => {
                let of_namespace = self.of_namespace.entry(Name::clone(&policy.namespace)).or_default();
                of_namespace.insert(Name::clone(&key), Arc::clone(&policy));
            }
            Scope::WorkloadSelector => {}
        }
        self.all.insert(key, policy);
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<Policy>> {
        let policy = self.all.remove(key)?;
        match policy.scope {
            Scope::Global => self.global.remove(key),
            Scope::Namespace => {
                if let Some(of_namespace) = self.of_namespace.get_mut(&policy.namespace) {
                    of_namespace.remove(key);
                    if of_namespace.members.is_empty() {
                        self.of_namespace.remove(&policy.namespace);
                    }
                }
            }
            Scope::WorkloadSelector => {}
        }
        Some(policy)
    }
}

/// Policies that apply to the same workloads.
#[derive(Debug, Default)]
pub struct PolicySet {
    members: BTreeMap<Name, u32>,
    /// By number; a number that is free is used again.
    slots: Vec<Option<Member>>,
    free: Vec<u32>,
    filed: HashMap<u64, Vec<Address>>,
    /// Rules that have no clue.
    everywhere: Vec<Address>,
    /// Lengths of clues that have one, with the number of rules.
    lengths: BTreeMap<(Scale, u16), u32>,
    allows: Allows,
}

#[derive(Debug)]
struct Member {
    key: Name,
    policy: Arc<Policy>,
    /// Under what each of its rules is filed: which clue is best may change, where to take it away must not.
    filings: Box<[Filing]>,
}

/// A rule of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    slot: u32,
    rule: u32,
}

impl PolicySet {
    /// All of them by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<Policy>)> {
        let member = |slot: &u32| self.slots.get(usize::try_from(*slot).ok()?)?.as_ref();
        self.members.iter().filter_map(move |(key, slot)| Some((key, &member(slot)?.policy)))
    }

    /// Shows every rule that can match `subject`, in no order, and perhaps more than once.
    pub fn suspects<'m>(
        &'m self,
        subject: &Subject<'_>,
        mut show: impl FnMut(&'m Name, &'m Policy, &'m Rule),
    ) {
        let mut show = |address: &Address| {
            let member = usize::try_from(address.slot).ok().and_then(|slot| self.slots.get(slot)?.as_ref());
            let rule = usize::try_from(address.rule).ok();
            if let (Some(member), Some(rule)) = (member, rule)
                && let Some(rule) = member.policy.rules.get(rule)
            {
                show(&member.key, &member.policy, rule);
            }
        };
        self.everywhere.iter().for_each(&mut show);
        if self.filed.is_empty() {
            return;
        }
        let lengths = |scale| {
            let of_scale = self.lengths.range((scale, 0)..=(scale, u16::MAX));
            of_scale.map(|((_, length), _)| *length)
        };
        clue::of_subject(subject, lengths, |hash| {
            self.filed.get(&hash).into_iter().flatten().for_each(&mut show);
        });
    }

    fn insert(&mut self, key: Name, policy: Arc<Policy>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let mut filings = Vec::new();
        for (rule, number) in policy.rules.iter().zip(0..) {
            let address = Address { slot, rule: number };
            let popularity = |filing: &Filing| self.filed.get(&filing.hash).map_or(0, Vec::len);
            match clue::place(rule, &popularity) {
                Place::Nowhere => {}
                Place::Everywhere => self.everywhere.push(address),
                Place::Under(found) => {
                    for filing in found {
                        self.filed.entry(filing.hash).or_default().push(address);
                        if let Some(length) = filing.length {
                            *self.lengths.entry(length).or_default() += 1;
                        }
                        filings.push(filing);
                    }
                }
            }
        }
        *self.allows.of(&policy) += usize::from(is_allow(&policy));
        self.members.insert(Name::clone(&key), slot);
        let filings = filings.into_boxed_slice();
        if let Some(place) = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)) {
            *place = Some(Member { key, policy, filings });
        }
    }

    fn remove(&mut self, key: &str) {
        let Some(slot) = self.members.remove(key) else { return };
        let place = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot));
        let Some(Member { policy, filings, .. }) = place.and_then(Option::take) else { return };
        for filing in &filings {
            if let Some(all) = self.filed.get_mut(&filing.hash) {
                all.retain(|address| address.slot != slot);
                if all.is_empty() {
                    self.filed.remove(&filing.hash);
                }
            }
            if let Some(length) = filing.length
                && let Some(count) = self.lengths.get_mut(&length)
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
        self.everywhere.retain(|address| address.slot != slot);
        *self.allows.of(&policy) -= usize::from(is_allow(&policy));
        self.free.push(slot);
    }
}
