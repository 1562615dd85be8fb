// SPDX-License-Identifier: Apache-2.0
//! The mesh file: the pods that are known, their services, and the policies of the test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::is_listed;
use crate::node::Node;
use crate::pod::{Pod, Standing};

/// Virtual address of the service at `place`.
pub(super) fn vip(place: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, u8::try_from(place + 1).unwrap_or(255))
}

/// Hostnames of all services, in the order of the file.
pub(super) fn hostnames(pods: &[Pod], details: &Details) -> Vec<String> {
    services(pods, details).into_keys().collect()
}

/// More of the description of services: YAML lines by hostname.
pub(super) type Details = BTreeMap<String, Vec<String>>;

/// Hostname -> port -> target port, 0 if it is named.
fn services(pods: &[Pod], details: &Details) -> BTreeMap<String, BTreeMap<u16, u16>> {
    let mut services: BTreeMap<String, BTreeMap<u16, u16>> = BTreeMap::new();
    for hostname in details.keys() {
        services.entry(hostname.clone()).or_default();
    }
    for service in pods.iter().flat_map(|pod| &pod.spec.services) {
        let target = if service.named { 0 } else { service.target };
        services.entry(service.hostname.clone()).or_default().insert(service.port, target);
    }
    services
}

/// The ztunnel of a node, as an item of the file's workloads.
pub(super) fn ztunnel(node: &Node, policies: &[String]) -> String {
    let policies: Vec<String> = policies.iter().map(|policy| format!("\"{policy}\"")).collect();
    format!(
        "- uid: cluster1//Pod/istio-system/{name}\n  name: {name}\n  namespace: istio-system\n  \
         serviceAccount: ztunnel\n  trustDomain: cluster.local\n  node: {node}\n  clusterId: cluster1\n  \
         workloadName: ztunnel\n  workloadType: pod\n  canonicalName: ztunnel\n  canonicalRevision: v1\n  \
         protocol: HBONE\n  workloadIps: [\"{ip4}\", \"{ip6}\"]\n  authorizationPolicies: [{policies}]\n  \
         services: {{}}\n",
        name = node.own_name(),
        node = node.name(),
        ip4 = node.ip4(),
        ip6 = node.ip6(),
        policies = policies.join(", "),
    )
}

/// The file as YAML.
pub(super) fn text(pods: &[Pod], details: &Details, policies: &[String], more: &[String]) -> String {
    let mut out = String::from("workloads:\n");
    for pod in pods.iter().filter(|pod| is_listed(pod)) {
        workload(&mut out, pod);
    }
    let services = services(pods, details);
    if !services.is_empty() || !more.is_empty() {
        out.push_str("services:\n");
    }
    for (place, (hostname, ports)) in services.iter().enumerate() {
        let name = hostname.split('.').next().unwrap_or_default();
        let ports: Vec<String> = ports.iter().map(|(port, target)| format!("{port}: {target}")).collect();
        writeln!(
            out,
            "- name: {name}\n  namespace: {namespace}\n  hostname: {hostname}\n  vips: [\"/{vip}\"]\n  ports: {{{ports}}}",
            namespace = namespace_of(hostname),
            vip = vip(place),
            ports = ports.join(", "),
        )
        .unwrap_or_default();
        for line in details.get(hostname).into_iter().flatten() {
            writeln!(out, "  {line}").unwrap_or_default();
        }
    }
    for services in more {
        writeln!(out, "{}", services.trim_matches('\n')).unwrap_or_default();
    }
    if !policies.is_empty() {
        out.push_str("policies:\n");
        for policy in policies {
            for (number, line) in policy.trim().lines().enumerate() {
                let start = if number == 0 { "- " } else { "  " };
                writeln!(out, "{start}{line}").unwrap_or_default();
            }
        }
    }
    for pod in pods {
        out = out.replace(&format!("$ip({})", pod.name()), &pod.ip4().to_string());
    }
    for (place, hostname) in services.keys().enumerate() {
        out = out.replace(&format!("$vip({hostname})"), &vip(place).to_string());
    }
    out
}

fn workload(out: &mut String, pod: &Pod) {
    let spec = &pod.spec;
    let protocol = if spec.standing == Standing::Mesh { "HBONE" } else { "TCP" };
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for service in &spec.services {
        let ports = services.entry(format!("{}/{}", namespace_of(&service.hostname), service.hostname));
        ports.or_default().push(format!("{}: {}", service.port, service.target));
    }
    let services: Vec<String> =
        services.iter().map(|(name, ports)| format!("\"{name}\": {{{}}}", ports.join(", "))).collect();
    let policies: Vec<String> = spec.policies.iter().map(|policy| format!("\"{policy}\"")).collect();
    let addresses = match &spec.hostname {
        None => format!("workloadIps: [\"{}\", \"{}\"]", pod.ip4(), pod.ip6()),
        Some(hostname) => format!("workloadIps: []\n  hostname: {hostname}"),
    };
    writeln!(
        out,
        "- uid: cluster1//Pod/{namespace}/{name}\n  name: {name}\n  namespace: {namespace}\n  \
         serviceAccount: {account}\n  trustDomain: {trust}\n  node: {node}\n  clusterId: cluster1\n  \
         workloadName: {name}\n  workloadType: pod\n  canonicalName: {name}\n  canonicalRevision: v1\n  \
         protocol: {protocol}\n  {addresses}\n  \
         authorizationPolicies: [{policies}]\n  services: {{{services}}}",
        namespace = spec.namespace,
        name = spec.name,
        account = spec.service_account,
        trust = spec.trust_domain,
        node = spec.node,
        policies = policies.join(", "),
        services = services.join(", "),
    )
    .unwrap_or_default();
    for line in &spec.details {
        writeln!(out, "  {line}").unwrap_or_default();
    }
}

/// `name.namespace.svc...`: the second label.
fn namespace_of(hostname: &str) -> &str {
    hostname.split('.').nth(1).unwrap_or("default")
}
