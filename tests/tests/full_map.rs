// SPDX-License-Identifier: Apache-2.0
//! More connections than the kernel's tables hold: the rest goes by TCP and says so.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use ztunnel_tests::modes::in_effect;
use ztunnel_tests::traffic::{Conn, Pattern, Server};
use ztunnel_tests::{Mesh, Mode, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);
/// Each crosses two hops of the node.
const CONNECTIONS: usize = 200;

fn ask(conn: &Conn, round: u64) {
    let mut bytes = vec![0; 2000];
    Pattern(round).fill(0, &mut bytes);
    assert_eq!(conn.ask(&bytes).unwrap(), bytes, "round {round}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connections_beyond_a_full_map_go_by_tcp_until_there_is_room_again() {
    let mesh = Mesh::builder()
        .mode(Mode::Full)
        .env("EBPF_MAX_CONNECTIONS", "64")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .start()
        .unwrap();
    in_effect(&mesh, Mode::Full).unwrap();
    let (node, near) = (mesh.node("n1"), mesh.pod("near"));
    let server = Server::echo(near, 8080).unwrap();
    let dial = || mesh.pod("client").dial(near.addr(8080)).unwrap();
    let conns: Vec<Conn> = (0..CONNECTIONS).map(|_| dial()).collect();
    for round in 0..5 {
        for (place, conn) in (0..).zip(&conns) {
            ask(conn, round * 1000 + place);
        }
    }
    let paired = node.fastpath_counter("paired").unwrap();
    assert!((32..=64).contains(&paired), "{paired} pairs in a table of 64");
    let by_tcp = 2 * CONNECTIONS as u64 - paired;
    let refused = node.fastpath_counter("not_paired/map_full").unwrap();
    // ztunnel's own connection to the other pod may have found the map full as well.
    assert!((by_tcp..=by_tcp + 2).contains(&refused), "{}", node.status().unwrap());
    drop(conns);
    let lines = || node.access_log().into_iter().filter(|entry| entry.message == "connection complete");
    wait::until("every connection to be logged", SOON, || lines().count() == 2 * CONNECTIONS).unwrap();
    let said: Vec<_> = lines().filter(|entry| entry.get("path") == "tcp").collect();
    assert_eq!(said.len() as u64, by_tcp);
    for entry in said {
        assert_eq!(entry.get("path.reason"), "map_full", "{entry}");
    }
    // There is room again.
    let before = node.fastpath_counter("redirected_messages").unwrap();
    let fresh = dial();
    for round in 0..50 {
        ask(&fresh, round);
    }
    let redirected = node.fastpath_counter("redirected_messages").unwrap() - before;
    assert!(redirected >= 190, "{redirected} of 200 messages took the fast path");
    drop((fresh, server));
    mesh.stop().unwrap();
}
