// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy in whole nodes: real sockets, real resolvers' clients, a resolver that misbehaves.
//!
//! * [`answers`]: the contract's table, over UDP and TCP, with the fast path off, half and full.
//! * [`programs`]: dig, getent, glibc, musl, nsupdate. [`forwarding`]: what the mesh does not know.
//! * [`hostile`]: what must not hurt anybody. [`modes`]: a dedicated proxy, DNS alone, another ztunnel.

#![expect(clippy::print_stderr, reason = "figures beside the result")]

mod answers;
mod ask;
mod forwarding;
mod hostile;
mod modes;
mod programs;

use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::{Mesh, PodSpec};

/// A service with a virtual address and one endpoint.
const SERVER: &str = "server.ns1.svc.cluster.local";

/// Services of every kind.
const SERVICES: &str = "
- {name: productpage, namespace: ns1, hostname: productpage.ns1.svc.cluster.local, vips: [/9.9.9.9], ports: {80: 80}}
- {name: example, namespace: ns2, hostname: example.ns2.svc.cluster.local, vips: [/10.10.10.10], ports: {}}
- {name: nslocal, namespace: ns2, hostname: nslocal.ns2.svc.cluster.local, vips: [/10.10.10.11], ports: {},
   visibility: Namespace}
- {name: nslocalsame, namespace: ns1, hostname: nslocalsame.ns1.svc.cluster.local, vips: [/10.10.10.12], ports: {},
   visibility: Namespace}
- {name: details, namespace: ns2, hostname: details.ns2.svc.cluster.remote, ports: {},
   vips: [/11.11.11.11, /12.12.12.12, /13.13.13.13, /14.14.14.14]}
- {name: google, namespace: ns1, hostname: www.google.com, vips: [/1.1.1.1], ports: {}}
- {name: dual, namespace: ns1, hostname: dual.localhost, vips: [/2.2.2.2, '/2001:db8::2'], ports: {}}
- {name: v4, namespace: ns1, hostname: v4.localhost, vips: [/2.2.2.2], ports: {}}
- {name: v6, namespace: ns1, hostname: v6.localhost, vips: ['/2001:db8::2'], ports: {}}
- {name: wild, namespace: ns1, hostname: '*.wildcard', vips: [/3.3.3.3], ports: {}}
- {name: wilder, namespace: ns1, hostname: '*.b.wildcard', vips: [/3.3.3.4], ports: {}}
- {name: company, namespace: ns1, hostname: '*.svc.mesh.company.net', vips: [/5.5.5.5], ports: {}}
- {name: elsewhere, namespace: ns1, hostname: elsewhere.example, vips: [net2/6.6.6.6], ports: {}}
- {name: both, namespace: ns1, hostname: both.example, vips: [/7.7.7.7, net2/7.7.7.8], ports: {}}
- {name: headless, namespace: ns1, hostname: headless.ns1.svc.cluster.local, vips: [], ports: {},
   endpoints: {cluster1//Pod/ns1/client: {workloadUid: cluster1//Pod/ns1/client, port: {}, status: Healthy},
               cluster1//Pod/ns1/server: {workloadUid: cluster1//Pod/ns1/server, port: {}, status: Healthy}}}
- {name: headless6, namespace: ns1, hostname: headless6.ns1.svc.cluster.local, vips: [], ports: {}, ipFamilies: IPv6,
   endpoints: {cluster1//Pod/ns1/client: {workloadUid: cluster1//Pod/ns1/client, port: {}, status: Healthy}}}
- {name: bare, namespace: ns1, hostname: bare.example, vips: [], ports: {},
   endpoints: {cluster1//Pod/ns1/client: {workloadUid: cluster1//Pod/ns1/client, port: {}, status: Healthy}}}
- {name: lone, namespace: ns1, hostname: lone.example, vips: [], ports: {}}
- {name: p, namespace: ns9, hostname: preferred.io, vips: [/8.0.0.1], ports: {}}
- {name: p, namespace: preferred-ns, hostname: preferred.io, vips: [/8.0.0.2], ports: {}}
- {name: q, namespace: preferred-ns, hostname: own.io, vips: [/8.0.0.3], ports: {}}
- {name: q, namespace: ns1, hostname: own.io, vips: [/8.0.0.4], ports: {}}
- {name: c, namespace: ns9, hostname: canonical.io, vips: [/8.0.0.5], ports: {}}
- {name: c, namespace: ns8, hostname: canonical.io, vips: [/8.0.0.6], ports: {}, canonical: true}
- {name: o, namespace: ns8, hostname: owned.io, vips: [/8.0.0.7], ports: {}, canonical: true}
- {name: o, namespace: ns1, hostname: owned.io, vips: [/8.0.0.8], ports: {}}
";

/// A client and its neighbor on one node, a server and two resolvers on another.
fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").namespace("ns1").on("n1"))
        .pod(PodSpec::mesh("neighbor").namespace("ns1").on("n1"))
        .pod(PodSpec::mesh("server").namespace("ns1").on("n2").service(SERVER, 80, 8080))
        .pod(PodSpec::unknown("resolver").on("n2"))
        .pod(PodSpec::unknown("second").on("n2"))
        .services(SERVICES)
        .env("PREFERED_SERVICE_NAMESPACE", "preferred-ns")
        .env("RUST_LOG", "info,dns=debug")
        .dns(&["resolver"])
}
