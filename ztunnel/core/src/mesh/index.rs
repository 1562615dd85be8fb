// SPDX-License-Identifier: Apache-2.0
//! The indexes of a mesh: by key, by address, by name. Each maintains itself on insert and remove.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{NetworkMode, Service, ServiceKey, Workload};
use crate::Name;

/// A list that mostly has one element, and then no allocation.
#[derive(Debug)]
enum Few<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Few<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }
}

/// Adds to a list in a map.
fn link<K: std::hash::Hash + Eq, T>(map: &mut HashMap<K, Few<T>>, key: K, item: T) {
    let list = match map.remove(&key) {
        None => Few::One(item),
        Some(Few::One(first)) => Few::Many(vec![first, item]),
        Some(Few::Many(mut all)) => {
            all.push(item);
            Few::Many(all)
        }
    };
    map.insert(key, list);
}

/// Removes from a list in a map; an empty list goes.
fn unlink<K, Q, T>(map: &mut HashMap<K, Few<T>>, key: &Q, gone: impl Fn(&T) -> bool)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let empty = match map.get_mut(key) {
        None => false,
        Some(Few::One(only)) => gone(only),
        Some(Few::Many(all)) => {
            all.retain(|item| !gone(item));
            all.is_empty()
        }
    };
    if empty {
        map.remove(key);
    }
}

/// Workloads by uid, by address and by name.
#[derive(Debug, Default)]
pub(super) struct WorkloadIndex {
    by_uid: HashMap<Name, Arc<Workload>>,
    /// By network, then by address; in the order of insertion.
    by_addr: HashMap<Name, HashMap<IpAddr, Few<Arc<Workload>>>>,
    by_name: HashMap<Name, Few<Arc<Workload>>>,
    /// Those alone that have a host name.
    by_hostname: HashMap<Name, Few<Arc<Workload>>>,
}

impl WorkloadIndex {
    pub(super) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// Of several workloads the one with the best claim, and of equal claims the last.
    pub(super) fn by_addr(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let claimants = self.by_addr.get(network)?.get(&ip)?;
        claimants.as_slice().iter().max_by_key(|workload| workload.claim())
    }

    pub(super) fn by_info(&self, name: &str, fits: impl Fn(&Workload) -> bool) -> Option<&Arc<Workload>> {
        self.by_name.get(name)?.as_slice().iter().find(|workload| fits(workload))
    }

    /// Of several workloads of one namespace the last.
    pub(super) fn by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        let named = self.by_hostname.get(hostname)?.as_slice();
        named.iter().rfind(|workload| *workload.namespace == *namespace)
    }

    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Most meshes are one network, the default one.
    pub(super) fn reserve(&mut self, more: usize) {
        self.by_uid.reserve(more);
        self.by_name.reserve(more);
        self.by_addr.entry(Name::default()).or_default().reserve(more);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.values()
    }

    pub(super) fn sorted(&self) -> Vec<&Arc<Workload>> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    /// The uid must be free.
    pub(super) fn insert(&mut self, workload: Arc<Workload>) {
        if workload.network_mode == NetworkMode::Standard {
            let network = self.by_addr.entry(Name::clone(&workload.network)).or_default();
            for ip in &workload.workload_ips {
                link(network, ip.to_canonical(), Arc::clone(&workload));
            }
        }
        link(&mut self.by_name, Name::clone(&workload.name), Arc::clone(&workload));
        if !workload.hostname.is_empty() {
            link(&mut self.by_hostname, Name::clone(&workload.hostname), Arc::clone(&workload));
        }
        self.by_uid.insert(Name::clone(&workload.uid), workload);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(uid)?;
        let is_it = |other: &Arc<Workload>| Arc::ptr_eq(other, &workload);
        if let Some(network) = self.by_addr.get_mut(&workload.network) {
            for ip in &workload.workload_ips {
                unlink(network, &ip.to_canonical(), is_it);
            }
            if network.is_empty() {
                self.by_addr.remove(&workload.network);
            }
        }
        unlink(&mut self.by_name, &workload.name, is_it);
        unlink(&mut self.by_hostname, &workload.hostname, is_it);
        Some(workload)
    }
}

/// A service's place in the slab: it stays while the service is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(usize);

/// Services by key, by virtual address and by range.
///
/// The other indexes hold places in the slab and no `Arc`s, so that adding an endpoint need not copy the
/// service while no connection holds it.
#[derive(Debug, Default)]
pub(super) struct ServiceIndex {
    slab: Vec<Option<Arc<Service>>>,
    free: Vec<Slot>,
    /// In the order of insertion, one per namespace.
    by_hostname: HashMap<Name, Few<Slot>>,
    by_vip: HashMap<Name, HashMap<IpAddr, Few<Slot>>>,
    /// By network, then by prefix length, of which there are few, then by range.
    by_range: HashMap<Name, BTreeMap<u8, HashMap<IpNet, Few<Slot>>>>,
}

impl ServiceIndex {
    fn at(&self, slot: Slot) -> &Arc<Service> {
        self.slab[slot.0].as_ref().expect("an indexed service is stored")
    }

    fn slot(&self, namespace: &str, hostname: &str) -> Option<Slot> {
        let slots = self.by_hostname.get(hostname)?.as_slice();
        slots.iter().copied().find(|&slot| *self.at(slot).namespace == *namespace)
    }

    pub(super) fn by_key(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.slot(namespace, hostname).map(|slot| self.at(slot))
    }

    pub(super) fn by_hostname(
        &self,
        hostname: &str,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.best(self.by_hostname.get(hostname)?.as_slice(), client_namespace)
    }

    pub(super) fn all_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let slots = self.by_hostname.get(hostname).map_or(&[][..], Few::as_slice);
        slots.iter().map(|&slot| self.at(slot))
    }

    pub(super) fn by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let exact = self.by_vip.get(network).and_then(|vips| vips.get(&ip));
        exact
            .and_then(|slots| self.best(slots.as_slice(), client_namespace))
            .or_else(|| self.by_range(network, ip, client_namespace))
    }

    /// Own namespace, then the last canonical one, then the first. Within one namespace the last counts.
    fn best(&self, slots: &[Slot], client_namespace: Option<&str>) -> Option<&Arc<Service>> {
        let mut first: Option<&Arc<Service>> = None;
        let mut canonical = None;
        let mut own = None;
        for service in slots.iter().map(|&slot| self.at(slot)) {
            if !client_namespace.is_none_or(|namespace| service.is_visible_to(namespace)) {
                continue;
            }
            if first.is_none_or(|first| first.namespace == service.namespace) {
                first = Some(service);
            }
            if service.canonical {
                canonical = Some(service);
            }
            if client_namespace == Some(&*service.namespace) {
                own = Some(service);
            }
        }
        own.or(canonical).or(first)
    }

    /// Own namespace, then the longest prefix, then canonical.
    fn by_range(&self, network: &str, ip: IpAddr, client_namespace: Option<&str>) -> Option<&Arc<Service>> {
        let lengths = self.by_range.get(network)?.iter();
        lengths
            .filter_map(|(&length, ranges)| {
                let (range, slots) = ranges.get_key_value(&IpNet::new(ip, length).ok()?.trunc())?;
                Some((*range, slots.as_slice()))
            })
            .flat_map(|(range, slots)| slots.iter().map(move |&slot| (range, self.at(slot))))
            .filter(|(_, service)| client_namespace.is_none_or(|namespace| service.is_visible_to(namespace)))
            .max_by_key(|(range, service)| {
                (client_namespace == Some(&*service.namespace), range.prefix_len(), service.canonical)
            })
            .map(|(_, service)| service)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.slab.iter().flatten()
    }

    pub(super) fn sorted(&self) -> Vec<&Arc<Service>> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_unstable_by(|a, b| (&a.hostname, &a.namespace).cmp(&(&b.hostname, &b.namespace)));
        all
    }

    /// Changes a service in place, if it is known; `change` must leave key and addresses alone.
    pub(super) fn update(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Service)) {
        let Some(slot) = self.slot(&key.namespace, &key.hostname) else { return };
        let service = self.slab[slot.0].as_mut().expect("an indexed service is stored");
        let service = Arc::make_mut(service);
        service.candidates.forget();
        change(service);
    }

    /// Adds or replaces; a replaced service keeps its place among those of the same name.
    pub(super) fn insert(&mut self, service: Arc<Service>) {
        let slot = match self.slot(&service.namespace, &service.hostname) {
            Some(slot) => {
                let old = Arc::clone(self.at(slot));
                self.unlink_addresses(&old, slot);
                slot
            }
            None => {
                let slot = self.free.pop().unwrap_or(Slot(self.slab.len()));
                if slot.0 == self.slab.len() {
                    self.slab.push(None);
                }
                link(&mut self.by_hostname, Name::clone(&service.hostname), slot);
                slot
            }
        };
        for vip in &service.vips {
            let network = self.by_vip.entry(Name::clone(&vip.network)).or_default();
            link(network, vip.ip.to_canonical(), slot);
        }
        for range in &service.cidr_vips {
            let lengths = self.by_range.entry(Name::clone(&range.network)).or_default();
            link(lengths.entry(range.cidr.prefix_len()).or_default(), range.cidr.trunc(), slot);
        }
        self.slab[slot.0] = Some(service);
    }

    pub(super) fn remove(&mut self, namespace: &str, hostname: &str) -> Option<Arc<Service>> {
        let slot = self.slot(namespace, hostname)?;
        let service = self.slab[slot.0].take()?;
        unlink(&mut self.by_hostname, hostname, |&other| other == slot);
        self.unlink_addresses(&service, slot);
        self.free.push(slot);
        Some(service)
    }

    fn unlink_addresses(&mut self, service: &Service, slot: Slot) {
        for vip in &service.vips {
            if let Some(network) = self.by_vip.get_mut(&vip.network) {
                unlink(network, &vip.ip.to_canonical(), |&other| other == slot);
            }
        }
        for range in &service.cidr_vips {
            let Some(lengths) = self.by_range.get_mut(&range.network) else { continue };
            let length = range.cidr.prefix_len();
            let Some(ranges) = lengths.get_mut(&length) else { continue };
            unlink(ranges, &range.cidr.trunc(), |&other| other == slot);
            if ranges.is_empty() {
                lengths.remove(&length);
            }
        }
    }
}
