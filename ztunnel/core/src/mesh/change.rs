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

/// What a change may have changed for connections that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// Whether they are allowed.
    Authorization,
}

impl Effect {
    /// Of two changes together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::None { other } else { self }
    }
}

impl Mesh {
    /// Applies one change. Removing what is not there changes nothing.
    pub fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Workload(workload) => {
                let old = self.workload_by_uid(&workload.uid);
                let other = old.is_some_and(|old| !is_judged_alike(old, &workload));
                self.insert_workload(workload);
                if other { Effect::Authorization } else { Effect::None }
            }
            Change::Service(service) => {
                self.insert_service(*service);
                Effect::None
            }
            Change::Policy(key, policy) => {
                self.insert_policy_as(key, policy);
                Effect::Authorization
            }
            Change::RemoveAddress(name) => {
                if self.remove_workload(&name).is_none()
                    && let Some((namespace, hostname)) = name.split_once('/')
                {
                    self.remove_service(namespace, hostname);
                }
                Effect::None
            }
            Change::RemovePolicy(key) => {
                self.remove_policy(&key).map_or(Effect::None, |_| Effect::Authorization)
            }
        }
    }
}

/// Whether the same policies apply to both.
fn is_judged_alike(old: &Workload, new: &Workload) -> bool {
    old.namespace == new.namespace && old.authorization_policies == new.authorization_policies
}
