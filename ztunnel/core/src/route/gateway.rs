// SPDX-License-Identifier: Apache-2.0
//! Waypoints and network gateways: from the reference in a resource to who it is.
//!
//! A reference that leads nowhere refuses the connection; it is never a reason to go around.

use std::net::SocketAddr;
use std::sync::Arc;

use super::need::Stop;
use super::upstream::{self, Found, Upstream};
use super::{Outbound, Refusal};
use crate::identity::Identity;
use crate::lb::{self, Purpose};
use crate::mesh::{GatewayAddress, GatewayDestination, Mesh, Service, Workload};

/// A reference that was resolved.
pub(super) struct Gateway<'m> {
    pub(super) upstream: Upstream<'m>,
    /// The address that says which family is preferred.
    pub(super) hint: SocketAddr,
}

/// The waypoint of a service: one of several by their weights, or else the only one.
pub(super) fn waypoint_of<'m>(
    service: &'m Service,
    entropy: &mut dyn FnMut() -> u64,
) -> Option<&'m GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total = weighted.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    let Some(drawn) = lb::draw(total, entropy) else { return service.waypoint.as_deref() };
    let mut up_to = 0;
    let chosen = weighted.iter().find(|waypoint| {
        up_to += u64::from(waypoint.weight);
        drawn < up_to
    });
    chosen.map(|waypoint| &waypoint.destination)
}

/// Resolves a waypoint.
pub(super) fn waypoint<'m>(
    mesh: &'m Mesh,
    conn: &Outbound<'_>,
    (reference, target): (&GatewayAddress, SocketAddr),
    entropy: &mut dyn FnMut() -> u64,
) -> Result<Gateway<'m>, Stop> {
    let found = resolve(mesh, conn, (reference, target), Purpose::Waypoint, entropy)?;
    let unknown = || Refusal::UnknownWaypoint(format!("waypoint {} not found", reference.destination));
    Ok(found.ok_or_else(unknown)?)
}

/// Resolves a network gateway.
pub(super) fn network_gateway<'m>(
    mesh: &'m Mesh,
    conn: &Outbound<'_>,
    (reference, target): (&GatewayAddress, SocketAddr),
    entropy: &mut dyn FnMut() -> u64,
) -> Result<Gateway<'m>, Stop> {
    let found = resolve(mesh, conn, (reference, target), Purpose::Gateway, entropy)?;
    let unknown = || Refusal::UnknownGateway(format!("network gateway {} not found", reference.destination));
    Ok(found.ok_or_else(unknown)?)
}

fn resolve<'m>(
    mesh: &'m Mesh,
    conn: &Outbound<'_>,
    (reference, target): (&GatewayAddress, SocketAddr),
    purpose: Purpose,
    entropy: &mut dyn FnMut() -> u64,
) -> Result<Option<Gateway<'m>>, Stop> {
    let port = reference.hbone_mtls_port;
    let (found, hint) = match &reference.destination {
        GatewayDestination::Address(address) => {
            let hint = SocketAddr::new(address.ip, port);
            (upstream::find(mesh, conn, (&address.network, hint), purpose, entropy)?, hint)
        }
        GatewayDestination::Hostname(key) => {
            let found = if let Some(service) = mesh.service_by_name(&key.namespace, &key.hostname) {
                upstream::endpoint(mesh, conn.source, (service, port), purpose, entropy)
            } else if let Some(workload) = mesh.workload_by_hostname(&key.namespace, &key.hostname) {
                Found::Workload(Upstream { workload, port, through: None })
            } else {
                conn.known.settle(|| key.to_string())?;
                Found::Unknown
            };
            (found, target)
        }
    };
    Ok(match found {
        Found::Workload(upstream) => Some(Gateway { upstream, hint }),
        Found::NoEndpoint | Found::Unknown => None,
    })
}

/// Whether the source is the waypoint that the reference names: its own traffic must not come back to it.
pub(super) fn is_source(mesh: &Mesh, conn: &Outbound<'_>, reference: &GatewayAddress) -> bool {
    let source: Identity = conn.source.identity();
    let is_it = |workload: &Arc<Workload>| {
        workload.workload_ips.contains(&conn.source_ip) && workload.identity() == source
    };
    let is_among = |service: &Arc<Service>| {
        service.endpoints.keys().filter_map(|uid| mesh.workload_by_uid(uid)).any(is_it)
    };
    match &reference.destination {
        GatewayDestination::Address(address) => match mesh.workload_by_addr(&address.network, address.ip) {
            Some(workload) => is_it(workload),
            None => mesh.service_by_vip(&address.network, address.ip, None).is_some_and(is_among),
        },
        GatewayDestination::Hostname(key) => match mesh.service_by_name(&key.namespace, &key.hostname) {
            Some(service) => is_among(service),
            None => mesh.workload_by_hostname(&key.namespace, &key.hostname).is_some_and(is_it),
        },
    }
}
