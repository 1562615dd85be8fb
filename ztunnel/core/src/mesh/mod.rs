// SPDX-License-Identifier: Apache-2.0
//! What the control plane told us: workloads, services, policies, and the lookups that decisions need.
//!
//! A decision reads one [`Mesh`] and sees one consistent view. All lookups are by hash; none allocates.
//! Names are shared ([`Name`]), entries are shared ([`Arc`]), so a connection may keep what it found.
//!
//! Invariant: a service holds exactly the endpoints that its health policy admits; every other endpoint
//! that some workload declares is staged, and comes back when its service does.

mod change;
mod clue;
mod index;
pub mod local;
pub mod names;
mod policies;
pub mod policy;
pub mod ports;
pub mod service;
#[cfg(test)]
mod tests;
pub mod workload;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

pub use self::change::{Change, Effect};
pub use self::clue::Subject;
use self::index::{ServiceIndex, WorkloadIndex};
use self::policies::Policies;
pub use self::policies::{Allows, AppliedPolicies, PolicySet};
pub use self::policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use self::ports::PortMap;
pub use self::service::{
    CidrVip, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, LocalityScope, Service,
    StagedEndpoints, Visibility, WeightedWaypoint,
};
pub use self::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, Locality, Membership,
    NetworkMode, Protocol, ServiceKey, Workload,
};
use crate::Name;

/// Endpoints that no service holds, by workload uid.
type Staged = BTreeMap<Name, Endpoint>;

/// What the control plane told us.
#[derive(Debug, Default)]
pub struct Mesh {
    workloads: WorkloadIndex,
    services: ServiceIndex,
    staged: HashMap<ServiceKey, Staged>,
    policies: Policies,
}

/// Lookups.
impl Mesh {
    /// The workload with this key.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_uid(uid)
    }

    /// The workload that has this address in this network.
    #[must_use]
    pub fn workload_by_addr(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_addr(network, ip.to_canonical())
    }

    /// The workload that is known by this host name.
    #[must_use]
    pub fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_hostname(namespace, hostname)
    }

    /// The workload behind a pod of this node: exact on all three, among the workloads of `node` alone
    /// if it is given.
    #[must_use]
    pub fn local_workload(
        &self,
        name: &str,
        namespace: &str,
        service_account: &str,
        node: Option<&str>,
    ) -> Option<&Arc<Workload>> {
        self.workloads.by_info(name, |workload| {
            *workload.namespace == *namespace
                && *workload.service_account == *service_account
                && node.is_none_or(|node| *workload.node == *node)
        })
    }

    /// The service that a client reaches at this virtual address.
    ///
    /// An exact address comes before a range. Among several services the client's own namespace comes
    /// first, then the last canonical one, then the first.
    #[must_use]
    pub fn service_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.services.by_vip(network, ip.to_canonical(), client_namespace)
    }

    /// The service of this host name that suits a client of the preferred namespace best.
    #[must_use]
    pub fn service_by_hostname(
        &self,
        hostname: &str,
        preferred_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.services.by_hostname(hostname, preferred_namespace)
    }

    /// The services of this host name, one per namespace, in the order in which they came.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services.all_by_hostname(hostname)
    }

    /// The service with this key.
    #[must_use]
    pub fn service_by_name(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.services.by_key(namespace, hostname)
    }

    /// The services that a workload is an endpoint of, in the order in which it names them.
    pub fn services_of<'m>(&'m self, workload: &'m Workload) -> impl Iterator<Item = &'m Arc<Service>> {
        workload.services.iter().filter_map(|membership| {
            self.service_by_name(&membership.service.namespace, &membership.service.hostname)
        })
    }

    /// The policy with this key, `namespace/name`.
    #[must_use]
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload.
    #[must_use]
    pub fn policies_for(&self, workload: &Workload) -> AppliedPolicies<'_> {
        self.policies.applied(workload)
    }
}

/// Everything of a mesh, in no order.
#[derive(Clone, Debug, Default)]
pub struct Everything {
    /// All workloads.
    pub workloads: Vec<Arc<Workload>>,
    /// All services.
    pub services: Vec<Arc<Service>>,
    /// All policies.
    pub policies: Vec<Arc<Policy>>,
    /// The endpoints whose service is not known, by service.
    pub staged: BTreeMap<ServiceKey, StagedEndpoints>,
}

/// Dumps, each in a stable order but for the first.
impl Mesh {
    /// A copy of all references, for those who have a long look and must not hold up anybody.
    #[must_use]
    pub fn everything(&self) -> Everything {
        Everything {
            workloads: self.workloads.all().map(Arc::clone).collect(),
            services: self.services.all().map(Arc::clone).collect(),
            policies: self.policies.iter().map(|(_, policy)| Arc::clone(policy)).collect(),
            staged: self
                .staged()
                .into_iter()
                .map(|(key, endpoints)| (key.clone(), StagedEndpoints(endpoints.clone())))
                .collect(),
        }
    }

    /// All workloads, by uid.
    #[must_use]
    pub fn workloads(&self) -> Vec<&Arc<Workload>> {
        self.workloads.sorted()
    }

    /// All services, by host name and namespace.
    #[must_use]
    pub fn services(&self) -> Vec<&Arc<Service>> {
        self.services.sorted()
    }

    /// All policies, by key.
    #[must_use]
    pub fn policies(&self) -> Vec<&Arc<Policy>> {
        let mut all: Vec<_> = self.policies.iter().collect();
        all.sort_unstable_by_key(|&(key, _)| key);
        all.into_iter().map(|(_, policy)| policy).collect()
    }

    /// The endpoints whose service is not known, by service and workload uid.
    #[must_use]
    pub fn staged(&self) -> BTreeMap<&ServiceKey, &BTreeMap<Name, Endpoint>> {
        let unknown = |key: &ServiceKey| self.service_by_name(&key.namespace, &key.hostname).is_none();
        self.staged.iter().filter(|(key, _)| unknown(key)).collect()
    }
}

/// Changes. Each one leaves the mesh consistent.
impl Mesh {
    /// How many workloads there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.workloads.len()
    }

    /// Makes room for as many more workloads, so that no single insertion has to move all the others.
    pub fn reserve(&mut self, workloads: usize) {
        self.workloads.reserve(workloads);
    }

    /// Adds a workload, or replaces the one with the same uid, and makes it an endpoint of its services.
    pub fn insert_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid);
        for membership in &workload.services {
            let endpoint = Endpoint { ports: membership.ports.clone(), status: workload.status };
            self.add_endpoint(&membership.service, Name::clone(&workload.uid), endpoint);
        }
        self.workloads.insert(workload);
    }

    /// Removes a workload from the mesh and from its services.
    pub fn remove_workload(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.workloads.remove(uid)?;
        for membership in &workload.services {
            self.services.update(&membership.service, |service| {
                service.endpoints.remove(uid);
            });
            if let Some(staged) = self.staged.get_mut(&membership.service) {
                staged.remove(uid);
                if staged.is_empty() {
                    self.staged.remove(&membership.service);
                }
            }
        }
        Some(workload)
    }

    fn add_endpoint(&mut self, service: &ServiceKey, uid: Name, endpoint: Endpoint) {
        let mut refused = Some(endpoint);
        self.services.update(service, |service| {
            if let Some(endpoint) = refused.take_if(|endpoint| service.admits(endpoint.status)) {
                service.endpoints.insert(Name::clone(&uid), endpoint);
            }
        });
        if let Some(endpoint) = refused {
            self.staged.entry(service.clone()).or_default().insert(uid, endpoint);
        }
    }

    /// Adds a service, or replaces the one with the same key, which hands its endpoints over.
    pub fn insert_service(&mut self, mut service: Service) {
        let key = service.key();
        let mut endpoints = self.staged.remove(&key).unwrap_or_default();
        if let Some(old) = self.services.by_key(&key.namespace, &key.hostname) {
            endpoints.extend(old.endpoints.clone());
        }
        endpoints.append(&mut service.endpoints);
        let (held, staged) = endpoints.into_iter().partition(|(_, endpoint)| service.admits(endpoint.status));
        service.endpoints = held;
        let staged: Staged = staged;
        if !staged.is_empty() {
            self.staged.insert(key, staged);
        }
        self.services.insert(Arc::new(service));
    }

    /// Removes a service; its endpoints wait for it to come back.
    pub fn remove_service(&mut self, namespace: &str, hostname: &str) -> Option<Arc<Service>> {
        let service = self.services.remove(namespace, hostname)?;
        if !service.endpoints.is_empty() {
            self.staged.entry(service.key()).or_default().extend(service.endpoints.clone());
        }
        Some(service)
    }

    /// Adds a policy under its own key, or replaces the one with the same key.
    pub fn insert_policy(&mut self, policy: Arc<Policy>) {
        self.insert_policy_as(policy.key(), policy);
    }

    /// Adds a policy under the key that somebody else has given it.
    pub fn insert_policy_as(&mut self, key: Name, policy: Arc<Policy>) {
        self.policies.insert(key, policy);
    }

    /// Removes a policy.
    pub fn remove_policy(&mut self, key: &str) -> Option<Arc<Policy>> {
        self.policies.remove(key)
    }
}
