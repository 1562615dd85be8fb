// SPDX-License-Identifier: Apache-2.0
//! What pods ask and what resolvers answer.
//!
//! The input is packets: the first is a pod's message, the others are responses to it.

use std::net::IpAddr;
use std::sync::OnceLock;

use ztunnel_core::dns::wire::Header;
use ztunnel_core::dns::{
    Answer, Client, Query, Rcode, Settings, answer, kind, respond, search_domains, wire,
};
use ztunnel_core::mesh::{Mesh, Workload, local};

use crate::packets::{join, split};

const MESH: &str = "\
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.0.0.1, '/fd00::1'], ports: {}}
- {name: any, namespace: shop, hostname: '*.example.com', vips: [/10.0.0.2], ports: {}}
";

struct World {
    mesh: Mesh,
    workload: Workload,
    search: Vec<String>,
    settings: Settings,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World {
        mesh: local::parse(MESH).expect("a mesh"),
        workload: Workload { namespace: "shop".into(), ..Workload::default() },
        search: search_domains("shop", "cluster.local"),
        settings: Settings { domain: "cluster.local".into(), preferred_namespace: None, ipv6: true },
    })
}

pub(super) fn run(data: &[u8]) {
    let mut packets = split(data).map(|(_, bytes)| bytes);
    let Some(message) = packets.next() else { return };
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(why) => {
            if let Some(response) = respond::unanswerable(message, why) {
                assert!(Header::parse(&response).is_some_and(Header::is_response));
                assert!(response.len() <= 64, "more is answered than was asked");
            }
            return;
        }
    };
    assert!(!query.is_answered_by(query.header.id, message), "a question is no answer");
    if query.is_question() {
        let failed = respond::error(&query, Rcode::ServFail);
        assert!(query.is_answered_by(query.header.id, &failed));
        answered(&query);
    }
    for response in packets {
        resolved(&query, response);
    }
}

/// What we answer ourselves can be read, fits, and belongs to the question.
fn answered(query: &Query<'_>) {
    let world = world();
    let Some(question) = query.question else { return };
    let client = Client { workload: &world.workload, search: &world.search };
    let limit = query.udp_limit();
    let response = match answer(&world.mesh, &question, &client, &world.settings, &mut || 1) {
        Answer::Forward => return,
        Answer::NoData(_) => respond::no_data(query, "cluster.local", limit),
        Answer::Found(records) => respond::found(query, &records, limit),
    };
    assert!(response.len() <= limit);
    assert!(query.is_answered_by(query.header.id, &response));
    let found = wire::addresses(&response, question.kind).expect("our own words");
    assert!(found.iter().all(|ip| IpAddr::is_ipv4(ip) == (question.kind == kind::A)));
}

fn resolved(query: &Query<'_>, response: &[u8]) {
    let is_ours = query.is_answered_by(query.header.id, response);
    for kind in [kind::A, kind::AAAA] {
        // A record of four bytes takes sixteen on the wire.
        let most = response.len() / 16;
        assert!(!wire::addresses(response, kind).is_ok_and(|found| found.len() > most));
    }
    if is_ours {
        let cut = respond::cut(query, response);
        let header = Header::parse(&cut).expect("a header");
        assert!(header.is_truncated() && header.id == query.header.id);
        assert!(cut.len() <= query.message.len());
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let ask = |name: &str, kind| wire::question(name, kind, 7).expect("a name");
    let answer_to = |name: &str| {
        let message = ask(name, 1);
        let query = Query::parse(&message).expect("a query");
        let records = ztunnel_core::dns::Records {
            canonical: Some("web.shop.svc.cluster.local".into()),
            addresses: vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])],
        };
        respond::found(&query, &records, 512)
    };
    let mut edns = ask("web.shop", 28);
    edns[11] = 1;
    edns.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
    let name = "web.shop.svc.cluster.local";
    vec![
        join(&[(0, ask(name, 1)), (0, answer_to(name))]),
        join(&[(0, ask("a.example.com.shop.svc.cluster.local", 1)), (0, answer_to("a.example.com"))]),
        join(&[(0, edns)]),
        join(&[(0, ask("google.com", 252))]),
    ]
}
