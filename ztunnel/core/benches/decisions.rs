// SPDX-License-Identifier: Apache-2.0
//! What one decision costs: time with `cargo bench -p ztunnel-core`, instructions with `cargo xtask count`, which runs
//! this program under valgrind as `decisions --count NAME TIMES`.

#![expect(clippy::print_stdout, reason = "the result is printed")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Instant, UNIX_EPOCH};

use http::HeaderMap;
use ztunnel_core::addr::OriginalDst;
use ztunnel_core::authz;
use ztunnel_core::hbone::{Baggage, Forwarded, TraceParent, baggage, connect};
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::{Mesh, Workload, local};
use ztunnel_core::report::{AccessEntry, Facts, Labels, Reporter, Security};
use ztunnel_core::route::{self, Outbound, Routing};

/// Workloads of the mesh; three are the endpoints of the service that is asked for.
const WORKLOADS: usize = 1000;
/// Policies that the destination has to pass.
const POLICIES: usize = 10;
/// Policies and rules of each that a destination of another namespace has to pass.
const MANY: (usize, usize) = (1000, 10);

#[path = "decisions/large.rs"]
mod large;

struct World {
    /// Built for those alone who ask for it.
    large: std::cell::OnceCell<large::Large>,
    mesh: Mesh,
    client: std::sync::Arc<Workload>,
    server: std::sync::Arc<Workload>,
    identity: Identity,
    headers: HeaderMap,
    /// A mesh with [`MANY`] policies for `guarded`, none of which means anybody.
    strict: Mesh,
    guarded: std::sync::Arc<Workload>,
}

/// Policies as people write them: by identity, service account, address and namespace, with a port.
fn many_policies() -> Mesh {
    let mut yaml = String::from(
        "workloads:\n- {uid: guarded, name: guarded, namespace: bank, workloadIps: [10.2.0.1], services: {}}\npolicies:\n",
    );
    for policy in 0..MANY.0 {
        let rules: Vec<String> = (0..MANY.1)
            .map(|rule| match rule % 4 {
                0 => format!("[[{{principals: [{{Exact: td/ns/bank/sa/p{policy}r{rule}}}]}}], [{{destinationPorts: [8080]}}]]"),
                1 => format!("[[{{serviceAccounts: [{{namespace: bank, serviceAccount: p{policy}r{rule}}}]}}]]"),
                2 => format!("[[{{sourceIps: [11.{}.{}.0/24], notDestinationPorts: [9090]}}]]", policy / 250, policy % 250),
                _ => format!("[[{{namespaces: [{{Exact: team-{policy}}}, {{Prefix: guest-{policy}-}}], destinationPorts: [8080]}}]]"),
            })
            .collect();
        // Writing to a string cannot fail.
        writeln!(
            yaml,
            "- {{name: p{policy}, namespace: bank, scope: Namespace, action: Deny, dryRun: false, rules: [{}]}}",
            rules.join(", ")
        )
        .ok();
    }
    local::parse(&yaml).expect("this text is a mesh")
}

impl World {
    fn new() -> Self {
        let mut yaml = String::from("workloads:\n");
        for number in 0..WORKLOADS {
            let (high, low) = (number / 250, number % 250 + 1);
            let services = if number % 400 == 1 { "{shop/web.shop.svc: {80: 8080}}" } else { "{}" };
            // Writing to a string cannot fail.
            writeln!(
                yaml,
                "- {{uid: w{number}, name: w{number}, namespace: shop, serviceAccount: sa{}, trustDomain: td, \
                 workloadIps: [10.1.{high}.{low}], protocol: HBONE, canonicalName: app, services: {services}, \
                 authorizationPolicies: [shop/own]}}",
                number % 20
            )
            .ok();
        }
        yaml += "services:\n- {name: web, namespace: shop, hostname: web.shop.svc, vips: [/10.96.0.1], ports: {80: 8080}}\n";
        yaml += "policies:\n";
        for number in 0..POLICIES {
            writeln!(
                yaml,
                "- {{name: p{number}, namespace: shop, scope: Namespace, action: Allow, dryRun: false, rules: \
                 [[[{{principals: [{{Exact: td/ns/shop/sa/nobody{number}}}]}}]]]}}"
            )
            .ok();
        }
        yaml += "- {name: last, namespace: shop, scope: Namespace, action: Allow, dryRun: false, rules: \
                 [[[{principals: [{Exact: td/ns/shop/sa/sa0}]}]]]}\n";
        let mesh = local::parse(&yaml).expect("this text is a mesh");
        let get = |uid: &str| std::sync::Arc::clone(mesh.workload_by_uid(uid).expect("one of those above"));
        let (client, server) = (get("w0"), get("w1"));
        let identity = client.identity();
        let request = connect::request(
            &"10.1.0.2:8080".parse().expect("an authority"),
            baggage::header(&Baggage::of(&client)),
            &Forwarded { source: Some("10.1.0.1:40000".parse().expect("an address")), host: None },
            &TraceParent::new(&mut || 7),
        );
        let headers = request.expect("a valid request").headers().clone();
        let strict = many_policies();
        let guarded = std::sync::Arc::clone(strict.workload_by_uid("guarded").expect("one of those above"));
        Self { large: std::cell::OnceCell::new(), mesh, client, server, identity, headers, strict, guarded }
    }

    fn large(&self) -> &large::Large {
        self.large.get_or_init(large::Large::new)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: Some(&self.client),
            source_principal: Some(&self.identity),
            destination: Some(&self.server),
            security: Security::MutualTls,
            ..Facts::new(Reporter::Destination)
        }
    }
}

type Part = (&'static str, fn(&World));

const PARTS: &[Part] = &[
    ("route to a service", |world| {
        let original_dst = OriginalDst("10.96.0.1:80".parse().expect("an address"));
        let connection = Outbound {
            source: &world.client,
            source_ip: "10.1.0.1".parse().expect("an address"),
            network: "",
            original_dst,
            known: route::Known::default(),
        };
        let routing = route::outbound::outbound(&world.mesh, &connection, &mut || 3);
        assert!(matches!(black_box(routing), Routing::Go(_)));
    }),
    ("large mesh: a workload", |world| world.large().route("10.1.0.2:8080")),
    ("large mesh: a service", |world| world.large().route("10.96.0.1:80")),
    ("large mesh: 1000 endpoints", |world| world.large().route("10.97.0.1:80")),
    ("large mesh: 1000 by locality", |world| world.large().route("10.97.0.2:80")),
    ("large mesh: 1000, first time", |world| world.large().route_from_elsewhere("10.97.0.2:80")),
    ("large mesh: a waypoint", |world| world.large().route("10.97.0.3:80")),
    ("large mesh: another network", |world| world.large().route("10.97.0.4:80")),
    ("large mesh: a range", |world| world.large().route("10.98.1.1:80")),
    ("large mesh: nobody", |world| world.large().route("192.0.2.1:80")),
    ("authorize by ten policies", |world| {
        let facts = authz::Facts {
            destination: &world.server,
            source_ip: "10.1.0.1".parse().expect("an address"),
            dst: "10.1.0.2:8080".parse().expect("an address"),
            identity: Some(&world.identity),
        };
        assert!(black_box(authz::evaluate(&world.mesh, &facts, authz::Unknown::Skip)).allowed);
    }),
    ("pass ten thousand rules", |world| {
        let facts = authz::Facts {
            destination: &world.guarded,
            source_ip: "10.1.0.1".parse().expect("an address"),
            dst: "10.2.0.1:8080".parse().expect("an address"),
            identity: Some(&world.identity),
        };
        assert!(black_box(authz::evaluate(&world.strict, &facts, authz::Unknown::Skip)).allowed);
    }),
    ("read a CONNECT", |world| {
        let request = connect::parse_request("CONNECT", Some("10.1.0.2:8080"), &world.headers);
        assert!(black_box(request).is_ok());
    }),
    ("labels of a connection", |world| {
        black_box(Labels::new(&world.facts()));
    }),
    ("line of the access log", |world| {
        let (source, destination) =
            ("10.1.0.1:40000".parse().expect("an address"), "10.1.0.2:15008".parse().expect("an address"));
        let entry = AccessEntry::opened(&world.facts(), source, destination);
        black_box(entry.text(UNIX_EPOCH));
    }),
];

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().collect();
    let world = World::new();
    if let Some(at) = args.iter().position(|arg| arg == "--count") {
        let named = args.get(at + 1).and_then(|name| PARTS.iter().find(|(known, _)| known == name));
        let times = args.get(at + 2).and_then(|times| times.parse::<u32>().ok());
        if let (Some((_, part)), Some(times)) = (named, times) {
            (0..times).for_each(|_| part(&world));
            return Ok(());
        }
        return Err(format!("--count wants the name of a part, and how often: {args:?}"));
    }
    for (name, part) in PARTS {
        let rounds: Vec<f64> = (0..15)
            .map(|_| {
                let started = Instant::now();
                (0..2000).for_each(|_| part(&world));
                started.elapsed().as_secs_f64() * 1e9 / 2000.0
            })
            .collect();
        let (mut sorted, middle) = (rounds, 7);
        sorted.sort_by(f64::total_cmp);
        println!("{name:<28}{:>8.0} ns (fastest {:.0})", sorted[middle], sorted[0]);
    }
    Ok(())
}
