// SPDX-License-Identifier: Apache-2.0
//! A service: a name with ports, virtual addresses, endpoints and a load-balancing policy.
//!
//! Serializes to the shape of the admin API's `config_dump`.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use super::ports::PortMap;
use super::workload::{GatewayAddress, Health, ServiceKey};
use crate::Name;
use crate::addr::NetworkAddr;
use crate::identity::Identity;
use crate::lb::Candidates;

/// What a source and an endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LocalityScope {
    /// The locality's region.
    Region,
    /// The locality's zone.
    Zone,
    /// The locality's subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What the routing preferences do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LoadBalancerMode {
    /// Nothing: every endpoint is as good as another.
    #[default]
    Standard,
    /// Only endpoints that meet every preference.
    Strict,
    /// Only the endpoints that rank highest.
    Failover,
    /// No endpoint is chosen: traffic goes where the application sent it.
    Passthrough,
}

/// Which endpoints may be chosen at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// What endpoints should have in common with the source, the most important first.
    pub routing_preferences: Vec<LocalityScope>,
    /// What the preferences do.
    pub mode: LoadBalancerMode,
    /// Which endpoints may be chosen at all.
    pub health_policy: HealthPolicy,
}

/// Which of a workload's addresses a service may be reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    /// Any.
    Dual,
    /// IPv4 only.
    IPv4,
    /// IPv6 only.
    IPv6,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}

/// A range of virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CidrVip {
    /// The network that the range belongs to.
    pub network: Name,
    /// The range.
    pub cidr: IpNet,
}

/// One of several waypoints, with its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share; 0 is never chosen.
    pub weight: u32,
}

/// A workload as a member of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Service port to the workload's own port.
    pub ports: PortMap,
    /// The workload's health when it became a member.
    pub status: Health,
}

/// A name with ports, virtual addresses and endpoints.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its short name.
    pub name: Name,
    /// Its namespace.
    pub namespace: Name,
    /// Its fully qualified host name.
    pub hostname: Name,
    /// Its virtual addresses.
    pub vips: Vec<NetworkAddr>,
    /// Its ranges of virtual addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidr_vips: Vec<CidrVip>,
    /// Its ports, with the default target of each.
    pub ports: PortMap,
    /// Its members by workload uid, those alone that its health policy admits.
    #[serde(serialize_with = "dump_endpoints")]
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// Identities that its endpoints may show besides their own.
    pub subject_alt_names: Vec<Name>,
    /// Its waypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Box<GatewayAddress>>,
    /// Several waypoints, which come before [`Service::waypoint`] if any has a weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How endpoints are chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Which addresses of an endpoint may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<IpFamilies>,
    /// It is preferred where several services share a name or an address.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
    /// What load balancing has worked out about the endpoints; worth nothing to anybody else.
    #[serde(skip)]
    pub candidates: Candidates,
}

impl Service {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: Name::clone(&self.namespace), hostname: Name::clone(&self.hostname) }
    }

    /// Whether an endpoint of this health may be chosen.
    #[must_use]
    pub fn admits(&self, status: Health) -> bool {
        let policy = self.load_balancer.as_ref().map_or_else(HealthPolicy::default, |lb| lb.health_policy);
        match policy {
            HealthPolicy::OnlyHealthy => status == Health::Healthy,
            HealthPolicy::AllowAll => true,
        }
    }

    /// Whether traffic goes where the application sent it.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.load_balancer.as_ref().is_some_and(|lb| lb.mode == LoadBalancerMode::Passthrough)
    }

    /// The identities that its endpoints may show besides their own; what is no SPIFFE ID is left out.
    pub fn identities(&self) -> impl Iterator<Item = Identity> + '_ {
        self.subject_alt_names.iter().filter_map(|name| name.parse().ok())
    }

    /// Whether a client of this namespace may see it.
    #[must_use]
    pub fn is_visible_to(&self, client_namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => *self.namespace == *client_namespace,
        }
    }
}

/// The endpoints of a service that is not known, by workload uid; serializes as those of a service do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StagedEndpoints(#[serde(serialize_with = "dump_endpoints")] pub BTreeMap<Name, Endpoint>);

/// Endpoints in the shape of the `config_dump`, where each one repeats its key.
fn dump_endpoints<S: Serializer>(all: &BTreeMap<Name, Endpoint>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape<'a> {
        workload_uid: &'a Name,
        port: &'a PortMap,
        status: Health,
    }
    serializer.collect_map(all.iter().map(|(uid, endpoint)| {
        (uid, Shape { workload_uid: uid, port: &endpoint.ports, status: endpoint.status })
    }))
}
