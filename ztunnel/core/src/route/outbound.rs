// SPDX-License-Identifier: Apache-2.0
//! Decides where an outbound connection goes.
//!
//! Input: the mesh, the source workload, the original destination. Output: a [`Routing`].
//! Nothing here waits, logs or looks at a clock.
//!
//! Invariants: a route never leads back to a listener of ours in the source's pod; what the mesh says must be
//! tunneled, or go through a waypoint or a gateway, is tunneled or refused, never sent in the clear.
//! Waypoints and gateways are not supported yet, hence refused.
//!
//! Previous: the socket was accepted by the shell, which found the source workload by its pod.
//! Next: the shell opens the hop.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Hop, Refusal, Route, RouteKind, Routing};
use crate::Name;
use crate::addr::{Authority, ILLEGAL_PORTS, INBOUND_HBONE_PORT, OriginalDst, canonical};
use crate::identity::Identity;
use crate::lb;
use crate::mesh::{GatewayAddress, Mesh, Protocol, Service, Workload};

/// One outbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The pod that connects.
    pub source: &'a Workload,
    /// The network that this proxy is configured with.
    pub network: &'a str,
    /// Where the application connected.
    pub original_dst: OriginalDst,
}

/// Decides where an outbound connection goes.
///
/// `entropy` is asked at most once, for the choice among the endpoints of a service.
pub fn outbound(mesh: &Mesh, conn: &Outbound<'_>, entropy: &mut dyn FnMut() -> u64) -> Routing {
    match decide(mesh, conn, entropy) {
        Ok(route) => Routing::Go(route),
        Err(refusal) => Routing::Refuse(refusal),
    }
}

/// What the mesh does not say and the decision depends on, by the names that the control plane knows it by. For a mesh
/// that is not known as a whole: what is still missing after it was asked for does not exist.
#[must_use]
pub fn missing(mesh: &Mesh, conn: &Outbound<'_>) -> Vec<Name> {
    let ip = canonical(conn.original_dst.0).ip();
    let mut networks = vec![conn.network, &*conn.source.network];
    networks.dedup();
    let unknown = |network: &&str| {
        mesh.workload_by_addr(network, ip).is_none() && mesh.service_by_vip(network, ip, None).is_none()
    };
    networks.into_iter().filter(unknown).map(|network| format!("{network}/{ip}").into()).collect()
}

fn decide(mesh: &Mesh, conn: &Outbound<'_>, entropy: &mut dyn FnMut() -> u64) -> Result<Route, Refusal> {
    let target = canonical(conn.original_dst.0);
    if target.ip().is_loopback() && ILLEGAL_PORTS.contains(&target.port()) {
        return Err(Refusal::LoopToSelf);
    }
    let service = addressed_service(mesh, conn, target);
    if let Some(waypoint) = service.and_then(|service| service.any_waypoint()) {
        return Err(waypoint_refusal(waypoint));
    }
    match upstream(mesh, conn.source, target, entropy) {
        Upstream::Workload { workload, port, through } => {
            let service = through.or(service);
            reach(conn.source, target, &Destination { workload, port, through, service })
        }
        Upstream::NoEndpoint => Err(Refusal::NoHealthyUpstream(target)),
        Upstream::Unknown => match service {
            Some(service) if !service.is_passthrough() => Err(Refusal::NoHealthyUpstream(target)),
            _ => {
                let kind = RouteKind::Passthrough(plain(conn.source, target)?);
                Ok(Route { kind, destination: None, service: None })
            }
        },
    }
}

/// The service that the application connected to. An address that a workload has is never a service's
/// here, and the network is the proxy's own: [`upstream`] differs in both, as upstream's two lookups do.
fn addressed_service<'m>(
    mesh: &'m Mesh,
    conn: &Outbound<'_>,
    target: SocketAddr,
) -> Option<&'m Arc<Service>> {
    match mesh.workload_by_addr(conn.network, target.ip()) {
        Some(_) => None,
        None => mesh.service_by_vip(conn.network, target.ip(), Some(&conn.source.namespace)),
    }
}

enum Upstream<'m> {
    Workload {
        workload: &'m Arc<Workload>,
        port: u16,
        through: Option<&'m Arc<Service>>,
    },
    /// A service that has nobody to offer. Sending its traffic on in the clear would be a way around.
    NoEndpoint,
    Unknown,
}

fn upstream<'m>(
    mesh: &'m Mesh,
    source: &Workload,
    target: SocketAddr,
    entropy: &mut dyn FnMut() -> u64,
) -> Upstream<'m> {
    if let Some(service) = mesh.service_by_vip(&source.network, target.ip(), Some(&source.namespace)) {
        if service.is_passthrough() {
            return Upstream::Unknown;
        }
        return match lb::pick(mesh, service, source, target.port(), entropy) {
            Some(lb::Choice { workload, port }) => {
                Upstream::Workload { workload, port, through: Some(service) }
            }
            None => Upstream::NoEndpoint,
        };
    }
    match mesh.workload_by_addr(&source.network, target.ip()) {
        Some(workload) => Upstream::Workload { workload, port: target.port(), through: None },
        None => Upstream::Unknown,
    }
}

struct Destination<'m> {
    workload: &'m Arc<Workload>,
    port: u16,
    /// The service that chose the workload.
    through: Option<&'m Arc<Service>>,
    /// The service that the application asked for; the same one, but for a mesh whose networks disagree.
    service: Option<&'m Arc<Service>>,
}

/// The route to a known workload, by what it accepts.
fn reach(source: &Workload, target: SocketAddr, to: &Destination<'_>) -> Result<Route, Refusal> {
    let Destination { workload, port, through, service } = *to;
    if workload.network != source.network {
        if service.is_none() {
            return Err(Refusal::NoServiceForTarget(target));
        }
        return Err(match &workload.network_gateway {
            Some(gateway) => gateway_refusal(gateway),
            None => Refusal::NoValidDestination(Name::clone(&workload.uid)),
        });
    }
    // A service's traffic goes through the service's waypoint, or none; the workload's is for its own.
    if let (None, Some(waypoint)) = (service, &workload.waypoint) {
        return Err(waypoint_refusal(waypoint));
    }
    let ip = lb::address(workload, through.map(|service| &**service), target)
        .ok_or_else(|| Refusal::NoValidDestination(Name::clone(&workload.uid)))?;
    let kind = match workload.protocol {
        Protocol::Tcp => RouteKind::Plaintext(plain(source, SocketAddr::new(ip, port))?),
        Protocol::Hbone => RouteKind::Hbone(Hop {
            addr: SocketAddr::new(ip, INBOUND_HBONE_PORT),
            authority: Authority::Addr(SocketAddr::new(ip, port)),
            expected: expected_identities(workload, through),
        }),
    };
    Ok(Route { kind, destination: Some(Arc::clone(workload)), service: service.map(Arc::clone) })
}

/// Refuses to dial our own listeners in the source's own pod: they would take the connection for a new
/// one, and dial again. (A tunnel to them is refused at its other end.)
fn plain(source: &Workload, addr: SocketAddr) -> Result<SocketAddr, Refusal> {
    let here = addr.ip().is_loopback() || source.workload_ips.contains(&addr.ip());
    if here && ILLEGAL_PORTS.contains(&addr.port()) { Err(Refusal::LoopToSelf) } else { Ok(addr) }
}

/// The workload's own identity and those that its service vouches for.
fn expected_identities(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<Identity> {
    let mut expected = vec![workload.identity()];
    expected.extend(service.into_iter().flat_map(|service| service.identities()));
    // Sorted, because tunnels are shared by what they expect.
    expected.sort_unstable();
    expected.dedup();
    expected
}

fn waypoint_refusal(waypoint: &GatewayAddress) -> Refusal {
    let which = &waypoint.destination;
    Refusal::UnknownWaypoint(format!("waypoint {which}: waypoints are not supported yet"))
}

fn gateway_refusal(gateway: &GatewayAddress) -> Refusal {
    let which = &gateway.destination;
    Refusal::UnknownGateway(format!("network gateway {which}: network gateways are not supported yet"))
}
