// SPDX-License-Identifier: Apache-2.0
//! What the choice among many endpoints costs again and again, worked out once: who is eligible, with running totals of
//! weights.
//!
//! A node's pods are all in one place, so that one table per service is enough; whoever asks from another place goes
//! without. A table is forgotten with the first change of an endpoint.

use std::sync::{Arc, OnceLock};

use super::{Purpose, best, is_reachable};
use crate::Name;
use crate::mesh::{LoadBalancerMode, Locality, Mesh, PortMap, Service, Workload};

/// Fewer endpoints are looked through faster than a table is found.
const FEW: usize = 16;

/// The memory of one service. It plays no part in what a service is: copies begin without, all are equal.
#[derive(Default)]
pub struct Candidates(OnceLock<Option<Box<Table>>>);

impl Candidates {
    /// An endpoint has changed.
    pub(crate) fn forget(&mut self) {
        self.0.take();
    }

    /// The table for connections of `source`, if there is one.
    pub(super) fn table(&self, mesh: &Mesh, service: &Service, source: &Workload) -> Option<&Table> {
        if service.endpoints.len() <= FEW {
            return None;
        }
        let table = self.0.get_or_init(|| Table::new(mesh, service, source).map(Box::new)).as_deref()?;
        table.place.is_of(source).then_some(table)
    }
}

impl Clone for Candidates {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Candidates {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Candidates {}

impl std::fmt::Debug for Candidates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Candidates")
    }
}

/// Where a source is, as far as the preferences of a service ask.
struct Place {
    network: Name,
    /// Region, zone and so on, node, cluster.
    preferred: Option<(Locality, Name, Name)>,
}

impl Place {
    fn of(source: &Workload, service: &Service) -> Self {
        let mode = service.load_balancer.as_ref().map(|balancer| balancer.mode);
        let is_preferred = matches!(mode, Some(LoadBalancerMode::Strict | LoadBalancerMode::Failover));
        let preferred =
            || (source.locality.clone(), Name::clone(&source.node), Name::clone(&source.cluster_id));
        Self { network: Name::clone(&source.network), preferred: is_preferred.then(preferred) }
    }

    fn is_of(&self, source: &Workload) -> bool {
        self.network == source.network
            && self.preferred.as_ref().is_none_or(|(locality, node, cluster)| {
                *locality == source.locality && *node == source.node && *cluster == source.cluster_id
            })
    }
}

/// Who is eligible, whatever the port.
pub(super) struct Table {
    place: Place,
    /// The sum of all weights.
    pub(super) total: u64,
    /// With the running total of weights, so that a draw finds its endpoint by bisection.
    entries: Vec<(u64, Arc<Workload>, PortMap)>,
}

impl Table {
    /// None if an endpoint is not known yet: it could become known without a change of the service.
    fn new(mesh: &Mesh, service: &Service, source: &Workload) -> Option<Self> {
        let mut all = Vec::with_capacity(service.endpoints.len());
        for (uid, endpoint) in &service.endpoints {
            all.push((mesh.workload_by_uid(uid)?, &endpoint.ports));
        }
        let eligible =
            all.into_iter().filter(|(workload, _)| is_reachable(workload, source, Purpose::Destination));
        let mut total = 0;
        let best = best(eligible, service.load_balancer.as_ref(), source, |&(workload, _)| workload);
        let entries = best.into_iter().map(|(workload, ports)| {
            total += u64::from(workload.capacity);
            (total, Arc::clone(workload), ports.clone())
        });
        let entries: Vec<_> = entries.collect();
        Some(Self { place: Place::of(source, service), total, entries })
    }

    /// The endpoint of a number below the total.
    pub(super) fn at(&self, drawn: u64) -> Option<(&Arc<Workload>, &PortMap)> {
        let winner = self.entries.partition_point(|&(up_to, _, _)| up_to <= drawn);
        self.entries.get(winner).map(|(_, workload, ports)| (workload, ports))
    }
}
