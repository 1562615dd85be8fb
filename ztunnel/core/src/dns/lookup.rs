// SPDX-License-Identifier: Apache-2.0
//! The answer to a question: a function of the question, the client and the mesh (data-plane contract, section 5.2).

use std::net::IpAddr;
use std::sync::Arc;

use super::aliases::{aliases, wildcards};
use super::{Question, Settings, kind, name};
use crate::mesh::{IpFamilies, Mesh, Service, Workload};

/// Who asks: always the pod whose listener was asked, whatever the source address says.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The pod's workload.
    pub workload: &'a Workload,
    /// The search domains that its resolver adds ([`super::search_domains`], or those of its own configuration).
    pub search: &'a [String],
}

/// What to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The mesh does not know: ask a resolver.
    Forward,
    /// The name is known, and has no address of this type.
    NoData(NoData),
    /// Addresses.
    Found(Records),
}

/// Why a known name has no address of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoData {
    /// The service is not of this address family.
    Family,
    /// It has none, or none in the client's network.
    Empty,
}

/// What is found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// The name that the addresses belong to, if it is not the one that was asked for.
    pub canonical: Option<String>,
    /// All of the type that was asked for, at least one.
    pub addresses: Vec<IpAddr>,
}

/// Answers a question, or says that it is not ours. `entropy` orders the addresses.
pub fn answer(
    mesh: &Mesh,
    question: &Question<'_>,
    client: &Client<'_>,
    settings: &Settings,
    entropy: &mut dyn FnMut() -> u64,
) -> Answer {
    if question.class != kind::IN || !matches!(question.kind, kind::A | kind::AAAA) {
        return Answer::Forward;
    }
    let Some(host) = name::host(question.name) else { return Answer::Forward };
    let Some(found) = find(mesh, &host, client, settings) else { return Answer::Forward };
    let wanted = if question.kind == kind::AAAA { IpFamilies::IPv6 } else { IpFamilies::IPv4 };
    let has_family = match found.service.ip_families {
        Some(IpFamilies::Dual) | None => true,
        Some(only) => only == wanted,
    };
    if !has_family || wanted == IpFamilies::IPv6 && !settings.ipv6 {
        return Answer::NoData(NoData::Family);
    }
    let mut addresses = addresses(mesh, &found.service, &client.workload.network, |ip| {
        ip.is_ipv6() == (wanted == IpFamilies::IPv6)
    });
    if addresses.is_empty() {
        return Answer::NoData(NoData::Empty);
    }
    shuffle(&mut addresses, entropy);
    Answer::Found(Records { canonical: found.canonical, addresses })
}

struct Found {
    service: Arc<Service>,
    canonical: Option<String>,
}

/// The first name under which somebody is found who is visible to the client.
fn find(mesh: &Mesh, host: &str, client: &Client<'_>, settings: &Settings) -> Option<Found> {
    let namespace = &*client.workload.namespace;
    // What most questions are for needs no other name.
    if let Some(service) = best(mesh, host, namespace, settings) {
        return Some(Found { service: Arc::clone(service), canonical: None });
    }
    for alias in aliases(host, namespace, &settings.domain, client.search) {
        if let Some(service) = best(mesh, &alias.name, namespace, settings) {
            return Some(Found { service: Arc::clone(service), canonical: alias.stripped });
        }
        for wildcard in wildcards(&alias.name) {
            if let Some(service) = best(mesh, &wildcard, namespace, settings) {
                return Some(Found { service: Arc::clone(service), canonical: None });
            }
        }
    }
    None
}

/// Own namespace, then the last canonical one, then the preferred namespace, then the first.
fn best<'m>(
    mesh: &'m Mesh,
    hostname: &str,
    namespace: &str,
    settings: &Settings,
) -> Option<&'m Arc<Service>> {
    let mut best: Option<(u8, &Arc<Service>)> = None;
    for service in mesh.services_by_hostname(hostname) {
        if !is_answered(service, &settings.domain) || !service.is_visible_to(namespace) {
            continue;
        }
        let preferred = settings.preferred_namespace.as_ref() == Some(&service.namespace);
        let rank = match (*service.namespace == *namespace, service.canonical, preferred) {
            (true, _, _) => 3,
            (false, true, _) => 2,
            (false, false, true) => 1,
            (false, false, false) => 0,
        };
        let later_wins = rank == 2;
        if best.is_none_or(|(known, _)| rank > known || rank == known && later_wins) {
            best = Some((rank, service));
        }
    }
    best.map(|(_, service)| service)
}

/// A name is ours if it has a virtual address, or is a headless service of the cluster.
fn is_answered(service: &Service, domain: &str) -> bool {
    !service.vips.is_empty() || is_of_cluster(&service.hostname, domain)
}

/// `….svc.<domain>`.
fn is_of_cluster(hostname: &str, domain: &str) -> bool {
    hostname.strip_suffix(domain).is_some_and(|rest| rest.ends_with(".svc."))
}

fn addresses(
    mesh: &Mesh,
    service: &Service,
    network: &str,
    is_wanted: impl Fn(&IpAddr) -> bool,
) -> Vec<IpAddr> {
    if !service.vips.is_empty() {
        let reachable = service.vips.iter().filter(|vip| *vip.network == *network);
        return reachable.map(|vip| vip.ip).filter(is_wanted).collect();
    }
    let workloads = service.endpoints.keys().filter_map(|uid| mesh.workload_by_uid(uid));
    workloads.filter_map(|workload| workload.workload_ips.iter().copied().find(&is_wanted)).collect()
}

/// Every order is as likely (Fisher and Yates).
fn shuffle(addresses: &mut [IpAddr], entropy: &mut dyn FnMut() -> u64) {
    for left in (2..=addresses.len()).rev() {
        let pick = usize::try_from(entropy() % left as u64).unwrap_or_default();
        addresses.swap(left - 1, pick);
    }
}
