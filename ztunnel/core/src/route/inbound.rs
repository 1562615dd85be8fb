// SPDX-License-Identifier: Apache-2.0
//! Decides where in the pod an inbound connection is delivered.
//!
//! Input: the mesh, the pod, what the peer asks for. Output: an [`InboundTarget`], always in that pod.
//! Whether the connection is admitted is decided afterwards, in [`crate::authz`], with this target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Refusal;
use crate::Name;
use crate::addr::{Authority, ILLEGAL_PORTS, OriginalDst, canonical};
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Mesh, Service, Workload,
};

/// One CONNECT request.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The pod that we serve.
    pub local: &'a Workload,
    /// The address of it that the tunnel arrived at.
    pub pod_ip: IpAddr,
    /// The network that this proxy is configured with.
    pub network: &'a str,
    /// What is asked for.
    pub authority: &'a Authority,
}

/// Where an inbound connection is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundTarget {
    /// The application's address in the pod. This is what policies judge, whatever way leads there.
    pub addr: SocketAddr,
    /// The application expects a PROXY header, and this is the destination that it says.
    pub proxied: Option<SocketAddr>,
    /// The service that the connection was for, as far as it can be told. Telemetry only.
    pub service: Option<Arc<Service>>,
}

impl InboundTarget {
    /// What to connect to. An application that reads PROXY headers believes whoever writes them, and so may listen at
    /// localhost alone (`LOCALHOST_APP_TUNNEL`).
    #[must_use]
    pub fn dial(&self, tunnels: AppTunnels) -> SocketAddr {
        if self.proxied.is_none() || tunnels == AppTunnels::ToPod {
            return self.addr;
        }
        let localhost: IpAddr =
            if self.addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        SocketAddr::new(localhost, self.addr.port())
    }
}

/// Where applications take connections with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppTunnels {
    /// At localhost.
    ToLocalhost,
    /// At the pod's address.
    ToPod,
}

/// Decides where a tunneled connection is delivered.
///
/// # Errors
///
/// The reason why it is not.
pub fn inbound(mesh: &Mesh, request: &Inbound<'_>) -> Result<InboundTarget, Refusal> {
    let Inbound { local, authority, .. } = *request;
    let pod_ip = request.pod_ip.to_canonical();
    if let Some(asked) = foreign(request)
        && !is_waypoint_of(mesh, request, asked)
    {
        return Err(Refusal::IpMismatch { pod: pod_ip, authority: asked });
    }
    let (port, requested) = match authority {
        Authority::Addr(asked) => (asked.port(), None),
        Authority::Host { host, port } => {
            let service = mesh
                .service_by_hostname(host, Some(&local.namespace))
                .ok_or_else(|| Refusal::NoServiceForHostname(Name::clone(host)))?;
            let target = own_port(service, local, *port)
                .ok_or_else(|| Refusal::CannotResolvePort { host: Name::clone(host), port: *port })?;
            (target, Some(service))
        }
    };
    if ILLEGAL_PORTS.contains(&port) {
        return Err(Refusal::LoopToSelf);
    }
    let port = local.application_tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let is_proxied = |tunnel: ApplicationTunnel| tunnel.protocol == ApplicationProtocol::Proxy;
    let proxied = match (authority, requested) {
        _ if !local.application_tunnel.is_some_and(is_proxied) => None,
        (Authority::Host { host, port }, Some(service)) => {
            let vip = own_vip(service, request.network);
            let vip = vip.ok_or_else(|| Refusal::NoServiceAddress(Name::clone(host)))?;
            Some(SocketAddr::new(vip, *port))
        }
        (Authority::Addr(asked), _) => Some(*asked),
        (Authority::Host { host, .. }, None) => {
            return Err(Refusal::NoServiceForHostname(Name::clone(host)));
        }
    };
    let service = match requested {
        Some(service) => Some(Arc::clone(service)),
        None => guess_service(mesh, local, port, None),
    };
    Ok(InboundTarget { addr: SocketAddr::new(pod_ip, port), proxied, service })
}

/// The requested address, if only a waypoint of it may take the connection.
fn foreign(request: &Inbound<'_>) -> Option<IpAddr> {
    let Authority::Addr(asked) = request.authority else { return None };
    let asked = asked.ip().to_canonical();
    let is_foreign = asked != request.pod_ip.to_canonical() && request.local.application_tunnel.is_none();
    is_foreign.then_some(asked)
}

/// The address that a service is known by in our network, or else in any: IPv4 first.
fn own_vip(service: &Service, network: &str) -> Option<IpAddr> {
    let own = || service.vips.iter().filter(|vip| *vip.network == *network).map(|vip| vip.ip);
    let any = || service.vips.first().map(|vip| vip.ip);
    own().find(IpAddr::is_ipv4).or_else(|| own().next()).or_else(any)
}

/// What the mesh does not say and the decision depends on, by the names that the control plane knows it by. For a mesh
/// that is not known as a whole: what is still missing after it was asked for does not exist.
#[must_use]
pub fn missing(mesh: &Mesh, request: &Inbound<'_>) -> Vec<Name> {
    let local = request.local;
    if let Authority::Host { host, .. } = request.authority {
        let keys = local.services.iter().map(|membership| &membership.service);
        return keys
            .filter(|key| *key.hostname == **host)
            .filter(|key| mesh.service_by_name(&key.namespace, &key.hostname).is_none())
            .map(|key| key.to_string().into())
            .collect();
    }
    let Some(asked) = foreign(request) else { return Vec::new() };
    let is_known = |network: &str, ip: IpAddr| {
        mesh.workload_by_addr(network, ip).is_some() || mesh.service_by_vip(network, ip, None).is_some()
    };
    if !is_known(request.network, asked) {
        return vec![format!("{}/{asked}", request.network).into()];
    }
    let unknown = |waypoint: &&GatewayAddress| match &waypoint.destination {
        GatewayDestination::Address(address) => !is_known(&address.network, address.ip),
        GatewayDestination::Hostname(key) => {
            mesh.service_by_name(&key.namespace, &key.hostname).is_none()
                && mesh.workload_by_hostname(&key.namespace, &key.hostname).is_none()
        }
    };
    waypoints_of(mesh, request.network, asked)
        .filter(unknown)
        .map(|waypoint| waypoint.destination.to_string().into())
        .collect()
}

/// Decides where a connection is delivered that arrived without a tunnel: where it was going.
///
/// # Errors
///
/// [`Refusal::LoopToSelf`] for our own listeners.
pub fn plaintext(original_dst: OriginalDst) -> Result<InboundTarget, Refusal> {
    let addr = canonical(original_dst.0);
    if ILLEGAL_PORTS.contains(&addr.port()) {
        return Err(Refusal::LoopToSelf);
    }
    Ok(InboundTarget { addr, proxied: None, service: None })
}

/// The service that a connection to this port of the pod was probably for. Telemetry only.
///
/// The peer's word (the `host` of the `forwarded` header) counts if the pod is in that service; else the
/// first service of the pod that leads to the port.
#[must_use]
pub fn guess_service(
    mesh: &Mesh,
    local: &Workload,
    port: u16,
    forwarded_host: Option<&str>,
) -> Option<Arc<Service>> {
    let named =
        forwarded_host.and_then(|host| mesh.services_of(local).find(|service| *service.hostname == *host));
    let leads_here = |service: &&Arc<Service>| {
        let own = service.endpoints.get(&local.uid);
        let by_service = service.ports.iter().any(|(_, target)| target == port);
        by_service || own.is_some_and(|own| own.ports.iter().any(|(_, target)| target == port))
    };
    named.or_else(|| mesh.services_of(local).find(leads_here)).map(Arc::clone)
}

/// The pod's own port behind a service port.
fn own_port(service: &Service, local: &Workload, port: u16) -> Option<u16> {
    let own = service.endpoints.get(&local.uid).and_then(|endpoint| endpoint.ports.target(port));
    own.filter(|&port| port > 0).or_else(|| service.ports.target(port)).filter(|&port| port > 0)
}

/// Whether the address belongs to something whose waypoint is the pod that we serve: a captured waypoint
/// gets requests for the addresses behind it. Of several waypoints with weights, each that can be chosen is one.
fn is_waypoint_of(mesh: &Mesh, request: &Inbound<'_>, asked: IpAddr) -> bool {
    let local = request.local;
    let has_local = |service: &Arc<Service>| service.endpoints.contains_key(&local.uid);
    let is_local = |workload: &Arc<Workload>| workload.uid == local.uid;
    waypoints_of(mesh, request.network, asked).any(|waypoint| match &waypoint.destination {
        GatewayDestination::Address(address) => {
            match mesh.service_by_vip(&address.network, address.ip, None) {
                Some(service) => has_local(service),
                None => mesh.workload_by_addr(&address.network, address.ip).is_some_and(is_local),
            }
        }
        GatewayDestination::Hostname(key) => match mesh.service_by_name(&key.namespace, &key.hostname) {
            Some(service) => has_local(service),
            None => *local.hostname == *key.hostname && *local.namespace == *key.namespace,
        },
    })
}

/// The waypoints that the traffic of an address may come through.
fn waypoints_of<'m>(mesh: &'m Mesh, network: &str, ip: IpAddr) -> impl Iterator<Item = &'m GatewayAddress> {
    let workload = mesh.workload_by_addr(network, ip);
    let service = if workload.is_none() { mesh.service_by_vip(network, ip, None) } else { None };
    let weighted = service.into_iter().flat_map(|service| &service.weighted_waypoints);
    let weighted = weighted.filter(|waypoint| waypoint.weight > 0).map(|waypoint| &waypoint.destination);
    let of_service = service.and_then(|service| service.waypoint.as_deref());
    let of_workload = workload.and_then(|workload| workload.waypoint.as_deref());
    of_workload.into_iter().chain(of_service).chain(weighted)
}
