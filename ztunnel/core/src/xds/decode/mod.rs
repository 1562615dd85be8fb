// SPDX-License-Identifier: Apache-2.0
//! Resources of the control plane become changes of the mesh, each whole or refused with a reason.
//!
//! * [`workload`], [`service`], [`policy`]: one kind each.
//!
//! Invariant: a refused resource changes nothing, with one exception: a policy that cannot be read, and of which
//! no readable version is in force, denies what it may have been about (see [`policy`]).

mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::proto::discovery::Resource;
use super::proto::security::Authorization;
use super::proto::workload::{self as api, Address, address};
use super::version::Version;
use crate::Name;
use crate::addr::NetworkAddr;
use crate::mesh::names::Names;
use crate::mesh::{Change, GatewayAddress, GatewayDestination, PortMap, ServiceKey};

/// Names interned before it is worth looking for those that nobody uses any more.
const TIDY_FROM: usize = 1024;

/// What kind of resource a response is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    /// In the order of subscription.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Its type URL.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => super::proto::ADDRESS_TYPE,
            Self::Authorization => super::proto::AUTHORIZATION_TYPE,
        }
    }

    /// The kind of a type URL.
    #[must_use]
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// A resource that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// What the control plane calls it.
    pub name: Name,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Which version it is.
    pub version: Version,
    /// What it changes.
    pub change: Change,
}

/// A resource that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// What the control plane calls it; its place in the response if even that cannot be read.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// The policy that stands in for it, unless a readable one is in force.
    pub stand_in: Option<Change>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not the protobuf message that it should be.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] prost::DecodeError),
    /// A name without anything.
    #[error("no resource in it")]
    NoResource,
    /// An address that stands for nothing we know.
    #[error("neither a workload nor a service")]
    NoAddress,
    /// A field that must say something.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A name that could not be told from another: `namespace/hostname` is split at the first slash.
    #[error("{field}: a slash in `{name}`")]
    Slash {
        /// Which name.
        field: &'static str,
        /// What came.
        name: String,
    },
    /// A number that has no meaning here, or one that we cannot act on.
    #[error("{field}: unknown value {value}")]
    Unknown {
        /// Which enumeration.
        field: &'static str,
        /// What it said.
        value: i32,
    },
    /// A mode of operation that ztunnel does not have.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// An address that is none.
    #[error("{field}: an address of {length} bytes, expected 4 or 16")]
    Ip {
        /// Where.
        field: &'static str,
        /// What came.
        length: usize,
    },
    /// A range that is none.
    #[error("{field}: {ip}/{prefix} is no range")]
    Range {
        /// Where.
        field: &'static str,
        /// The address.
        ip: IpAddr,
        /// The prefix length.
        prefix: u32,
    },
    /// A port that is none.
    #[error("{field}: {port} is no port")]
    Port {
        /// Where.
        field: &'static str,
        /// What came.
        port: u32,
    },
    /// A text that is no service's key.
    #[error("services: {0}")]
    Service(#[from] crate::mesh::workload::ServiceKeyError),
    /// A gateway or a comparison without a subject.
    #[error("{0} says nothing")]
    Nothing(&'static str),
}

/// Reads resources. Names that many of them share are kept once.
#[derive(Debug, Default)]
pub struct Decoder {
    names: Names,
    ports: HashSet<PortMap>,
    /// How many names there may be before the next [`Decoder::tidy`] looks for unused ones.
    crowded: usize,
}

impl Decoder {
    /// Reads one resource of a response, the one at `place`.
    ///
    /// # Errors
    ///
    /// Why it was refused.
    pub fn decode(&mut self, kind: Kind, place: usize, encoded: Bytes) -> Result<Decoded, Box<Rejected>> {
        let resource = Resource::decode(encoded).map_err(|error| {
            let name = format!("resource {place} of the response");
            Box::new(Rejected { name, reason: error.into(), stand_in: None })
        })?;
        let Resource { version, resource, name, aliases } = resource;
        let value = resource.map(|any| any.value).ok_or(Reason::NoResource);
        let decoded = match kind {
            Kind::Address => value.and_then(|value| self.address(value)).map_err(|reason| (reason, None)),
            Kind::Authorization => self.authorization(&name, value),
        };
        match decoded {
            Ok(change) => {
                // The control plane calls a workload by its uid: one text for both.
                let name = match &change {
                    Change::Workload(workload) if *workload.uid == *name => Name::clone(&workload.uid),
                    Change::Policy(key, _) => Name::clone(key),
                    Change::Workload(_)
                    | Change::Service(_)
                    | Change::RemoveAddress(_)
                    | Change::RemovePolicy(_) => name.into(),
                };
                Ok(Decoded { name, aliases, version: Version::from(version), change })
            }
            Err((reason, stand_in)) => Err(Box::new(Rejected { name, reason, stand_in })),
        }
    }

    /// Forgets names that nothing uses any more, now and then.
    pub fn tidy(&mut self) {
        if self.names.len() + self.ports.len() > self.crowded.max(TIDY_FROM) {
            self.names.shrink();
            self.ports.retain(PortMap::is_shared);
            self.crowded = (self.names.len() + self.ports.len()) * 2;
        }
    }

    fn address(&mut self, value: Bytes) -> Result<Change, Reason> {
        match Address::decode(value)?.r#type {
            Some(address::Type::Workload(raw)) => {
                Ok(Change::Workload(Arc::new(workload::workload(self, raw)?)))
            }
            Some(address::Type::Service(raw)) => Ok(Change::Service(Box::new(service::service(self, raw)?))),
            None => Err(Reason::NoAddress),
        }
    }

    fn authorization(
        &mut self,
        name: &str,
        value: Result<Bytes, Reason>,
    ) -> Result<Change, (Reason, Option<Change>)> {
        let key: Name = name.into();
        let read = value.and_then(|value| Ok(Authorization::decode(value)?));
        let raw = match read {
            Ok(raw) => raw,
            Err(reason) => return Err((reason, policy::stand_in(&key, None))),
        };
        match policy::policy(self, &raw) {
            Ok(policy) => Ok(Change::Policy(key, Arc::new(policy))),
            Err(reason) => Err((reason, policy::stand_in(&key, Some(&raw)))),
        }
    }

    /// The one copy of a name.
    fn name(&mut self, text: &str) -> Name {
        self.names.intern(text)
    }

    /// The one copy of a name, or of its default where nothing is said.
    fn name_or(&mut self, text: &str, default: &str) -> Name {
        self.names.intern(if text.is_empty() { default } else { text })
    }

    /// The one copy of these ports.
    fn ports(&mut self, field: &'static str, raw: &[api::Port]) -> Result<PortMap, Reason> {
        let pairs = raw
            .iter()
            .map(|raw| Ok((port(field, raw.service_port)?, port(field, raw.target_port)?)))
            .collect::<Result<Vec<_>, Reason>>()?;
        let ports: PortMap = pairs.into_iter().collect();
        if let Some(known) = self.ports.get(&ports) {
            return Ok(known.clone());
        }
        self.ports.insert(ports.clone());
        Ok(ports)
    }

    fn service_key(&mut self, text: &str) -> Result<ServiceKey, Reason> {
        let key: ServiceKey = text.parse()?;
        Ok(ServiceKey { namespace: self.name(&key.namespace), hostname: self.name(&key.hostname) })
    }

    fn network_addr(
        &mut self,
        field: &'static str,
        raw: &api::NetworkAddress,
    ) -> Result<NetworkAddr, Reason> {
        Ok(NetworkAddr { network: self.name(&raw.network), ip: ip(field, &raw.address)? })
    }

    fn gateway(&mut self, field: &'static str, raw: &api::GatewayAddress) -> Result<GatewayAddress, Reason> {
        let destination = match &raw.destination {
            None => return Err(Reason::Nothing(field)),
            Some(api::gateway_address::Destination::Address(address)) => {
                GatewayDestination::Address(self.network_addr(field, address)?)
            }
            Some(api::gateway_address::Destination::Hostname(name)) => {
                GatewayDestination::Hostname(ServiceKey {
                    namespace: self.name(&name.namespace),
                    hostname: self.name(&name.hostname),
                })
            }
        };
        Ok(GatewayAddress { destination, hbone_mtls_port: port(field, raw.hbone_mtls_port)? })
    }
}

/// 4 or 16 bytes; an IPv4 address is never held in its IPv6 form.
fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Reason> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(Reason::Ip { field, length: bytes.len() }),
    }
}

fn port(field: &'static str, port: u32) -> Result<u16, Reason> {
    u16::try_from(port).ok().ok_or(Reason::Port { field, port })
}

/// A number of an enumeration that we know.
fn known<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, Reason> {
    T::try_from(value).ok().ok_or(Reason::Unknown { field, value })
}
