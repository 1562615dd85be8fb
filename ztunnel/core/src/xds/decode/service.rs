// SPDX-License-Identifier: Apache-2.0
//! `istio.workload.Service`. Source: control-plane contract, sections 2.2 and 2.3.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Decoder, Reason, ip, known};
use crate::addr::NetworkAddr;
use crate::lb::Candidates;
use crate::mesh::{
    CidrVip, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, LocalityScope, Service, Visibility,
    WeightedWaypoint,
};
use crate::xds::proto::workload as api;

pub(super) fn service(decoder: &mut Decoder, raw: api::Service) -> Result<Service, Reason> {
    if raw.hostname.is_empty() {
        return Err(Reason::Empty("hostname"));
    }
    if raw.namespace.is_empty() {
        return Err(Reason::Empty("namespace"));
    }
    if raw.namespace.contains('/') {
        return Err(Reason::Slash { field: "namespace", name: raw.namespace });
    }
    let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
    for address in &raw.addresses {
        match range(address)? {
            None => vips.push(decoder.network_addr("addresses", address)?),
            Some(cidr) => cidr_vips.push(CidrVip { network: decoder.name(&address.network), cidr }),
        }
    }
    let mut weighted_waypoints = Vec::with_capacity(raw.weighted_waypoints.len());
    for weighted in &raw.weighted_waypoints {
        let destination = weighted.destination.as_ref().ok_or(Reason::Nothing("weighted_waypoints"))?;
        let destination = decoder.gateway("weighted_waypoints", destination)?;
        weighted_waypoints.push(WeightedWaypoint { destination, weight: weighted.weight });
    }
    Ok(Service {
        name: decoder.name(&raw.name),
        namespace: decoder.name(&raw.namespace),
        hostname: decoder.name(&raw.hostname),
        vips,
        cidr_vips,
        ports: decoder.ports("ports", &raw.ports)?,
        // They come with their workloads.
        endpoints: BTreeMap::new(),
        subject_alt_names: raw.subject_alt_names.iter().map(|name| decoder.name(name)).collect(),
        waypoint: raw.waypoint.map(|raw| decoder.gateway("waypoint", &raw)).transpose()?.map(Box::new),
        weighted_waypoints,
        load_balancer: raw.load_balancing.map(|raw| load_balancer(&raw)).transpose()?,
        ip_families: match known("ip_families", raw.ip_families)? {
            api::IpFamilies::Automatic => None,
            api::IpFamilies::Ipv4Only => Some(IpFamilies::IPv4),
            api::IpFamilies::Ipv6Only => Some(IpFamilies::IPv6),
            api::IpFamilies::Dual => Some(IpFamilies::Dual),
        },
        canonical: raw.canonical,
        // An unknown one is public: so says the API.
        visibility: match api::service::Visibility::try_from(raw.visibility) {
            Ok(api::service::Visibility::Namespace) => Visibility::Namespace,
            Ok(api::service::Visibility::Public) | Err(_) => Visibility::Public,
        },
        candidates: Candidates::default(),
    })
}

/// The range that an address stands for, if it is more than one address.
fn range(raw: &api::NetworkAddress) -> Result<Option<IpNet>, Reason> {
    let field = "addresses";
    let NetworkAddr { ip, .. } = NetworkAddr { network: "".into(), ip: ip(field, &raw.address)? };
    let whole: u32 = if ip.is_ipv4() { 32 } else { 128 };
    match raw.length {
        None => Ok(None),
        Some(length) if length == whole => Ok(None),
        Some(length) => {
            let net = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
            net.map(|net| Some(net.trunc())).ok_or(Reason::Range { field, ip, prefix: length })
        }
    }
}

fn load_balancer(raw: &api::LoadBalancing) -> Result<LoadBalancer, Reason> {
    use api::load_balancing::{HealthPolicy as ApiHealthPolicy, Mode, Scope};
    let field = "load_balancing.routing_preference";
    let scope = |&value: &i32| match known(field, value)? {
        Scope::UnspecifiedScope => Err(Reason::Unknown { field, value }),
        Scope::Region => Ok(LocalityScope::Region),
        Scope::Zone => Ok(LocalityScope::Zone),
        Scope::Subzone => Ok(LocalityScope::Subzone),
        Scope::Node => Ok(LocalityScope::Node),
        Scope::Cluster => Ok(LocalityScope::Cluster),
        Scope::Network => Ok(LocalityScope::Network),
    };
    Ok(LoadBalancer {
        routing_preferences: raw.routing_preference.iter().map(scope).collect::<Result<_, Reason>>()?,
        mode: match known("load_balancing.mode", raw.mode)? {
            Mode::UnspecifiedMode => LoadBalancerMode::Standard,
            Mode::Strict => LoadBalancerMode::Strict,
            Mode::Failover => LoadBalancerMode::Failover,
            Mode::Passthrough => LoadBalancerMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", raw.health_policy)? {
            ApiHealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            ApiHealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}
