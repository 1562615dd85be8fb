// SPDX-License-Identifier: Apache-2.0
//! A large mesh: 100,000 workloads, 5,000 services, 10,000 policies; and what decisions cost in it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ztunnel_core::Name;
use ztunnel_core::addr::{NetworkAddr, OriginalDst};
use ztunnel_core::mesh::{
    Action, CidrVip, GatewayAddress, GatewayDestination, HealthPolicy, LoadBalancer, LoadBalancerMode,
    Locality, LocalityScope, Membership, Mesh, Policy, Protocol, Scope, Service, ServiceKey, Workload,
};
use ztunnel_core::route::{self, Known, Outbound, Routing};

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 5_000;
const POLICIES: u32 = 10_000;
const RANGES: u8 = 100;
/// Endpoints of each of the large services.
const ENDPOINTS: u32 = 1_000;

pub(crate) struct Large {
    mesh: Mesh,
    client: Arc<Workload>,
    elsewhere: Arc<Workload>,
}

fn address(base: u32, number: u32) -> IpAddr {
    Ipv4Addr::from_bits(base + number).into()
}

fn key(hostname: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: hostname.into() }
}

fn gateway(hostname: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(key(hostname)), hbone_mtls_port: 15008 }
}

fn service(hostname: &str, vip: IpAddr, port: u16) -> Service {
    Service {
        name: hostname.into(),
        namespace: "shop".into(),
        hostname: hostname.into(),
        vips: vec![NetworkAddr { network: "".into(), ip: vip }],
        ports: [(port, 8080)].into_iter().collect(),
        ..Service::default()
    }
}

fn workload(number: u32, services: &[&str]) -> Workload {
    let member =
        |hostname: &&str| Membership { service: key(hostname), ports: [(80, 8080)].into_iter().collect() };
    Workload {
        uid: format!("cluster1//Pod/shop/workload-with-a-usual-name-{number}").into(),
        name: format!("workload-{number}").into(),
        namespace: "shop".into(),
        service_account: format!("sa{}", number % 20).into(),
        trust_domain: "td".into(),
        node: format!("n{}", number % 1000).into(),
        workload_ips: vec![address(0x0a01_0000, number + 1)],
        protocol: Protocol::Hbone,
        locality: Locality {
            region: "r".into(),
            zone: format!("z{}", number % 3).into(),
            subzone: "".into(),
        },
        services: services.iter().map(member).collect(),
        ..Workload::default()
    }
}

impl Large {
    pub(crate) fn new() -> Self {
        let mut mesh = Mesh::default();
        mesh.reserve(100_000);
        let (vips, large) = (0x0a60_0000, 0x0a61_0000);
        for number in 0..SERVICES {
            let mut service = service(&format!("service-{number}.shop.svc"), address(vips, number + 1), 80);
            if number < u32::from(RANGES) {
                let cidr = format!("10.98.{number}.0/24").parse().expect("a range");
                service.cidr_vips.push(CidrVip { network: "".into(), cidr });
            }
            mesh.insert_service(service);
        }
        mesh.insert_service(service("many", address(large, 1), 80));
        mesh.insert_service(Service {
            load_balancer: Some(LoadBalancer {
                routing_preferences: vec![LocalityScope::Network, LocalityScope::Region, LocalityScope::Zone],
                mode: LoadBalancerMode::Failover,
                health_policy: HealthPolicy::OnlyHealthy,
            }),
            ..service("local", address(large, 2), 80)
        });
        let guarded = Service {
            waypoint: Some(Box::new(gateway("waypoint"))),
            ..service("guarded", address(large, 3), 80)
        };
        mesh.insert_service(guarded);
        mesh.insert_service(service("abroad", address(large, 4), 80));
        mesh.insert_service(service("waypoint", address(large, 5), 15008));
        mesh.insert_service(service("gateway", address(large, 6), 15008));
        for number in 0..WORKLOADS {
            let own = format!("service-{}.shop.svc", number % SERVICES);
            let services = if number < ENDPOINTS { vec![&*own, "many", "local"] } else { vec![&*own] };
            mesh.insert_workload(Arc::new(workload(number, &services)));
        }
        let named = |number: u32, uid: &str, network: &str, services: &[&str]| Workload {
            uid: uid.into(),
            network: network.into(),
            ..workload(number, services)
        };
        mesh.insert_workload(Arc::new(named(200_000, "waypoint", "", &["waypoint"])));
        mesh.insert_workload(Arc::new(named(200_001, "gateway", "net2", &["gateway"])));
        let far = named(200_002, "far", "net2", &["abroad"]);
        mesh.insert_workload(Arc::new(Workload {
            network_gateway: Some(Box::new(gateway("gateway"))),
            ..far
        }));
        for number in 0..POLICIES {
            let scope = if number % 100 == 0 { Scope::Namespace } else { Scope::WorkloadSelector };
            mesh.insert_policy(Arc::new(Policy {
                name: format!("policy-{number}").into(),
                namespace: format!("team-{}", number % 500).into(),
                scope,
                action: Action::Allow,
                rules: Vec::new(),
                dry_run: false,
            }));
        }
        let get = |number: u32| {
            let uid: Name = workload(number, &[]).uid;
            Arc::clone(mesh.workload_by_uid(&uid).expect("one of those above"))
        };
        let (client, elsewhere) = (get(60_000), get(60_001));
        Self { mesh, client, elsewhere }
    }

    /// A decision for the pod whose place the tables of candidates are for.
    pub(crate) fn route(&self, target: &str) {
        self.decide(&self.client, target);
    }

    /// A decision for a pod of another place, for which all endpoints are looked through, as they are once after a change.
    pub(crate) fn route_from_elsewhere(&self, target: &str) {
        self.decide(&self.client, target);
        self.decide(&self.elsewhere, target);
    }

    fn decide(&self, source: &Workload, target: &str) {
        let connection = Outbound {
            source,
            source_ip: source.workload_ips[0],
            network: "",
            original_dst: OriginalDst(target.parse().expect("an address")),
            known: Known::default(),
        };
        let mut drawn = 0x9e37_79b9_7f4a_7c15_u64;
        let routing = route::outbound::outbound(&self.mesh, &connection, &mut || {
            drawn = drawn.rotate_left(7).wrapping_mul(5);
            drawn
        });
        assert!(matches!(black_box(routing), Routing::Go(_)), "{target}");
    }
}
