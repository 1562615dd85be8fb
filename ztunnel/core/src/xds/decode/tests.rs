// SPDX-License-Identifier: Apache-2.0
//! Resources, field by field: what the contract's defaults are, and what is refused.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::mesh::{
    Action, ApplicationProtocol, ApplicationTunnel, Health, HealthPolicy, IpFamilies, LoadBalancerMode,
    LocalityScope, NetworkMode, Policy, Protocol, Scope, Service, StringMatch, Visibility, Workload,
};
use crate::xds::proto::discovery::Any;
use crate::xds::proto::security as policy_api;

fn envelope(name: &str, value: Vec<u8>) -> Bytes {
    let resource = Some(Any { type_url: String::new(), value: value.into() });
    Resource { name: name.to_owned(), version: "1".to_owned(), resource, aliases: Vec::new() }
        .encode_to_vec()
        .into()
}

fn decode(kind: Kind, name: &str, value: Vec<u8>) -> Result<Change, String> {
    let decoded = Decoder::default().decode(kind, 0, envelope(name, value));
    decoded.map(|decoded| decoded.change).map_err(|rejected| rejected.to_string())
}

fn workload(raw: api::Workload) -> Result<Arc<Workload>, String> {
    let address = Address { r#type: Some(address::Type::Workload(raw)) };
    let change = decode(Kind::Address, "w", address.encode_to_vec())?;
    let Change::Workload(workload) = change else { return Err(format!("{change:?}")) };
    Ok(workload)
}

fn service(raw: api::Service) -> Result<Box<Service>, String> {
    let address = Address { r#type: Some(address::Type::Service(raw)) };
    let change = decode(Kind::Address, "s", address.encode_to_vec())?;
    let Change::Service(service) = change else { return Err(format!("{change:?}")) };
    Ok(service)
}

fn policy(raw: &Authorization) -> Result<Arc<Policy>, String> {
    let change = decode(Kind::Authorization, "ns/p", raw.encode_to_vec())?;
    let Change::Policy(key, policy) = change else { return Err(format!("{change:?}")) };
    assert_eq!(*key, *"ns/p");
    Ok(policy)
}

fn pod() -> api::Workload {
    api::Workload {
        uid: "c//Pod/ns/a".into(),
        name: "a".into(),
        namespace: "ns".into(),
        ..Default::default()
    }
}

fn web() -> api::Service {
    api::Service {
        hostname: "web.ns".into(),
        namespace: "ns".into(),
        name: "web".into(),
        ..Default::default()
    }
}

fn network_address(address: &'static [u8], length: Option<u32>) -> api::NetworkAddress {
    api::NetworkAddress { network: "n".into(), address: Bytes::from_static(address), length }
}

fn gateway(destination: Option<api::gateway_address::Destination>, port: u32) -> Option<api::GatewayAddress> {
    Some(api::GatewayAddress { destination, hbone_mtls_port: port })
}

fn ports(pairs: &[(u32, u32)]) -> Vec<api::Port> {
    let port = |&(service_port, target_port)| api::Port { service_port, target_port, app_protocol: 99 };
    pairs.iter().map(port).collect()
}

#[test]
fn what_a_workload_does_not_say_has_the_contracts_default() {
    let workload = workload(pod()).unwrap();
    assert_eq!(*workload.trust_domain, *"cluster.local");
    assert_eq!(*workload.service_account, *"default");
    assert_eq!(*workload.cluster_id, *"Kubernetes");
    assert_eq!(*workload.workload_type, *"deployment");
    assert_eq!((workload.capacity, workload.protocol), (1, Protocol::Tcp));
    assert_eq!((workload.status, workload.network_mode), (Health::Healthy, NetworkMode::Standard));
    assert_eq!(workload.application_tunnel, None);
}

#[test]
fn every_field_of_a_workload_has_its_place() {
    let text = |text: &str| text.to_owned();
    let raw = api::Workload {
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1]), Bytes::from_static(&[0xfd; 16])],
        network: text("n"),
        tunnel_protocol: 1,
        trust_domain: text("td"),
        service_account: text("sa"),
        waypoint: gateway(
            Some(api::gateway_address::Destination::Hostname(api::NamespacedHostname {
                namespace: text("wns"),
                hostname: text("whost"),
            })),
            15008,
        ),
        network_gateway: gateway(
            Some(api::gateway_address::Destination::Address(network_address(&[1, 2, 3, 4], None))),
            15009,
        ),
        node: text("node"),
        canonical_name: text("cn"),
        canonical_revision: text("cr"),
        workload_type: 3,
        workload_name: text("wn"),
        native_tunnel: true,
        authorization_policies: vec![text("ns/p")],
        status: 1,
        cluster_id: text("c"),
        hostname: text("host"),
        services: HashMap::from([
            (text("ns/b"), api::PortList { ports: ports(&[(80, 8080)]) }),
            (text("ns/a"), api::PortList { ports: ports(&[(443, 8443), (80, 0)]) }),
        ]),
        application_tunnel: Some(api::ApplicationTunnel { protocol: 1, port: 15088 }),
        locality: Some(api::Locality { region: text("r"), zone: text("z"), subzone: text("s") }),
        network_mode: 1,
        capacity: Some(7),
        ..pod()
    };
    let workload = workload(raw).unwrap();
    let json = serde_json::to_value(&*workload).unwrap();
    let expected = serde_json::json!({
        "workloadIps": ["10.0.0.1", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"],
        "waypoint": {"destination": "wns/whost", "hboneMtlsPort": 15008},
        "networkGateway": {"destination": "n/1.2.3.4", "hboneMtlsPort": 15009},
        "protocol": "HBONE", "networkMode": "HostNetwork", "uid": "c//Pod/ns/a", "name": "a",
        "namespace": "ns", "trustDomain": "td", "serviceAccount": "sa", "network": "n",
        "workloadName": "wn", "workloadType": "job", "canonicalName": "cn", "canonicalRevision": "cr",
        "hostname": "host", "node": "node", "nativeTunnel": true,
        "applicationTunnel": {"protocol": "PROXY", "port": 15088},
        "authorizationPolicies": ["ns/p"], "status": "Unhealthy", "clusterId": "c",
        "locality": {"region": "r", "zone": "z", "subzone": "s"},
        "services": ["ns/a", "ns/b"], "capacity": 7,
    });
    assert_eq!(json, expected);
    assert_eq!(workload.services[0].ports.target(80), Some(0), "a named port");
    assert_eq!(
        workload.application_tunnel,
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) })
    );
}

#[test]
fn a_workload_that_cannot_be_used_is_refused_with_the_reason() {
    let bad = |change: fn(&mut api::Workload)| {
        let mut raw = pod();
        change(&mut raw);
        workload(raw).unwrap_err()
    };
    for (reason, found) in [
        ("w: uid is empty", bad(|raw| raw.uid.clear())),
        (
            "w: addresses: an address of 3 bytes, expected 4 or 16",
            bad(|raw| raw.addresses = vec![Bytes::from_static(&[1, 2, 3])]),
        ),
        ("w: tunnel_protocol: unknown value 3", bad(|raw| raw.tunnel_protocol = 3)),
        ("w: tunnel_protocol LEGACY_ISTIO_MTLS is not supported", bad(|raw| raw.tunnel_protocol = 2)),
        ("w: status: unknown value 2", bad(|raw| raw.status = 2)),
        ("w: network_mode: unknown value -1", bad(|raw| raw.network_mode = -1)),
        (
            "w: application_tunnel.protocol: unknown value 2",
            bad(|raw| raw.application_tunnel = Some(api::ApplicationTunnel { protocol: 2, port: 1 })),
        ),
        (
            "w: application_tunnel.port: 70000 is no port",
            bad(|raw| raw.application_tunnel = Some(api::ApplicationTunnel { protocol: 0, port: 70_000 })),
        ),
        ("w: waypoint says nothing", bad(|raw| raw.waypoint = gateway(None, 15008))),
        (
            "w: network_gateway: an address of 0 bytes, expected 4 or 16",
            bad(|raw| {
                raw.network_gateway =
                    gateway(Some(api::gateway_address::Destination::Address(network_address(&[], None))), 1);
            }),
        ),
        (
            "w: services: `web` is not `namespace/hostname`",
            bad(|raw| raw.services = HashMap::from([("web".to_owned(), api::PortList::default())])),
        ),
        (
            "w: services: 65536 is no port",
            bad(|raw| {
                let list = api::PortList { ports: ports(&[(80, 65_536)]) };
                raw.services = HashMap::from([("ns/web".to_owned(), list)]);
            }),
        ),
    ] {
        assert_eq!(found, reason);
    }
    // Telemetry only.
    assert_eq!(*workload(api::Workload { workload_type: 9, ..pod() }).unwrap().workload_type, *"deployment");
}

#[test]
fn an_address_that_is_nothing_we_know_is_refused() {
    assert_eq!(decode(Kind::Address, "x", Vec::new()).unwrap_err(), "x: neither a workload nor a service");
    let nothing = Resource { name: "x".to_owned(), ..Resource::default() }.encode_to_vec();
    let rejected = Decoder::default().decode(Kind::Address, 3, nothing.into()).unwrap_err();
    assert_eq!(rejected.to_string(), "x: no resource in it");
    assert_eq!(rejected.stand_in, None);
    let unreadable = decode(Kind::Address, "x", vec![0xff]).unwrap_err();
    assert!(unreadable.starts_with("x: cannot be read: "), "{unreadable}");
}

#[test]
fn every_field_of_a_service_has_its_place() {
    let raw = api::Service {
        addresses: vec![
            network_address(&[10, 0, 0, 1], None),
            network_address(&[10, 0, 0, 2], Some(32)),
            network_address(&[10, 9, 9, 9], Some(16)),
            network_address(&[0xfd; 16], Some(128)),
        ],
        ports: ports(&[(80, 8080), (443, 0)]),
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".to_owned()],
        waypoint: gateway(
            Some(api::gateway_address::Destination::Address(network_address(&[1, 2, 3, 4], Some(7)))),
            15008,
        ),
        load_balancing: Some(api::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 2,
        canonical: true,
        visibility: 1,
        weighted_waypoints: vec![api::WeightedWaypoint {
            destination: gateway(
                Some(api::gateway_address::Destination::Address(network_address(&[1, 2, 3, 5], None))),
                15008,
            ),
            weight: 3,
        }],
        ..web()
    };
    let service = service(raw).unwrap();
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["n/10.0.0.1", "n/10.0.0.2", "n/fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"]);
    assert_eq!(service.cidr_vips[0].cidr.to_string(), "10.9.0.0/16");
    assert_eq!(service.ports.target(443), Some(0));
    let balancer = service.load_balancer.as_ref().unwrap();
    let scopes = [LocalityScope::Network, LocalityScope::Region, LocalityScope::Zone];
    assert_eq!(balancer.routing_preferences, scopes);
    assert_eq!((balancer.mode, balancer.health_policy), (LoadBalancerMode::Failover, HealthPolicy::AllowAll));
    assert_eq!((service.ip_families, service.visibility), (Some(IpFamilies::IPv6), Visibility::Namespace));
    assert_eq!(service.weighted_waypoints[0].weight, 3);
    assert!(service.waypoint.is_some() && service.canonical);
}

#[test]
fn a_service_that_cannot_be_used_is_refused_with_the_reason() {
    let balancing = |routing_preference: Vec<i32>, mode, health_policy| {
        let load_balancing = Some(api::LoadBalancing { routing_preference, mode, health_policy });
        service(api::Service { load_balancing, ..web() }).unwrap_err()
    };
    let addressed = |address| service(api::Service { addresses: vec![address], ..web() }).unwrap_err();
    for (reason, found) in [
        ("s: hostname is empty", service(api::Service { hostname: String::new(), ..web() }).unwrap_err()),
        ("s: namespace is empty", service(api::Service { namespace: String::new(), ..web() }).unwrap_err()),
        // Removed by `namespace/hostname`, it would be looked for in another namespace, and stay.
        (
            "s: namespace: a slash in `a/b`",
            service(api::Service { namespace: "a/b".into(), ..web() }).unwrap_err(),
        ),
        ("s: load_balancing.routing_preference: unknown value 0", balancing(vec![0], 0, 0)),
        ("s: load_balancing.routing_preference: unknown value 7", balancing(vec![1, 7], 0, 0)),
        ("s: load_balancing.mode: unknown value 4", balancing(Vec::new(), 4, 0)),
        ("s: load_balancing.health_policy: unknown value 2", balancing(Vec::new(), 0, 2)),
        ("s: addresses: 10.0.0.1/33 is no range", addressed(network_address(&[10, 0, 0, 1], Some(33)))),
        ("s: addresses: 10.0.0.1/300 is no range", addressed(network_address(&[10, 0, 0, 1], Some(300)))),
        (
            "s: addresses: an address of 5 bytes, expected 4 or 16",
            addressed(network_address(&[1, 2, 3, 4, 5], None)),
        ),
        ("s: ip_families: unknown value 4", service(api::Service { ip_families: 4, ..web() }).unwrap_err()),
        (
            "s: weighted_waypoints says nothing",
            service(api::Service {
                weighted_waypoints: vec![api::WeightedWaypoint { destination: None, weight: 1 }],
                ..web()
            })
            .unwrap_err(),
        ),
    ] {
        assert_eq!(found, reason);
    }
    let unknown = service(api::Service { visibility: 9, ..web() }).unwrap();
    assert_eq!(unknown.visibility, Visibility::Public);
}

fn authorization() -> Authorization {
    Authorization { name: "p".into(), namespace: "ns".into(), scope: 2, ..Default::default() }
}

fn with_match(raw: policy_api::Match) -> Authorization {
    let clauses = vec![policy_api::Clause { matches: vec![raw] }];
    Authorization { rules: vec![policy_api::Rule { clauses }], ..authorization() }
}

fn range(address: &'static [u8], length: u32) -> policy_api::Address {
    policy_api::Address { address: Bytes::from_static(address), length }
}

fn text(match_type: policy_api::string_match::MatchType) -> policy_api::StringMatch {
    policy_api::StringMatch { match_type: Some(match_type) }
}

#[test]
fn every_field_of_a_policy_has_its_place() {
    use policy_api::string_match::MatchType;
    let exact = |word: &str| vec![text(MatchType::Exact(word.to_owned()))];
    let account = |name: &str| policy_api::ServiceAccountMatch {
        namespace: name.to_owned(),
        service_account: "sa".to_owned(),
    };
    let raw = Authorization {
        action: 1,
        dry_run: true,
        ..with_match(policy_api::Match {
            namespaces: exact("1"),
            not_namespaces: vec![text(MatchType::Prefix("2".to_owned()))],
            principals: vec![text(MatchType::Suffix("3".to_owned()))],
            not_principals: vec![text(MatchType::Presence(()))],
            source_ips: vec![range(&[5, 0, 0, 0], 8)],
            not_source_ips: vec![range(&[6, 0, 0, 1], 32)],
            destination_ips: vec![range(&[0xfd; 16], 128)],
            not_destination_ips: vec![range(&[8, 0, 0, 0], 0)],
            destination_ports: vec![9],
            not_destination_ports: vec![10],
            service_accounts: vec![account("11")],
            not_service_accounts: vec![account("12")],
        })
    };
    let policy = policy(&raw).unwrap();
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::WorkloadSelector, Action::Deny, true));
    let found = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(found.namespaces, [StringMatch::Exact("1".into())]);
    assert_eq!(found.not_namespaces, [StringMatch::Prefix("2".into())]);
    assert_eq!(found.principals, [StringMatch::Suffix("3".into())]);
    assert_eq!(found.not_principals, [StringMatch::Presence()]);
    let ranges =
        [&found.source_ips, &found.not_source_ips, &found.destination_ips, &found.not_destination_ips];
    let ranges: Vec<String> = ranges.iter().map(|ranges| ranges[0].to_string()).collect();
    assert_eq!(
        ranges,
        ["5.0.0.0/8", "6.0.0.1/32", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd/128", "8.0.0.0/0"]
    );
    assert_eq!((&*found.destination_ports, &*found.not_destination_ports), (&[9][..], &[10][..]));
    assert_eq!(*found.service_accounts[0].namespace, *"11");
    assert_eq!(*found.not_service_accounts[0].namespace, *"12");
}

#[test]
fn a_policy_with_a_part_that_cannot_be_read_is_refused_whole() {
    let refused = |raw: policy_api::Match| policy(&with_match(raw)).unwrap_err();
    for (reason, found) in [
        ("ns/p: scope: unknown value 3", policy(&Authorization { scope: 3, ..authorization() }).unwrap_err()),
        (
            "ns/p: action: unknown value 2",
            policy(&Authorization { action: 2, ..authorization() }).unwrap_err(),
        ),
        (
            "ns/p: source_ips: an address of 1 bytes, expected 4 or 16",
            refused(policy_api::Match { source_ips: vec![range(&[1], 8)], ..Default::default() }),
        ),
        (
            "ns/p: not_destination_ips: 1.0.0.0/33 is no range",
            refused(policy_api::Match {
                not_destination_ips: vec![range(&[1, 0, 0, 0], 33)],
                ..Default::default()
            }),
        ),
        (
            "ns/p: destination_ports: 65616 is no port",
            refused(policy_api::Match { destination_ports: vec![65_616], ..Default::default() }),
        ),
        (
            "ns/p: principals says nothing",
            refused(policy_api::Match {
                principals: vec![policy_api::StringMatch { match_type: None }],
                ..Default::default()
            }),
        ),
    ] {
        assert_eq!(found, reason);
    }
}

#[test]
fn the_stand_in_of_a_policy_reaches_as_far_as_the_policy_is_known_to() {
    let stand_in = |name: &str, value: Vec<u8>| {
        let rejected = Decoder::default().decode(Kind::Authorization, 0, envelope(name, value)).unwrap_err();
        rejected.stand_in.map(|change| {
            let Change::Policy(_, policy) = change else { panic!("{change:?}") };
            (policy.scope, policy.action, policy.rules.len())
        })
    };
    let bad = |scope: i32| Authorization { scope, action: 9, ..authorization() };
    let denies = |scope| Some((scope, Action::Deny, 1));
    assert_eq!(stand_in("ns/p", bad(0).encode_to_vec()), denies(Scope::Global));
    assert_eq!(stand_in("ns/p", bad(2).encode_to_vec()), denies(Scope::WorkloadSelector));
    assert_eq!(stand_in("ns/p", bad(9).encode_to_vec()), denies(Scope::Namespace));
    assert_eq!(stand_in("ns/p", vec![0xff]), denies(Scope::Namespace));
    let tried_out = Authorization { dry_run: true, ..bad(1) };
    assert_eq!(stand_in("ns/p", tried_out.encode_to_vec()), None);
    assert_eq!(stand_in("nameless", vec![0xff]), None);
}

#[test]
fn names_and_ports_that_many_share_are_kept_once() {
    let mut decoder = Decoder::default();
    let mut read = |name: &str| {
        let list = api::PortList { ports: ports(&[(80, 8080)]) };
        let services = HashMap::from([("ns/web".to_owned(), list)]);
        let raw = api::Workload { uid: name.to_owned(), services, ..pod() };
        let address = Address { r#type: Some(address::Type::Workload(raw)) };
        let decoded = decoder.decode(Kind::Address, 0, envelope(name, address.encode_to_vec())).unwrap();
        let Change::Workload(workload) = decoded.change else { panic!("{:?}", decoded.change) };
        assert!(Arc::ptr_eq(&decoded.name, &workload.uid), "the name of a workload is its uid");
        workload
    };
    let (a, b) = (read("a"), read("b"));
    assert!(Arc::ptr_eq(&a.namespace, &b.namespace) && Arc::ptr_eq(&a.trust_domain, &b.trust_domain));
    assert!(a.services[0].ports.is_shared());
}

/// The numbers of the contract, written down a second time: a field that is misnumbered in the `.proto` files would
/// agree with itself.
#[test]
fn the_wire_format_is_the_contracts() {
    // Address{workload(1): {name(1): "a", addresses(3): 10.0.0.1, tunnel_protocol(5): HBONE, node(9): "n", uid(20): "u",
    // services(22): {"s/h": {ports(1): {service_port(1): 80, target_port(2): 81}}}, capacity(27): {1: 5}}}
    let entry = [b"\x0a\x03s/h\x12\x06\x0a\x04\x08\x50\x10\x51".as_slice()].concat();
    let fields = [
        b"\x0a\x01a".as_slice(),
        b"\x1a\x04\x0a\x00\x00\x01",
        b"\x28\x01",
        b"\x4a\x01n",
        b"\xa2\x01\x01u",
        &[b"\xb2\x01".as_slice(), &[u8::try_from(entry.len()).unwrap()], &entry].concat(),
        b"\xda\x01\x02\x08\x05",
    ]
    .concat();
    let address = [&[0x0a, u8::try_from(fields.len()).unwrap()], &*fields].concat();
    let Change::Workload(workload) = decode(Kind::Address, "u", address).unwrap() else {
        panic!("no workload")
    };
    assert_eq!((&*workload.name, &*workload.uid, &*workload.node), ("a", "u", "n"));
    assert_eq!((workload.protocol, workload.capacity), (Protocol::Hbone, 5));
    assert_eq!(workload.workload_ips, [IpAddr::from([10, 0, 0, 1])]);
    assert_eq!(workload.services[0].service.to_string(), "s/h");
    assert_eq!(workload.services[0].ports.target(80), Some(81));
    // DeltaDiscoveryResponse{resources(2): Resource{version(1): "v", resource(2): Any{value(2): …}, name(3): "n"},
    // type_url(4), nonce(5), removed_resources(6)}
    let resource = b"\x0a\x01v\x12\x02\x12\x00\x1a\x01n";
    let response =
        [&[0x12, u8::try_from(resource.len()).unwrap()][..], resource, b"\x22\x01t\x2a\x01x\x32\x01r"]
            .concat();
    let response = crate::xds::proto::discovery::DeltaDiscoveryResponse::decode(&*response).unwrap();
    assert_eq!((&*response.type_url, &*response.nonce, &*response.removed_resources[0]), ("t", "x", "r"));
    let resource = Resource::decode(response.resources[0].clone()).unwrap();
    assert_eq!((&*resource.version, &*resource.name), ("v", "n"));
}

proptest! {
    /// Whatever the bytes are, a resource is taken or refused.
    #[test]
    fn no_bytes_can_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in Kind::ALL {
            drop(Decoder::default().decode(kind, 0, bytes.clone().into()));
            drop(decode(kind, "ns/x", bytes.clone()));
        }
    }
}
