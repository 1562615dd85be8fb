// SPDX-License-Identifier: Apache-2.0
//! The mesh as a YAML file: for local runs, the demo and tests alike.
//!
//! The file is the one that upstream reads, key for key, and it is stricter in one place: unknown keys are
//! refused inside a match as well, because dropping one would widen the policy.
//!
//! A file is taken whole or refused with the place of its first mistake.

mod schema;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use self::schema::{Cidr, Ip, PolicyKey, Text};
use super::names::Names;
use super::{
    CidrVip, Clause, Endpoint, GatewayAddress, Locality, Match, Membership, Mesh, Policy, Rule, Service,
    ServiceKey, WeightedWaypoint, Workload,
};
use crate::Name;
use crate::addr::NetworkAddr;
use crate::lb::Candidates;

/// A mesh of 100,000 workloads has a few million nodes; a file beyond this is refused.
const MAX_NODES: usize = 50_000_000;
/// Likewise for the text in it.
const MAX_TEXT: usize = 1 << 30;

/// Why a file is not a mesh, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct LocalMeshError {
    /// Counted from 1.
    pub line: u64,
    /// Counted from 1.
    pub column: u64,
    /// What is wrong there.
    pub reason: String,
}

impl LocalMeshError {
    fn at(location: Location, reason: String) -> Self {
        Self { line: location.line().max(1), column: location.column().max(1), reason }
    }
}

/// Reads a mesh.
///
/// # Errors
///
/// The first mistake, with its place.
pub fn parse(yaml: &str) -> Result<Mesh, LocalMeshError> {
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_events: MAX_NODES * 2,
        max_nodes: MAX_NODES,
        max_total_scalar_bytes: MAX_TEXT,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        with_snippet: false,
        strict_booleans: true,
    };
    let file: schema::File = serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let error = error.without_snippet();
        let reason = UserMessageFormatter.format_message(error).into_owned();
        LocalMeshError::at(error.location().unwrap_or(Location::UNKNOWN), reason)
    })?;
    Reader::default().read(file)
}

/// Turns what serde read into a mesh, and refuses what contradicts itself.
#[derive(Default)]
struct Reader {
    names: Names,
    mesh: Mesh,
}

impl Reader {
    fn read(mut self, file: schema::File) -> Result<Mesh, LocalMeshError> {
        self.policies(file.policies)?;
        // Services first: endpoints that workloads declare then go where they belong at once.
        self.services(file.services)?;
        self.workloads(file.workloads)?;
        Ok(self.mesh)
    }

    fn workloads(&mut self, all: Vec<Spanned<schema::Workload>>) -> Result<(), LocalMeshError> {
        let mut seen = HashSet::new();
        for Spanned { value, referenced, .. } in all {
            let workload = self.workload(value);
            if !seen.insert(Name::clone(&workload.uid)) {
                let reason = match &*workload.uid {
                    "" => "several workloads have no uid".to_owned(),
                    uid => format!("several workloads have the uid `{uid}`"),
                };
                return Err(LocalMeshError::at(referenced, reason));
            }
            self.mesh.insert_workload(Arc::new(workload));
        }
        Ok(())
    }

    fn services(&mut self, all: Vec<Spanned<schema::Service>>) -> Result<(), LocalMeshError> {
        for Spanned { value, referenced, .. } in all {
            let service = self.service(value)?;
            if self.mesh.service_by_name(&service.namespace, &service.hostname).is_some() {
                let reason = format!("several services have the key `{}`", service.key());
                return Err(LocalMeshError::at(referenced, reason));
            }
            self.mesh.insert_service(service);
        }
        Ok(())
    }

    fn policies(&mut self, all: Vec<Spanned<schema::Policy>>) -> Result<(), LocalMeshError> {
        for Spanned { value, referenced, .. } in all {
            let policy = self.policy(value);
            let key = policy.key();
            if self.mesh.policy(&key).is_some() {
                let reason = format!("several policies have the key `{key}`");
                return Err(LocalMeshError::at(referenced, reason));
            }
            self.mesh.insert_policy(Arc::new(policy));
        }
        Ok(())
    }

    fn workload(&mut self, raw: schema::Workload) -> Workload {
        let locality = raw.locality.map_or_else(Locality::default, Locality::from);
        Workload {
            workload_ips: ips(raw.workload_ips),
            waypoint: raw.waypoint.map(|gateway| Box::new(gateway.into())),
            network_gateway: raw.network_gateway.map(|gateway| Box::new(gateway.into())),
            protocol: raw.protocol,
            network_mode: raw.network_mode,
            uid: raw.uid,
            name: self.name(&raw.name),
            namespace: self.name(&raw.namespace),
            trust_domain: self.name(&raw.trust_domain),
            service_account: self.name(&raw.service_account),
            network: self.name(&raw.network),
            workload_name: self.name(&raw.workload_name),
            workload_type: self.name(&raw.workload_type),
            canonical_name: self.name(&raw.canonical_name),
            canonical_revision: self.name(&raw.canonical_revision),
            hostname: self.name(&raw.hostname),
            node: self.name(&raw.node),
            native_tunnel: raw.native_tunnel,
            application_tunnel: raw.application_tunnel.map(Into::into),
            authorization_policies: self.policy_keys(&raw.authorization_policies),
            status: raw.status,
            cluster_id: self.name(&raw.cluster_id),
            locality: Locality {
                region: self.name(&locality.region),
                zone: self.name(&locality.zone),
                subzone: self.name(&locality.subzone),
            },
            services: raw.services.0.into_iter().map(|membership| self.membership(membership)).collect(),
            capacity: raw.capacity,
        }
    }

    fn membership(&mut self, raw: Membership) -> Membership {
        let service = ServiceKey {
            namespace: self.name(&raw.service.namespace),
            hostname: self.name(&raw.service.hostname),
        };
        // Endpoints mostly have the ports of the others: share them.
        let known = self.mesh.service_by_name(&service.namespace, &service.hostname);
        let sibling = known.and_then(|service| service.endpoints.values().next());
        let ports = match sibling {
            Some(sibling) if sibling.ports == raw.ports => sibling.ports.clone(),
            _ => raw.ports,
        };
        Membership { service, ports }
    }

    fn service(&mut self, raw: schema::Service) -> Result<Service, LocalMeshError> {
        let mut endpoints = std::collections::BTreeMap::new();
        for (uid, Spanned { value, referenced, .. }) in raw.endpoints {
            if uid != value.workload_uid {
                let reason = format!("endpoint `{uid}` is for another workload, `{}`", value.workload_uid);
                return Err(LocalMeshError::at(referenced, reason));
            }
            endpoints.insert(uid, Endpoint { ports: value.port.0, status: value.status });
        }
        Ok(Service {
            name: self.name(&raw.name),
            namespace: self.name(&raw.namespace),
            hostname: self.name(&raw.hostname),
            vips: raw.vips.into_iter().map(|Text(vip)| self.address(&vip)).collect(),
            cidr_vips: raw
                .cidr_vips
                .into_iter()
                .map(|range| CidrVip { network: self.name(&range.network), cidr: range.cidr.0.0 })
                .collect(),
            ports: raw.ports.0,
            endpoints,
            subject_alt_names: raw.subject_alt_names.iter().map(|name| self.name(name)).collect(),
            waypoint: raw.waypoint.map(|gateway| Box::new(gateway.into())),
            weighted_waypoints: raw
                .weighted_waypoints
                .into_iter()
                .map(|weighted| WeightedWaypoint {
                    destination: GatewayAddress::from(weighted.destination),
                    weight: weighted.weight,
                })
                .collect(),
            load_balancer: raw.load_balancer.map(Into::into),
            ip_families: raw.ip_families,
            canonical: raw.canonical,
            visibility: raw.visibility,
            candidates: Candidates::default(),
        })
    }

    fn policy(&mut self, raw: schema::Policy) -> Policy {
        let clause =
            |matches: Vec<schema::Match>| Clause { matches: matches.into_iter().map(Match::from).collect() };
        let rule =
            |clauses: Vec<Vec<schema::Match>>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Policy {
            name: self.name(&raw.name),
            namespace: self.name(&raw.namespace),
            scope: raw.scope,
            action: raw.action,
            rules: raw.rules.into_iter().map(rule).collect(),
            dry_run: raw.dry_run,
        }
    }

    fn name(&mut self, name: &str) -> Name {
        self.names.intern(name)
    }

    fn address(&mut self, address: &NetworkAddr) -> NetworkAddr {
        NetworkAddr { network: self.name(&address.network), ip: address.ip }
    }

    fn policy_keys(&mut self, keys: &[Text<PolicyKey>]) -> Vec<Name> {
        keys.iter().map(|Text(PolicyKey(key))| self.name(key)).collect()
    }
}

fn ips(raw: Vec<Text<Ip>>) -> Vec<std::net::IpAddr> {
    raw.into_iter().map(|Text(Ip(ip))| ip).collect()
}

fn nets(raw: Vec<Text<Cidr>>) -> Vec<ipnet::IpNet> {
    raw.into_iter().map(|Text(Cidr(net))| net).collect()
}

impl From<schema::Match> for Match {
    fn from(raw: schema::Match) -> Self {
        Self {
            namespaces: raw.namespaces,
            not_namespaces: raw.not_namespaces,
            service_accounts: raw.service_accounts,
            not_service_accounts: raw.not_service_accounts,
            principals: raw.principals,
            not_principals: raw.not_principals,
            source_ips: nets(raw.source_ips),
            not_source_ips: nets(raw.not_source_ips),
            destination_ips: nets(raw.destination_ips),
            not_destination_ips: nets(raw.not_destination_ips),
            destination_ports: raw.destination_ports,
            not_destination_ports: raw.not_destination_ports,
        }
    }
}
