// SPDX-License-Identifier: Apache-2.0
//! Chooses one endpoint of a service: the best by routing preference, among equals by chance and weight.
//!
//! There is no state: no round robin, no outlier detection. An endpoint that is unhealthy for its service
//! or has no weight is never chosen.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::{
    Endpoint, IpFamilies, LoadBalancer, LoadBalancerMode, LocalityScope, Mesh, Service, Workload,
};

#[cfg(test)]
mod tests;

/// One endpoint, chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'m> {
    /// The workload.
    pub workload: &'m Arc<Workload>,
    /// The workload's own port.
    pub port: u16,
}

/// Chooses an endpoint of `service` for a connection of `source` to the service port `port`.
///
/// None if no endpoint may be chosen, or if the service chooses none (see [`Service::is_passthrough`]).
pub fn pick<'m>(
    mesh: &'m Mesh,
    service: &Service,
    source: &Workload,
    port: u16,
    entropy: &mut dyn FnMut() -> u64,
) -> Option<Choice<'m>> {
    let service_target = service.ports.target(port)?;
    let mut best = 0;
    let mut total: u64 = 0;
    // With the running total of weights, so that a draw finds its endpoint by bisection.
    let mut candidates: Vec<(u64, Choice<'m>)> = Vec::new();
    for (uid, endpoint) in &service.endpoints {
        let Some(workload) = mesh.workload_by_uid(uid) else { continue };
        if workload.capacity == 0 || !is_addressable(workload, source) {
            continue;
        }
        let Some(rank) = rank(service.load_balancer.as_ref(), source, workload) else { continue };
        let Some(port) = target_port(endpoint, service_target, workload, port) else { continue };
        if rank > best {
            best = rank;
            total = 0;
            candidates.clear();
        }
        if rank == best {
            total += u64::from(workload.capacity);
            candidates.push((total, Choice { workload, port }));
        }
    }
    let drawn = draw(total, entropy)?;
    let winner = candidates.partition_point(|&(up_to, _)| up_to <= drawn);
    candidates.get(winner).map(|&(_, choice)| choice)
}

/// A number below `bound`, all as likely up to a bias that no weight makes visible.
fn draw(bound: u64, entropy: &mut dyn FnMut() -> u64) -> Option<u64> {
    if bound == 0 {
        return None;
    }
    let product = u128::from(entropy()) * u128::from(bound);
    u64::try_from(product >> 64).ok()
}

/// A workload without any address can be reached through the gateway of another network alone.
fn is_addressable(workload: &Workload, source: &Workload) -> bool {
    let elsewhere = workload.network != source.network && workload.network_gateway.is_some();
    !workload.workload_ips.is_empty() || !workload.hostname.is_empty() || elsewhere
}

/// The endpoint's own word, then the service's, then the requested port if one port takes all.
fn target_port(endpoint: &Endpoint, service_target: u16, workload: &Workload, requested: u16) -> Option<u16> {
    let own = endpoint.ports.target(requested).filter(|&port| port > 0);
    let of_service = (service_target > 0).then_some(service_target);
    let tunneled = || workload.application_tunnel.and_then(|tunnel| tunnel.port).map(|_| requested);
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
