// SPDX-License-Identifier: Apache-2.0
//! What an istiod knows, as it sends it: resources by type and name, with versions and aliases.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use ztunnel_core::xds::proto::discovery::{Any, Resource};
use ztunnel_core::xds::proto::security::Authorization;
use ztunnel_core::xds::proto::workload::{Address, Service, Workload, address};
use ztunnel_core::xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// Resources by type and name.
#[derive(Debug, Default)]
pub struct Resources(pub(super) BTreeMap<&'static str, BTreeMap<String, Entry>>);

/// One resource as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) version: String,
    pub(super) aliases: Vec<String>,
    /// The node of a workload.
    pub(super) node: String,
    pub(super) encoded: Bytes,
}

impl Resources {
    /// Adds or replaces a workload, under its uid.
    pub fn workload(&mut self, workload: &Workload) {
        let aliases = workload.addresses.iter().filter_map(|ip| alias(&workload.network, ip)).collect();
        let address = Address { r#type: Some(address::Type::Workload(workload.clone())) };
        self.insert(ADDRESS_TYPE, &workload.uid, aliases, &address.encode_to_vec(), &workload.node);
    }

    /// Adds or replaces a service, under `namespace/hostname`.
    pub fn service(&mut self, service: &Service) {
        let aliases = service.addresses.iter().filter_map(|vip| alias(&vip.network, &vip.address)).collect();
        let address = Address { r#type: Some(address::Type::Service(service.clone())) };
        let name = format!("{}/{}", service.namespace, service.hostname);
        self.raw(ADDRESS_TYPE, &name, aliases, &address.encode_to_vec());
    }

    /// Adds or replaces a policy, under `namespace/name`.
    pub fn policy(&mut self, policy: &Authorization) {
        let name = format!("{}/{}", policy.namespace, policy.name);
        self.raw(AUTHORIZATION_TYPE, &name, Vec::new(), &policy.encode_to_vec());
    }

    /// Adds or replaces whatever bytes under a name.
    pub fn raw(&mut self, type_url: &'static str, name: &str, aliases: Vec<String>, value: &[u8]) {
        self.insert(type_url, name, aliases, value, "");
    }

    fn insert(&mut self, type_url: &'static str, name: &str, aliases: Vec<String>, value: &[u8], node: &str) {
        // istiod gives addresses a hash as their version, and policies none.
        let version = if type_url == ADDRESS_TYPE { format!("{:016x}", fnv(value)) } else { String::new() };
        let resource = Resource {
            version: version.clone(),
            resource: Some(Any { type_url: type_url.to_owned(), value: Bytes::copy_from_slice(value) }),
            name: name.to_owned(),
            aliases: aliases.clone(),
        };
        let encoded = resource.encode_to_vec().into();
        let entry = Entry { version, aliases, node: node.to_owned(), encoded };
        self.0.entry(type_url).or_default().insert(name.to_owned(), entry);
    }

    /// Removes a workload by uid, or a service by `namespace/hostname`.
    pub fn remove_address(&mut self, name: &str) {
        self.0.entry(ADDRESS_TYPE).or_default().remove(name);
    }

    /// Removes a policy by `namespace/name`.
    pub fn remove_policy(&mut self, name: &str) {
        self.0.entry(AUTHORIZATION_TYPE).or_default().remove(name);
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn of(&self, type_url: &str) -> impl Iterator<Item = (&String, &Entry)> {
        self.0.get(type_url).into_iter().flatten()
    }
}

/// `network/ip`.
fn alias(network: &str, ip: &[u8]) -> Option<String> {
    let ip: std::net::IpAddr = match ip.len() {
        4 => <[u8; 4]>::try_from(ip).ok()?.into(),
        _ => <[u8; 16]>::try_from(ip).ok()?.into(),
    };
    Some(format!("{network}/{ip}"))
}

/// FNV-1a: another hash than istiod's, which is nobody's business but its own.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
