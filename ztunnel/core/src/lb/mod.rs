// SPDX-License-Identifier: Apache-2.0
//! Chooses one endpoint of a service: the best by routing preference, among equals by chance and weight.
//!
//! There is no state: no round robin, no outlier detection. An endpoint that is unhealthy for its service
//! or has no weight is never chosen.

mod candidates;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use self::candidates::Candidates;
use crate::mesh::{
    IpFamilies, LoadBalancer, LoadBalancerMode, LocalityScope, Mesh, PortMap, Service, Workload,
};

/// Draws from a table before all endpoints are looked through: some may not have the port.
const DRAWS: usize = 4;

/// What an endpoint is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve the application.
    Destination,
    /// To be the way to another. Ports that its service does not have lead to endpoints with an application tunnel: it takes
    /// them all.
    Waypoint,
    /// To be the way into another network, in which it may be itself: it is dialed at its own address all the same.
    Gateway,
}

/// One endpoint, chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'m> {
    /// The workload.
    pub workload: &'m Arc<Workload>,
    /// The workload's own port.
    pub port: u16,
}

/// Chooses an endpoint of `service` for a connection of `source` to a service port.
///
/// None if no endpoint may be chosen, or if the service chooses none (see [`Service::is_passthrough`]).
pub fn pick<'m>(
    mesh: &'m Mesh,
    service: &'m Service,
    source: &Workload,
    (port, purpose): (u16, Purpose),
    entropy: &mut dyn FnMut() -> u64,
) -> Option<Choice<'m>> {
    let listed = service.ports.target(port);
    if listed.is_none() && purpose != Purpose::Waypoint {
        return None;
    }
    let target = |workload: &Workload, own: &PortMap| target_port((port, purpose), own, listed, workload);
    let table = (purpose != Purpose::Gateway).then(|| service.candidates.table(mesh, service, source));
    if let Some(table) = table.flatten() {
        // As good as looking through all: who does not have the port is as if it were not in the table.
        for _ in 0..DRAWS {
            let (workload, own) = table.at(draw(table.total, entropy)?)?;
            if !mesh.workload_by_uid(&workload.uid).is_some_and(|known| Arc::ptr_eq(known, workload)) {
                break;
            }
            if let Some(port) = target(workload, own) {
                return Some(Choice { workload, port });
            }
        }
    }
    let usable = service.endpoints.iter().filter_map(|(uid, endpoint)| {
        let workload =
            mesh.workload_by_uid(uid).filter(|workload| is_reachable(workload, source, purpose))?;
        let port = target(workload, &endpoint.ports)?;
        Some(Choice { workload, port })
    });
    let best = best(usable, service.load_balancer.as_ref(), source, |choice| choice.workload);
    let mut drawn = draw(best.iter().map(weight).sum(), entropy)?;
    best.into_iter().find(|choice| {
        let weight = weight(choice);
        let is_it = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        is_it
    })
}

fn weight(choice: &Choice<'_>) -> u64 {
    choice.workload.capacity.into()
}

/// Those of the highest rank.
fn best<T>(
    all: impl Iterator<Item = T>,
    balancer: Option<&LoadBalancer>,
    source: &Workload,
    workload: impl Fn(&T) -> &Workload,
) -> Vec<T> {
    let mut highest = 0;
    let mut best = Vec::new();
    for one in all {
        let Some(rank) = rank(balancer, source, workload(&one)) else { continue };
        if rank > highest {
            highest = rank;
            best.clear();
        }
        if rank == highest {
            best.push(one);
        }
    }
    best
}

/// A number below `bound`, all as likely up to a bias that no weight makes visible.
pub(crate) fn draw(bound: u64, entropy: &mut dyn FnMut() -> u64) -> Option<u64> {
    if bound == 0 {
        return None;
    }
    let product = u128::from(entropy()) * u128::from(bound);
    u64::try_from(product >> 64).ok()
}

/// Whether there is a way from the source to the workload, and a share for it. One in another network is reached through
/// that network's gateway alone, and then needs no address of its own.
fn is_reachable(workload: &Workload, source: &Workload, purpose: Purpose) -> bool {
    let addressed = if workload.network == source.network || purpose == Purpose::Gateway {
        !workload.workload_ips.is_empty() || !workload.hostname.is_empty()
    } else {
        workload.network_gateway.is_some()
    };
    addressed && workload.capacity > 0
}

/// The endpoint's own word, then the service's. A waypoint whose application takes everything at one port needs neither.
fn target_port(
    (requested, purpose): (u16, Purpose),
    own: &PortMap,
    listed: Option<u16>,
    workload: &Workload,
) -> Option<u16> {
    let own = own.target(requested).filter(|&port| port > 0);
    let of_service = listed.filter(|&port| port > 0);
    let tunneled = || {
        let port = workload.application_tunnel.and_then(|tunnel| tunnel.port);
        port.filter(|_| purpose == Purpose::Waypoint).map(|_| requested)
    };
    own.or(of_service).or_else(tunneled)
}

/// How well an endpoint meets the preferences; none if it may not be chosen. Only the highest rank counts.
fn rank(load_balancer: Option<&LoadBalancer>, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let Some(load_balancer) = load_balancer else { return Some(0) };
    let preferences = &load_balancer.routing_preferences;
    match load_balancer.mode {
        LoadBalancerMode::Standard => Some(0),
        LoadBalancerMode::Passthrough => None,
        LoadBalancerMode::Strict => {
            preferences.iter().all(|&scope| shares(scope, source, endpoint)).then_some(0)
        }
        LoadBalancerMode::Failover => Some(failover_rank(preferences, source, endpoint)),
    }
}

/// One for each leading preference that is met. A first preference for the network is special: meeting
/// it outweighs all others together, and failing it does not end the count.
fn failover_rank(preferences: &[LocalityScope], source: &Workload, endpoint: &Workload) -> usize {
    let leading = |preferences: &[LocalityScope]| {
        preferences.iter().take_while(|&&scope| shares(scope, source, endpoint)).count()
    };
    match preferences {
        [LocalityScope::Network, others @ ..] => {
            let bonus = if shares(LocalityScope::Network, source, endpoint) { 1 + others.len() } else { 0 };
            bonus + leading(others)
        }
        _ => leading(preferences),
    }
}

/// Whether both are in the same region, zone and so on. Nowhere is the same place as nowhere.
fn shares(scope: LocalityScope, source: &Workload, endpoint: &Workload) -> bool {
    match scope {
        LocalityScope::Region => source.locality.region == endpoint.locality.region,
        LocalityScope::Zone => source.locality.zone == endpoint.locality.zone,
        LocalityScope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        LocalityScope::Node => source.node == endpoint.node,
        LocalityScope::Cluster => source.cluster_id == endpoint.cluster_id,
        LocalityScope::Network => source.network == endpoint.network,
    }
}

/// The address at which a chosen workload is dialed: the original one if it has it, else one that the
/// service allows, of the original's family if there is one.
#[must_use]
pub fn address(workload: &Workload, service: Option<&Service>, original: SocketAddr) -> Option<IpAddr> {
    let original = original.ip().to_canonical();
    if workload.workload_ips.contains(&original) {
        return Some(original);
    }
    let allowed = |ip: &&IpAddr| match service.and_then(|service| service.ip_families) {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::IPv4) => ip.is_ipv4(),
        Some(IpFamilies::IPv6) => ip.is_ipv6(),
    };
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == original.is_ipv4();
    let mut all = workload.workload_ips.iter().filter(allowed);
    all.clone().find(same_family).or_else(|| all.next()).copied()
}

/// One of a host's addresses by chance, of the original's family if there is one.
pub(crate) fn any_address(
    all: &[IpAddr],
    original: IpAddr,
    entropy: &mut dyn FnMut() -> u64,
) -> Option<IpAddr> {
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == original.to_canonical().is_ipv4();
    let preferred: Vec<&IpAddr> = all.iter().filter(same_family).collect();
    let choices = if preferred.is_empty() { all.iter().collect() } else { preferred };
    let drawn = draw(u64::try_from(choices.len()).unwrap_or(u64::MAX), entropy)?;
    choices.get(usize::try_from(drawn).ok()?).map(|&&ip| ip)
}
