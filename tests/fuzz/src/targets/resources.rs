// SPDX-License-Identifier: Apache-2.0
//! One resource of the control plane: a workload, a service, a policy.
//!
//! The input is a `Resource` after one byte that says what kind it is announced as.

use bytes::Bytes;
use prost::Message as _;
use ztunnel_core::mesh::{Change, Mesh};
use ztunnel_core::xds::proto::discovery::{Any, Resource};
use ztunnel_core::xds::proto::security::{self as policy, Authorization};
use ztunnel_core::xds::proto::workload::{self as api, Address, address, gateway_address};
use ztunnel_core::xds::{Decoder, Kind};

use super::mesh_file::dumped;

pub(super) fn run(data: &[u8]) {
    let Some((&kind, encoded)) = data.split_first() else { return };
    let kind = if kind & 1 == 0 { Kind::Address } else { Kind::Authorization };
    let mut decoder = Decoder::default();
    let encoded = Bytes::copy_from_slice(encoded);
    match decoder.decode(kind, 0, encoded.clone()) {
        Err(rejected) => {
            assert!(!rejected.reason.to_string().is_empty());
            let stand_in = matches!(rejected.stand_in, None | Some(Change::Policy(..)));
            assert!(stand_in, "only a policy has a stand-in: {rejected:?}");
        }
        Ok(decoded) => {
            assert_eq!(decoder.decode(kind, 0, encoded).as_ref(), Ok(&decoded), "read twice, the same twice");
            assert_eq!(matches!(decoded.change, Change::Policy(..)), kind == Kind::Authorization);
            let mut mesh = Mesh::default();
            mesh.apply(decoded.change.clone());
            dumped(&mesh);
            // Replaced by itself, then removed: nothing is left of it.
            mesh.apply(decoded.change.clone());
            mesh.apply(removal(decoded.change));
            let left = mesh.everything();
            assert!(left.workloads.is_empty() && left.services.is_empty() && left.policies.is_empty());
            assert!(mesh.staged().is_empty(), "endpoints without a workload: {:?}", mesh.staged());
        }
    }
    decoder.tidy();
}

fn removal(change: Change) -> Change {
    match change {
        Change::Workload(workload) => Change::RemoveAddress(workload.uid.clone()),
        Change::Service(service) => {
            Change::RemoveAddress(format!("{}/{}", service.namespace, service.hostname).into())
        }
        Change::Policy(key, _) => Change::RemovePolicy(key),
        removal @ (Change::RemoveAddress(_) | Change::RemovePolicy(_)) => removal,
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let announced = |kind: u8, resource: Resource| [vec![kind], resource.encode_to_vec()].concat();
    vec![
        announced(0, resource("c1//Pod/shop/web-0", &workload_address())),
        announced(0, resource("shop/web.shop.svc.cluster.local", &service_address())),
        announced(1, resource("shop/only-front", &authorization())),
    ]
}

/// A resource as the control plane wraps it.
pub(super) fn resource(name: &str, value: &impl prost::Message) -> Resource {
    let resource = Some(Any { type_url: String::new(), value: value.encode_to_vec().into() });
    Resource { name: name.into(), version: "1".into(), resource, aliases: vec!["n/10.0.0.1".into()] }
}

/// A workload that says everything.
pub(super) fn workload_address() -> Address {
    let ports = vec![api::Port { service_port: 80, target_port: 8080, app_protocol: 1 }];
    let hostname = api::NamespacedHostname { namespace: "shop".into(), hostname: "waypoint.shop".into() };
    let workload = api::Workload {
        uid: "c1//Pod/shop/web-0".into(),
        name: "web-0".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1].into(), vec![0xfd; 16].into()],
        network: "n".into(),
        tunnel_protocol: 1,
        trust_domain: "cluster.local".into(),
        service_account: "web".into(),
        waypoint: Some(api::GatewayAddress {
            destination: Some(gateway_address::Destination::Hostname(hostname)),
            hbone_mtls_port: 15008,
        }),
        network_gateway: Some(api::GatewayAddress {
            destination: Some(gateway_address::Destination::Address(address_of(&[10, 0, 0, 9], None))),
            hbone_mtls_port: 15008,
        }),
        workload_type: 2,
        hostname: "db.example.com".into(),
        authorization_policies: vec!["shop/only-front".into()],
        services: [("shop/web.shop.svc.cluster.local".to_owned(), api::PortList { ports })].into(),
        application_tunnel: Some(api::ApplicationTunnel { protocol: 1, port: 15088 }),
        locality: Some(api::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        capacity: Some(3),
        ..api::Workload::default()
    };
    Address { r#type: Some(address::Type::Workload(workload)) }
}

/// A service that says everything.
pub(super) fn service_address() -> Address {
    let waypoint = api::GatewayAddress {
        destination: Some(gateway_address::Destination::Address(address_of(&[10, 0, 0, 9], None))),
        hbone_mtls_port: 15008,
    };
    let service = api::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![address_of(&[10, 96, 0, 1], None), address_of(&[10, 97, 0, 0], Some(16))],
        ports: vec![api::Port { service_port: 80, target_port: 0, app_protocol: 0 }],
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/web".into()],
        weighted_waypoints: vec![api::WeightedWaypoint { destination: Some(waypoint.clone()), weight: 1 }],
        waypoint: Some(waypoint),
        load_balancing: Some(api::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 3,
        canonical: true,
        visibility: 1,
        ..api::Service::default()
    };
    Address { r#type: Some(address::Type::Service(service)) }
}

/// A policy with every kind of comparison.
pub(super) fn authorization() -> Authorization {
    use policy::string_match::MatchType;
    let text = |text: MatchType| policy::StringMatch { match_type: Some(text) };
    let account = policy::ServiceAccountMatch { namespace: "shop".into(), service_account: "web".into() };
    let range = policy::Address { address: vec![10, 0, 0, 0].into(), length: 8 };
    let matches = policy::Match {
        namespaces: vec![text(MatchType::Exact("shop".into()))],
        not_namespaces: vec![text(MatchType::Prefix("kube-".into()))],
        principals: vec![text(MatchType::Suffix("/sa/web".into()))],
        not_principals: vec![text(MatchType::Presence(()))],
        source_ips: vec![range.clone()],
        not_destination_ips: vec![range],
        destination_ports: vec![80],
        not_service_accounts: vec![account],
        ..policy::Match::default()
    };
    let clause = policy::Clause { matches: vec![matches] };
    Authorization {
        name: "only-front".into(),
        namespace: "shop".into(),
        scope: 2,
        action: 1,
        rules: vec![policy::Rule { clauses: vec![clause] }],
        dry_run: true,
    }
}

fn address_of(address: &[u8], length: Option<u32>) -> api::NetworkAddress {
    api::NetworkAddress { network: "n".into(), address: Bytes::copy_from_slice(address), length }
}
