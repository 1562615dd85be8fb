// SPDX-License-Identifier: Apache-2.0
//! Pods and services in the words of the workload API, as istiod would describe them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use bytes::Bytes;
use ztunnel_core::xds::proto::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match,
};
use ztunnel_core::xds::proto::workload::{
    Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, WorkloadType,
};

use super::resources::Resources;
use crate::mesh::Mesh;
use crate::pod::{Pod, Standing};

/// Everything that the file of this mesh says about pods and services.
pub fn mesh(mesh: &Mesh, resources: &mut Resources) {
    let mut services: BTreeMap<&str, BTreeMap<u16, u16>> = BTreeMap::new();
    for pod in mesh.pods().filter(|pod| pod.standing() != Standing::Unknown) {
        resources.workload(&workload(pod));
        for service in &pod.spec.services {
            services.entry(&service.hostname).or_default().insert(service.port, service.target);
        }
    }
    for (hostname, ports) in services {
        resources.service(&service(hostname, mesh.vip(hostname), ports));
    }
}

/// One pod.
#[must_use]
pub fn workload(pod: &Pod) -> Workload {
    let mut services: HashMap<String, PortList> = HashMap::new();
    for service in &pod.spec.services {
        let key = format!("{}/{}", namespace_of(&service.hostname), service.hostname);
        services.entry(key).or_default().ports.push(port(service.port, service.target));
    }
    let hbone = pod.standing() == Standing::Mesh;
    Workload {
        uid: uid(pod.namespace(), pod.name()),
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        addresses: vec![bytes(pod.ip4()), bytes(pod.ip6())],
        tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        // The control plane leaves the default out.
        trust_domain: Some(&pod.spec.trust_domain)
            .filter(|domain| *domain != "cluster.local")
            .cloned()
            .unwrap_or_default(),
        service_account: pod.service_account().to_owned(),
        node: pod.node_name().to_owned(),
        canonical_name: pod.name().to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: pod.name().to_owned(),
        cluster_id: "cluster1".to_owned(),
        authorization_policies: pod.spec.policies.clone(),
        services,
        ..Workload::default()
    }
}

/// One service.
#[must_use]
pub fn service(hostname: &str, vip: IpAddr, ports: impl IntoIterator<Item = (u16, u16)>) -> Service {
    Service {
        name: hostname.split('.').next().unwrap_or_default().to_owned(),
        namespace: namespace_of(hostname).to_owned(),
        hostname: hostname.to_owned(),
        addresses: vec![NetworkAddress { network: String::new(), address: bytes(vip), length: None }],
        ports: ports.into_iter().map(|(service, target)| port(service, target)).collect(),
        canonical: true,
        ..Service::default()
    }
}

/// A policy of a namespace that denies what comes from one of these principals (without `spiffe://`).
#[must_use]
pub fn deny(namespace: &str, name: &str, principals: &[&str]) -> Authorization {
    let exact = |principal: &&str| StringMatch {
        match_type: Some(string_match::MatchType::Exact((*principal).to_owned())),
    };
    let matches = vec![Match { principals: principals.iter().map(exact).collect(), ..Match::default() }];
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::Namespace.into(),
        action: Action::Deny.into(),
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
    }
}

/// `count` pods that exist on paper only, in `services` services, with all that a real cluster says about a pod.
pub fn crowd(count: u32, services: u32, resources: &mut Resources) {
    for place in 0..services {
        let [_, high, mid, low] = place.to_be_bytes();
        let vip = IpAddr::from([10, 100 + high, mid, low]);
        resources.service(&service(&crowd_hostname(place), vip, [(80, 8080), (443, 8443)]));
    }
    for place in 0..count {
        resources.workload(&crowd_member(place, services));
    }
}

/// The pod on paper number `place`.
#[must_use]
pub fn crowd_member(place: u32, services: u32) -> Workload {
    let group = place % services.max(1);
    let app = format!("app-{group:05}");
    let namespace = crowd_namespace(group);
    let name = format!("{app}-6f9c7d5b8d-{place:06}");
    let [_, high, mid, low] = place.to_be_bytes();
    let ports = PortList { ports: vec![port(80, 8080), port(443, 8443)] };
    Workload {
        uid: uid(&namespace, &name),
        name,
        service_account: app.clone(),
        addresses: vec![Bytes::copy_from_slice(&[11, high, mid, low])],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        node: format!("ip-10-20-{}-{}.eu-west-1.compute.internal", place / 30 / 250, place / 30 % 250),
        canonical_name: app.clone(),
        canonical_revision: "latest".to_owned(),
        workload_name: app,
        cluster_id: "cluster1".to_owned(),
        locality: Some(Locality {
            region: "eu-west-1".to_owned(),
            zone: format!("eu-west-1{}", if place.is_multiple_of(2) { "a" } else { "b" }),
            subzone: String::new(),
        }),
        services: HashMap::from([(format!("{namespace}/{}", crowd_hostname(group)), ports)]),
        namespace,
        ..Workload::default()
    }
}

fn crowd_namespace(group: u32) -> String {
    format!("team-{:03}", group % 100)
}

fn crowd_hostname(group: u32) -> String {
    format!("app-{group:05}.{}.svc.cluster.local", crowd_namespace(group))
}

/// The key of a pod.
#[must_use]
pub fn uid(namespace: &str, pod: &str) -> String {
    format!("cluster1//Pod/{namespace}/{pod}")
}

fn port(service: u16, target: u16) -> Port {
    Port { service_port: service.into(), target_port: target.into(), app_protocol: 0 }
}

fn bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// `name.namespace.svc...`: the second label.
fn namespace_of(hostname: &str) -> &str {
    hostname.split('.').nth(1).unwrap_or("default")
}
