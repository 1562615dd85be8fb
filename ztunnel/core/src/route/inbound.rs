// SPDX-License-Identifier: Apache-2.0
//! Decides where in the pod an inbound connection is delivered.
//!
//! Input: the mesh, the pod, what the peer asks for. Output: an [`InboundTarget`], always in that pod.
//! Whether the connection is admitted is decided afterwards, in [`crate::authz`], with this target.

use std::net::{IpAddr, SocketAddr};
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
    /// The application's address in the pod.
    pub addr: SocketAddr,
    /// The service that the connection was for, as far as it can be told. Telemetry only.
    pub service: Option<Arc<Service>>,
}

/// Decides where a tunneled connection is delivered.
///
/// # Errors
///
/// The reason why it is not.
pub fn inbound(mesh: &Mesh, request: &Inbound<'_>) -> Result<InboundTarget, Refusal> {
    let Inbound { local, authority, .. } = *request;
    let pod_ip = request.pod_ip.to_canonical();
    if let Authority::Addr(asked) = authority
        && asked.ip().to_canonical() != pod_ip
        && local.application_tunnel.is_none()
        && !is_waypoint_of(mesh, request, asked.ip())
    {
        return Err(Refusal::IpMismatch { pod: pod_ip, authority: asked.ip().to_canonical() });
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
    let port = match local.application_tunnel {
        None => port,
        Some(ApplicationTunnel { protocol: ApplicationProtocol::None, port: only }) => only.unwrap_or(port),
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, .. }) => {
            return Err(Refusal::Unsupported("application tunnel with a PROXY header"));
        }
    };
    let service = match requested {
        Some(service) => Some(Arc::clone(service)),
        None => guess_service(mesh, local, port, None),
    };
    Ok(InboundTarget { addr: SocketAddr::new(pod_ip, port), service })
}

/// What the mesh does not say and the decision depends on, by the names that the control plane knows it by. For a mesh
/// that is not known as a whole: what is still missing after it was asked for does not exist.
#[must_use]
pub fn missing(mesh: &Mesh, request: &Inbound<'_>) -> Vec<Name> {
    let Authority::Host { host, .. } = request.authority else { return Vec::new() };
    let keys = request.local.services.iter().map(|membership| &membership.service);
    keys.filter(|key| *key.hostname == **host)
        .filter(|key| mesh.service_by_name(&key.namespace, &key.hostname).is_none())
        .map(|key| key.to_string().into())
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
    Ok(InboundTarget { addr, service: None })
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
/// gets requests for the addresses behind it.
fn is_waypoint_of(mesh: &Mesh, request: &Inbound<'_>, asked: IpAddr) -> bool {
    let waypoint: Option<&GatewayAddress> = match mesh.workload_by_addr(request.network, asked) {
        Some(workload) => workload.waypoint.as_deref(),
        None => {
            mesh.service_by_vip(request.network, asked, None).and_then(|service| service.waypoint.as_deref())
        }
    };
    let Some(waypoint) = waypoint else { return false };
    let local = request.local;
    let has_local = |service: &Arc<Service>| service.endpoints.contains_key(&local.uid);
    let is_local = |workload: &Arc<Workload>| workload.uid == local.uid;
    match &waypoint.destination {
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
    }
}
