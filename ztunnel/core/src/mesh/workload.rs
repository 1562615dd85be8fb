// SPDX-License-Identifier: Apache-2.0
//! A workload: a pod (or VM) as the control plane describes it.
//!
//! Serializes to the shape of the admin API's `config_dump`: what is empty or default is left out.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::ports::PortMap;
use crate::Name;
use crate::addr::NetworkAddr;
use crate::identity::Identity;

/// What a workload accepts from other proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// Plain TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// CONNECT over mutual TLS, on port 15008.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// Whose network stack the workload uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Its own: its addresses tell it apart.
    #[default]
    Standard,
    /// The node's: its addresses say nothing about it, so it cannot be found by them.
    HostNetwork,
}

/// Whether a workload may be chosen as an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Yes.
    #[default]
    Healthy,
    /// Only for services that allow it.
    Unhealthy,
}

/// Where a workload runs, for load balancing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// For example `eu-west-1`.
    pub region: Name,
    /// For example `eu-west-1b`.
    pub zone: Name,
    /// Finer than the zone, by the operator's labels.
    pub subzone: Name,
}

impl Locality {
    fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

/// A service's key: its text form is `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's namespace.
    pub namespace: Name,
    /// Its fully qualified host name.
    pub hostname: Name,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `namespace/hostname`")]
pub struct ServiceKeyError(pub String);

impl FromStr for ServiceKey {
    type Err = ServiceKeyError;

    fn from_str(text: &str) -> Result<Self, ServiceKeyError> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {
                Ok(Self { namespace: namespace.into(), hostname: hostname.into() })
            }
            _ => Err(ServiceKeyError(text.to_owned())),
        }
    }
}

/// How a waypoint or a network gateway is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// By a virtual or workload address.
    Address(NetworkAddr),
    /// By a service's (or a workload's) host name.
    Hostname(ServiceKey),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(key) => key.fmt(f),
        }
    }
}

impl Serialize for GatewayDestination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A waypoint or a network gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAddress {
    /// Which one.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

/// What the application on the far side of an [`ApplicationTunnel`] expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ApplicationProtocol {
    /// The bytes as they are.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// A PROXY header first.
    #[serde(rename = "PROXY")]
    Proxy,
}

/// A workload that takes all inbound traffic at one port, whatever port was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApplicationTunnel {
    /// How.
    pub protocol: ApplicationProtocol,
    /// Where; the requested port if absent.
    pub port: Option<u16>,
}

/// A workload's membership in one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Which service.
    pub service: ServiceKey,
    /// Service port to the workload's own port.
    pub ports: PortMap,
}

impl Serialize for Membership {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.service.serialize(serializer)
    }
}

/// A pod (or VM) as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its addresses, in its network.
    pub workload_ips: Vec<IpAddr>,
    /// Its waypoint, for traffic addressed to the workload itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Box<GatewayAddress>>,
    /// The door to its network, for sources in other networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<Box<GatewayAddress>>,
    /// What it accepts.
    pub protocol: Protocol,
    /// Whose network stack it uses.
    pub network_mode: NetworkMode,
    /// Its key.
    #[serde(skip_serializing_if = "is_empty")]
    pub uid: Name,
    /// The pod's name.
    pub name: Name,
    /// The pod's namespace.
    pub namespace: Name,
    /// The trust domain of its identity.
    #[serde(skip_serializing_if = "is_empty")]
    pub trust_domain: Name,
    /// The service account of its identity.
    #[serde(skip_serializing_if = "is_empty")]
    pub service_account: Name,
    /// The network that its addresses belong to.
    #[serde(skip_serializing_if = "is_empty")]
    pub network: Name,
    /// The name of the controller that owns it, for telemetry.
    #[serde(skip_serializing_if = "is_empty")]
    pub workload_name: Name,
    /// `deployment`, `cronjob`, `pod` or `job`.
    #[serde(skip_serializing_if = "is_empty")]
    pub workload_type: Name,
    /// The application it is part of, for telemetry.
    #[serde(skip_serializing_if = "is_empty")]
    pub canonical_name: Name,
    /// The application's version, for telemetry.
    #[serde(skip_serializing_if = "is_empty")]
    pub canonical_revision: Name,
    /// Where it is found if it has no address.
    #[serde(skip_serializing_if = "is_empty")]
    pub hostname: Name,
    /// The node it runs on.
    #[serde(skip_serializing_if = "is_empty")]
    pub node: Name,
    /// It speaks HBONE itself, without a node proxy.
    #[serde(skip_serializing_if = "is_false")]
    pub native_tunnel: bool,
    /// Where its inbound traffic is delivered, if not at the requested port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The selector-scoped policies that apply to it, as `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorization_policies: Vec<Name>,
    /// Whether it may be chosen as an endpoint.
    pub status: Health,
    /// The cluster it runs in.
    pub cluster_id: Name,
    /// Where it runs.
    #[serde(skip_serializing_if = "Locality::is_empty")]
    pub locality: Locality,
    /// The services it is an endpoint of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Membership>,
    /// Its weight among the endpoints of a service.
    pub capacity: u32,
}

fn is_empty(name: &Name) -> bool {
    name.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Default for Workload {
    fn default() -> Self {
        let empty = Name::default();
        let name = || Name::clone(&empty);
        Self {
            workload_ips: Vec::new(),
            waypoint: None,
            network_gateway: None,
            protocol: Protocol::default(),
            network_mode: NetworkMode::default(),
            uid: name(),
            name: name(),
            namespace: name(),
            trust_domain: name(),
            service_account: name(),
            network: name(),
            workload_name: name(),
            workload_type: name(),
            canonical_name: name(),
            canonical_revision: name(),
            hostname: name(),
            node: name(),
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            status: Health::default(),
            cluster_id: name(),
            locality: Locality { region: name(), zone: name(), subzone: name() },
            services: Vec::new(),
            capacity: 1,
        }
    }
}

impl Workload {
    /// Who it is: what its certificate must say.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: Name::clone(&self.trust_domain),
            namespace: Name::clone(&self.namespace),
            service_account: Name::clone(&self.service_account),
        }
    }

    /// How much an address that several workloads claim speaks for this one: pods before everything
    /// else, those that speak HBONE before those that do not.
    pub(super) fn claim(&self) -> u8 {
        let pod = u8::from(self.uid.contains("//Pod/"));
        let hbone = u8::from(self.protocol == Protocol::Hbone);
        pod * 2 + hbone
    }
}
