// SPDX-License-Identifier: Apache-2.0
//! `istio.workload.Workload`. Source: control-plane contract, section 2.4.

use super::{Decoder, Reason, ip, known, port};
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, Membership, NetworkMode, Protocol, Workload,
};
use crate::xds::proto::workload as api;

/// What a workload is that does not say so.
const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";
const CLUSTER: &str = "Kubernetes";

pub(super) fn workload(decoder: &mut Decoder, raw: api::Workload) -> Result<Workload, Reason> {
    if raw.uid.is_empty() {
        return Err(Reason::Empty("uid"));
    }
    let locality = raw.locality.unwrap_or_default();
    let mut workload_ips = Vec::with_capacity(raw.addresses.len());
    for address in &raw.addresses {
        workload_ips.push(ip("addresses", address)?);
    }
    Ok(Workload {
        workload_ips,
        waypoint: raw.waypoint.map(|raw| decoder.gateway("waypoint", &raw)).transpose()?.map(Box::new),
        network_gateway: raw
            .network_gateway
            .map(|raw| decoder.gateway("network_gateway", &raw))
            .transpose()?
            .map(Box::new),
        protocol: match known("tunnel_protocol", raw.tunnel_protocol)? {
            api::TunnelProtocol::None => Protocol::Tcp,
            api::TunnelProtocol::Hbone => Protocol::Hbone,
            api::TunnelProtocol::LegacyIstioMtls => {
                return Err(Reason::Unsupported("tunnel_protocol LEGACY_ISTIO_MTLS"));
            }
        },
        network_mode: match known("network_mode", raw.network_mode)? {
            api::NetworkMode::Standard => NetworkMode::Standard,
            api::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        // Of these every workload has its own: there is nothing to share.
        uid: raw.uid.into(),
        name: raw.name.into(),
        namespace: decoder.name(&raw.namespace),
        trust_domain: decoder.name_or(&raw.trust_domain, TRUST_DOMAIN),
        service_account: decoder.name_or(&raw.service_account, SERVICE_ACCOUNT),
        network: decoder.name(&raw.network),
        workload_name: decoder.name(&raw.workload_name),
        workload_type: decoder.name(workload_type(raw.workload_type)),
        canonical_name: decoder.name(&raw.canonical_name),
        canonical_revision: decoder.name(&raw.canonical_revision),
        hostname: decoder.name(&raw.hostname),
        node: decoder.name(&raw.node),
        native_tunnel: raw.native_tunnel,
        application_tunnel: raw.application_tunnel.map(application_tunnel).transpose()?,
        authorization_policies: raw.authorization_policies.iter().map(|key| decoder.name(key)).collect(),
        status: match known("status", raw.status)? {
            api::WorkloadStatus::Healthy => Health::Healthy,
            api::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        cluster_id: decoder.name_or(&raw.cluster_id, CLUSTER),
        locality: Locality {
            region: decoder.name(&locality.region),
            zone: decoder.name(&locality.zone),
            subzone: decoder.name(&locality.subzone),
        },
        services: memberships(decoder, &raw.services)?,
        capacity: raw.capacity.unwrap_or(1),
    })
}

/// By name: the order of a protobuf map means nothing.
fn memberships(
    decoder: &mut Decoder,
    raw: &std::collections::HashMap<String, api::PortList>,
) -> Result<Vec<Membership>, Reason> {
    let mut all = Vec::with_capacity(raw.len());
    for (key, list) in raw {
        let ports = decoder.ports("services", &list.ports)?;
        all.push(Membership { service: decoder.service_key(key)?, ports });
    }
    all.sort_unstable_by(|a, b| a.service.cmp(&b.service));
    Ok(all)
}

/// Telemetry only, so an unknown one is no reason to refuse.
fn workload_type(raw: i32) -> &'static str {
    match api::WorkloadType::try_from(raw) {
        Ok(api::WorkloadType::Deployment) | Err(_) => "deployment",
        Ok(api::WorkloadType::Cronjob) => "cronjob",
        Ok(api::WorkloadType::Pod) => "pod",
        Ok(api::WorkloadType::Job) => "job",
    }
}

fn application_tunnel(raw: api::ApplicationTunnel) -> Result<ApplicationTunnel, Reason> {
    let protocol = match known("application_tunnel.protocol", raw.protocol)? {
        api::application_tunnel::Protocol::None => ApplicationProtocol::None,
        api::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    let port = port("application_tunnel.port", raw.port)?;
    Ok(ApplicationTunnel { protocol, port: (port > 0).then_some(port) })
}
