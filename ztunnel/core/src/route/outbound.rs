// SPDX-License-Identifier: Apache-2.0
//! ② Decides where an outbound connection goes.
//!
//! Input: the mesh, the source workload, the original destination. Output: a [`Routing`]: go, need or refuse.
//! Nothing here waits, logs or looks at a clock.
//!
//! Invariants: a route never leads back to a listener of ours in the source's pod; what the mesh says must be
//! tunneled, or go through a waypoint or a gateway, is tunneled or refused, never sent in the clear.
//!
//! | the destination | the route |
//! |--|--|
//! | a service with a waypoint | the waypoint; through its network's gateway where it is in another network |
//! | an endpoint in another network | that network's gateway, and inside it the endpoint: only services are reachable there |
//! | a workload with a waypoint, addressed as such, by somebody else than the waypoint | the waypoint |
//! | a workload | its proxy, or itself if it has none |
//! | nobody that the mesh knows | itself |
//!
//! Previous: the socket was accepted by the shell, which found the source workload by its pod.
//! Next: the shell opens the hop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::need::Stop;
use super::upstream::{Found, Upstream, find, settle_address};
use super::{DoubleHop, Hop, Known, Refusal, Route, RouteKind, Routing, gateway};
use crate::Name;
use crate::addr::{Authority, ILLEGAL_PORTS, INBOUND_HBONE_PORT, OriginalDst, canonical, is_this_host};
use crate::lb::Purpose;
use crate::mesh::{GatewayAddress, Mesh, Protocol, Service, Workload};

/// One outbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The pod that connects.
    pub source: &'a Workload,
    /// The address that it connects from.
    pub source_ip: IpAddr,
    /// The network that this proxy is configured with.
    pub network: &'a str,
    /// Where the application connected.
    pub original_dst: OriginalDst,
    /// What was found out since the question was first asked.
    pub known: Known<'a>,
}

/// Decides where an outbound connection goes.
///
/// `entropy` is asked for every choice by weight. Whoever asks again, because of a [`Need`](super::Need), should give the same
/// numbers again: the choices are the same then.
pub fn outbound(mesh: &Mesh, conn: &Outbound<'_>, entropy: &mut dyn FnMut() -> u64) -> Routing {
    let tree = Tree { mesh, conn, target: canonical(conn.original_dst.0) };
    match tree.decide(entropy) {
        Ok(route) => Routing::Go(route),
        Err(Stop::Need(need)) => Routing::Need(need),
        Err(Stop::Refuse(refusal)) => Routing::Refuse(refusal),
    }
}

struct Tree<'m, 'c> {
    mesh: &'m Mesh,
    conn: &'c Outbound<'c>,
    target: SocketAddr,
}

impl<'m> Tree<'m, '_> {
    fn decide(&self, entropy: &mut dyn FnMut() -> u64) -> Result<Route, Stop> {
        let Self { mesh, conn, target } = *self;
        if is_this_host(target.ip()) && ILLEGAL_PORTS.contains(&target.port()) {
            return Err(Refusal::LoopToSelf.into());
        }
        let service = self.addressed_service()?;
        if let Some(service) = service
            && let Some(reference) = gateway::waypoint_of(service, entropy)
        {
            return self.through_waypoint(reference, Some(service), entropy);
        }
        match find(mesh, conn, (&conn.source.network, target), Purpose::Destination, entropy)? {
            Found::Workload(upstream) => self.reach(&upstream, upstream.through.or(service), entropy),
            Found::NoEndpoint => Err(Refusal::NoHealthyUpstream(target).into()),
            Found::Unknown => match service {
                Some(service) if !service.is_passthrough() => Err(Refusal::NoHealthyUpstream(target).into()),
                _ => {
                    let kind = RouteKind::Passthrough(self.elsewhere(target)?);
                    Ok(Route { kind, destination: None, service: None })
                }
            },
        }
    }

    /// The service that the application connected to. An address that a workload has is never a service's
    /// here, and the network is the proxy's own: [`find`] differs in both, as upstream's two lookups do.
    fn addressed_service(&self) -> Result<Option<&'m Arc<Service>>, Stop> {
        let Self { mesh, conn, target } = self;
        if mesh.workload_by_addr(conn.network, target.ip()).is_some() {
            return Ok(None);
        }
        let service = mesh.service_by_vip(conn.network, target.ip(), Some(&conn.source.namespace));
        if service.is_none() {
            settle_address(&conn.known, conn.network, target.ip())?;
        }
        Ok(service)
    }

    /// The route to whom the mesh has chosen, by where it is and what it accepts.
    fn reach(
        &self,
        upstream: &Upstream<'m>,
        service: Option<&'m Arc<Service>>,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<Route, Stop> {
        let Self { mesh, conn, target } = *self;
        let workload = upstream.workload;
        if workload.network != conn.source.network {
            let service = service.ok_or(Refusal::NoServiceForTarget(target))?;
            return self.through_network_gateway(upstream, service, entropy);
        }
        // A service's traffic goes through the service's waypoint, or none; the workload's is for its own.
        if let (None, Some(waypoint)) = (service, &workload.waypoint)
            && !gateway::is_source(mesh, conn, waypoint)
        {
            return self.through_waypoint(waypoint, None, entropy);
        }
        let ip = upstream.address(&conn.known, target, entropy)?;
        let addr = SocketAddr::new(ip, upstream.port);
        let kind = match workload.protocol {
            Protocol::Tcp => RouteKind::Plaintext(self.elsewhere(addr)?),
            Protocol::Hbone => RouteKind::Hbone(Hop {
                addr: SocketAddr::new(ip, INBOUND_HBONE_PORT),
                authority: Authority::Addr(addr),
                expected: upstream.identities(),
            }),
        };
        Ok(Route { kind, destination: Some(Arc::clone(workload)), service: service.map(Arc::clone) })
    }

    /// To a waypoint, which is asked for what the application asked for.
    fn through_waypoint(
        &self,
        reference: &GatewayAddress,
        service: Option<&'m Arc<Service>>,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<Route, Stop> {
        let Self { mesh, conn, target } = *self;
        let waypoint = gateway::waypoint(mesh, conn, (reference, target), entropy)?;
        let upstream = waypoint.upstream;
        if upstream.workload.network != conn.source.network {
            let service = service.ok_or_else(|| {
                let network = &upstream.workload.network;
                let which = &reference.destination;
                Refusal::UnknownWaypoint(format!(
                    "waypoint {which} is in network `{network}`, where only services are reachable"
                ))
            })?;
            return self.through_network_gateway(&upstream, service, entropy);
        }
        let ip = upstream.address(&conn.known, waypoint.hint, entropy)?;
        let kind = RouteKind::Hbone(Hop {
            addr: self.tunneled(SocketAddr::new(ip, upstream.port))?,
            authority: Authority::Addr(target),
            expected: upstream.identities(),
        });
        let destination = Some(Arc::clone(upstream.workload));
        Ok(Route { kind, destination, service: service.map(Arc::clone) })
    }

    /// To `upstream`, which is in another network: a tunnel to that network's gateway, and another one inside it. Both are
    /// asked for the service by its name, since addresses mean something else there.
    fn through_network_gateway(
        &self,
        upstream: &Upstream<'m>,
        service: &'m Arc<Service>,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<Route, Stop> {
        let Self { mesh, conn, target } = *self;
        let reference = upstream.workload.network_gateway.as_deref();
        let reference =
            reference.ok_or_else(|| Refusal::NoValidDestination(Name::clone(&upstream.workload.uid)))?;
        let found = gateway::network_gateway(mesh, conn, (reference, target), entropy)?;
        let gateway = found.upstream;
        let ip = gateway.address(&conn.known, found.hint, entropy)?;
        let kind = RouteKind::DoubleHbone(DoubleHop {
            outer: Hop {
                addr: self.tunneled(SocketAddr::new(ip, gateway.port))?,
                authority: Authority::Host { host: Name::clone(&service.hostname), port: target.port() },
                expected: gateway.identities(),
            },
            // The gateway chooses the workload, so that only the service can say who it may be.
            expected: upstream.vouched(),
        });
        let destination = Some(Arc::clone(gateway.workload));
        Ok(Route { kind, destination, service: Some(Arc::clone(service)) })
    }

    /// Refuses to dial our own listeners in the source's own pod: they would take the connection for a new
    /// one, and dial again.
    fn elsewhere(&self, addr: SocketAddr) -> Result<SocketAddr, Refusal> {
        let here = is_this_host(addr.ip()) || self.conn.source.workload_ips.contains(&addr.ip());
        if here && ILLEGAL_PORTS.contains(&addr.port()) { Err(Refusal::LoopToSelf) } else { Ok(addr) }
    }

    /// The same for a tunnel, which our HBONE listener does take, and look into.
    fn tunneled(&self, addr: SocketAddr) -> Result<SocketAddr, Refusal> {
        if addr.port() == INBOUND_HBONE_PORT { Ok(addr) } else { self.elsewhere(addr) }
    }
}
