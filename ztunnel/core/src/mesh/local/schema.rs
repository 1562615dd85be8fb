// SPDX-License-Identifier: Apache-2.0
//! The keys and types of the local mesh file, as serde reads them.
//!
//! What one value alone can tell to be wrong is refused here; what takes a look at two is refused in
//! [`super::parse`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::Name;
use crate::addr::{NetworkAddr, canonical_net};
use crate::mesh::ports::PortMap;
use crate::mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, LocalityScope, Visibility,
};
use crate::mesh::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, Locality, Membership,
    NetworkMode, Protocol, ServiceKey,
};
use crate::mesh::{Action, Scope, ServiceAccountMatch, StringMatch};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workloads: Vec<Spanned<Workload>>,
    pub(super) policies: Vec<Spanned<Policy>>,
    pub(super) services: Vec<Spanned<Service>>,
}

/// A text that a type of ours parses; a mistake is reported where the text stands.
#[derive(Debug, Clone)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr<Err: fmt::Display>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// An IP address, never an IPv4 address in IPv6 form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ip(pub(super) IpAddr);

impl FromStr for Ip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip: Option<IpAddr> = text.parse().ok();
        ip.map(|ip| Self(ip.to_canonical())).ok_or_else(|| format!("`{text}` is not an IP address"))
    }
}

/// An address range; the prefix length is mandatory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cidr(pub(super) IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net: Option<IpNet> = text.parse().ok();
        net.map(|net| Self(canonical_net(net)))
            .ok_or_else(|| format!("`{text}` is not an address range like `10.0.0.0/8`"))
    }
}

/// `network/ip` or `namespace/hostname`: what follows the slash tells them apart.
impl FromStr for GatewayDestination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<NetworkAddr>() {
            return Ok(Self::Address(address));
        }
        let key: Option<ServiceKey> = text.parse().ok();
        key.map(Self::Hostname)
            .ok_or_else(|| format!("`{text}` is neither `network/ip` nor `namespace/hostname`"))
    }
}

/// A policy's key, `namespace/name`.
#[derive(Debug, Clone)]
pub(super) struct PolicyKey(pub(super) String);

impl FromStr for PolicyKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(format!("`{text}` is not `namespace/name` of a policy")),
        }
    }
}

/// A map from service port to target port.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports(pub(super) PortMap);

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ports = BTreeMap::<u16, u16>::deserialize(deserializer)?;
        if ports.contains_key(&0) {
            return Err(D::Error::custom("0 is not a service port"));
        }
        Ok(Self(ports.into_iter().collect()))
    }
}

/// A map from service to ports, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Memberships(pub(super) Vec<Membership>);

impl<'de> Deserialize<'de> for Memberships {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Memberships;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from `namespace/hostname` to ports")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Memberships, A::Error> {
                let mut all = Vec::new();
                while let Some((Text(service), Ports(ports))) = map.next_entry()? {
                    all.push(Membership { service, ports });
                }
                Ok(Memberships(all))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    pub(super) workload_ips: Vec<Text<Ip>>,
    pub(super) namespace: Name,
    pub(super) services: Memberships,
    #[serde(default)]
    pub(super) uid: Name,
    #[serde(default)]
    pub(super) name: Name,
    #[serde(default)]
    pub(super) trust_domain: Name,
    #[serde(default)]
    pub(super) service_account: Name,
    #[serde(default)]
    pub(super) network: Name,
    #[serde(default)]
    pub(super) workload_name: Name,
    #[serde(default)]
    pub(super) workload_type: Name,
    #[serde(default)]
    pub(super) canonical_name: Name,
    #[serde(default)]
    pub(super) canonical_revision: Name,
    #[serde(default)]
    pub(super) hostname: Name,
    #[serde(default)]
    pub(super) node: Name,
    #[serde(default)]
    pub(super) cluster_id: Name,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    #[serde(default)]
    pub(super) status: Health,
    pub(super) waypoint: Option<Gateway>,
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    pub(super) application_tunnel: Option<Tunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<Text<PolicyKey>>,
    pub(super) locality: Option<Place>,
    #[serde(default = "one")]
    pub(super) capacity: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    destination: Text<GatewayDestination>,
    hbone_mtls_port: u16,
}

impl From<Gateway> for GatewayAddress {
    fn from(gateway: Gateway) -> Self {
        Self { destination: gateway.destination.0, hbone_mtls_port: gateway.hbone_mtls_port }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    protocol: ApplicationProtocol,
    port: Option<u16>,
}

impl From<Tunnel> for ApplicationTunnel {
    fn from(tunnel: Tunnel) -> Self {
        Self { protocol: tunnel.protocol, port: tunnel.port }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    region: Name,
    zone: Name,
    subzone: Name,
}

impl From<Place> for Locality {
    fn from(place: Place) -> Self {
        Self { region: place.region, zone: place.zone, subzone: place.subzone }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Name,
    pub(super) namespace: Name,
    pub(super) hostname: Name,
    pub(super) vips: Vec<Text<NetworkAddr>>,
    pub(super) ports: Ports,
    #[serde(default)]
    pub(super) cidr_vips: Vec<Range>,
    #[serde(default)]
    pub(super) endpoints: BTreeMap<Name, Spanned<Endpoint>>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<Name>,
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<Weighted>,
    pub(super) load_balancer: Option<Balancer>,
    pub(super) ip_families: Option<IpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    pub(super) network: Name,
    pub(super) cidr: Text<Cidr>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) workload_uid: Name,
    pub(super) port: Ports,
    pub(super) status: Health,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weighted {
    pub(super) destination: Gateway,
    pub(super) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Balancer {
    routing_preferences: Vec<LocalityScope>,
    mode: LoadBalancerMode,
    health_policy: HealthPolicy,
}

impl From<Balancer> for LoadBalancer {
    fn from(balancer: Balancer) -> Self {
        Self {
            routing_preferences: balancer.routing_preferences,
            mode: balancer.mode,
            health_policy: balancer.health_policy,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: Name,
    pub(super) namespace: Name,
    pub(super) scope: Scope,
    pub(super) action: Action,
    pub(super) dry_run: bool,
    pub(super) rules: Vec<Vec<Vec<Match>>>,
}

/// A misspelled key in a match would silently widen the policy, so it is refused here as elsewhere.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) not_namespaces: Vec<StringMatch>,
    pub(super) service_accounts: Vec<ServiceAccountMatch>,
    pub(super) not_service_accounts: Vec<ServiceAccountMatch>,
    pub(super) principals: Vec<StringMatch>,
    pub(super) not_principals: Vec<StringMatch>,
    pub(super) source_ips: Vec<Text<Cidr>>,
    pub(super) not_source_ips: Vec<Text<Cidr>>,
    pub(super) destination_ips: Vec<Text<Cidr>>,
    pub(super) not_destination_ips: Vec<Text<Cidr>>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}
