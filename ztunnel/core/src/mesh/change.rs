// SPDX-License-Identifier: Apache-2.0
//! One change of the mesh as the control plane orders it.

use std::sync::Arc;

use super::{Mesh, Policy, Service, Workload};
use crate::Name;

/// One change. Applied, it leaves the mesh consistent.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Add or replace this workload.
    Workload(Arc<Workload>),
    /// Add or replace this service; its endpoints stay.
    Service(Box<Service>),
    /// Add or replace the policy with this key.
    Policy(Name, Arc<Policy>),
    /// Remove the workload with this uid, or else the service with this `namespace/hostname`.
    RemoveAddress(Name),
    /// Remove the policy with this key.
    RemovePolicy(Name),
}

/// What a change may have changed for connections that are open. The greater one includes the lesser ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// Whether they are allowed, for those to a workload that was described anew or is gone.
    Workloads,
    /// Whether they are allowed, for any of them.
    Policies,
}

impl Mesh {
    /// Applies one change. Removing what is not there changes nothing.
    pub fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Workload(workload) => {
                let old = self.workload_by_uid(&workload.uid);
                let other = old.is_some_and(|old| !is_judged_alike(old, &workload));
                self.insert_workload(workload);
                if other { Effect::Workloads } else { Effect::None }
            }
            Change::Service(service) => {
                self.insert_service(*service);
                Effect::None
            }
            Change::Policy(key, policy) => {
                self.insert_policy_as(key, policy);
                Effect::Policies
            }
            Change::RemoveAddress(name) => {
                if self.remove_workload(&name).is_some() {
                    return Effect::Workloads;
                }
                if let Some((namespace, hostname)) = name.split_once('/') {
                    self.remove_service(namespace, hostname);
                }
                Effect::None
            }
            Change::RemovePolicy(key) => self.remove_policy(&key).map_or(Effect::None, |_| Effect::Policies),
        }
    }
}

/// Whether both are the same pod, to which the same policies apply.
fn is_judged_alike(old: &Workload, new: &Workload) -> bool {
    let of = |workload: &Workload| {
        let Workload { name, namespace, service_account, node, .. } = workload;
        [name, namespace, service_account, node].map(Name::clone)
    };
    of(old) == of(new) && old.authorization_policies == new.authorization_policies
}
