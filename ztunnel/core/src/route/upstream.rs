// SPDX-License-Identifier: Apache-2.0
//! Who is behind an address: a service's endpoint or a workload, and the address at which it is dialed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::need::Stop;
use super::{Known, Outbound, Refusal};
use crate::Name;
use crate::identity::Identity;
use crate::lb::{self, Purpose};
use crate::mesh::{Mesh, Service, Workload};

/// What the mesh has behind an address.
pub(super) enum Found<'m> {
    Workload(Upstream<'m>),
    /// A service that has nobody to offer. Sending its traffic on in the clear would be a way around.
    NoEndpoint,
    Unknown,
}

/// A workload that was chosen.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'m> {
    pub(super) workload: &'m Arc<Workload>,
    pub(super) port: u16,
    /// The service that chose it.
    pub(super) through: Option<&'m Arc<Service>>,
}

/// Looks an address up in a network: services first, then workloads.
pub(super) fn find<'m>(
    mesh: &'m Mesh,
    conn: &Outbound<'_>,
    (network, target): (&str, SocketAddr),
    purpose: Purpose,
    entropy: &mut dyn FnMut() -> u64,
) -> Result<Found<'m>, Stop> {
    let ip = target.ip();
    if let Some(service) = mesh.service_by_vip(network, ip, Some(&conn.source.namespace)) {
        return Ok(endpoint(mesh, conn.source, (service, target.port()), purpose, entropy));
    }
    if let Some(workload) = mesh.workload_by_addr(network, ip) {
        return Ok(Found::Workload(Upstream { workload, port: target.port(), through: None }));
    }
    settle_address(&conn.known, network, ip)?;
    Ok(Found::Unknown)
}

/// Nobody has this address, as far as the mesh knows.
pub(super) fn settle_address(known: &Known<'_>, network: &str, ip: IpAddr) -> Result<(), Stop> {
    Ok(known.settle(|| format!("{network}/{ip}"))?)
}

/// Lets a service choose.
pub(super) fn endpoint<'m>(
    mesh: &'m Mesh,
    source: &Workload,
    (service, port): (&'m Arc<Service>, u16),
    purpose: Purpose,
    entropy: &mut dyn FnMut() -> u64,
) -> Found<'m> {
    if service.is_passthrough() {
        return Found::Unknown;
    }
    match lb::pick(mesh, service, source, (port, purpose), entropy) {
        Some(lb::Choice { workload, port }) => {
            Found::Workload(Upstream { workload, port, through: Some(service) })
        }
        None => Found::NoEndpoint,
    }
}

impl Upstream<'_> {
    /// Where it is dialed. `original` is the address that the caller knows it by: one of the same family is preferred.
    pub(super) fn address(
        &self,
        known: &Known<'_>,
        original: SocketAddr,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<IpAddr, Stop> {
        let Self { workload, through, .. } = self;
        if let Some(ip) = lb::address(workload, through.map(|service| &**service), original) {
            return Ok(ip);
        }
        if workload.hostname.is_empty() {
            return Err(Refusal::NoValidDestination(Name::clone(&workload.uid)).into());
        }
        let resolved = known.addresses(&workload.hostname)?;
        let ip = lb::any_address(resolved, original.ip(), entropy);
        Ok(ip.ok_or_else(|| Refusal::NotResolved(Name::clone(&workload.uid)))?)
    }

    /// Who may answer: the workload itself, and whom its service vouches for. Sorted, because tunnels are shared by what
    /// they expect.
    pub(super) fn identities(&self) -> Vec<Identity> {
        let mut expected = self.vouched();
        expected.push(self.workload.identity());
        sorted(expected)
    }

    /// Whom the service vouches for.
    pub(super) fn vouched(&self) -> Vec<Identity> {
        sorted(self.through.into_iter().flat_map(|service| service.identities()).collect())
    }
}

fn sorted(mut all: Vec<Identity>) -> Vec<Identity> {
    all.sort_unstable();
    all.dedup();
    all
}
