// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The decisions, without a kernel.

use super::*;

const ON: Control = Control { on: 1, message_limit: 65_536, bulk_limit: 0, bulk_message: 0, pass_every: 0 };
const FULL: Pod = Pod { level: level::FULL, on: 1 };

fn send(flow: &mut Flow, size: u64) {
    flow.tally.bytes += size;
    flow.tally.messages += 1;
}

#[test]
fn exactly_one_end_is_ztunnels() {
    assert!(roles_match(role::APPLICATION, role::ACCEPTED));
    assert!(roles_match(role::DELIVERY, role::APPLICATION));
    assert!(!roles_match(role::APPLICATION, role::APPLICATION));
    assert!(!roles_match(role::DELIVERY, role::ACCEPTED));
    assert!(!roles_match(role::ACCEPTED, role::APPLICATION));
}

#[test]
fn every_switch_is_obeyed() {
    assert_eq!(permission(&ON, Some(&FULL), level::FULL, role::ACCEPTED), 0);
    assert_eq!(permission(&Control { on: 0, ..ON }, Some(&FULL), level::FULL, 0), stats::NODE_OFF);
    assert_eq!(permission(&ON, None, level::FULL, 0), stats::POD_OFF);
    assert_eq!(permission(&ON, Some(&Pod { on: 0, ..FULL }), level::FULL, 0), stats::POD_OFF);
    assert_eq!(permission(&ON, Some(&FULL), level::HALF, role::DELIVERY), stats::DIRECTION);
    assert_eq!(permission(&ON, Some(&FULL), level::HALF, role::APPLICATION), 0);
    let half = Pod { level: level::HALF, on: 1 };
    assert_eq!(permission(&ON, Some(&half), level::FULL, role::DELIVERY), stats::DIRECTION);
}

#[test]
fn only_an_open_socket_sends() {
    assert!(may_send(1) && may_send(8));
    assert!((2..8).chain(9..13).all(|state| !may_send(state)));
}

#[test]
fn an_answer_begins_a_new_turn() {
    let mut flow = Flow::default();
    take_turn(&mut flow, 0, 10);
    take_turn(&mut flow, 0, 10);
    assert_eq!(flow.turn, 20);
    take_turn(&mut flow, 1, 10);
    assert_eq!(flow.turn, 10);
}

#[test]
fn bulk_and_large_messages_go_by_tcp() {
    let control = Control { bulk_limit: 100, bulk_message: 50, ..ON };
    let flow = Flow { turn: 101, ..Flow::default() };
    assert_eq!(limits(&control, &flow, 49), stats::BULK);
    assert_eq!(limits(&control, &flow, 50), 0, "large writes are faster redirected");
    assert_eq!(limits(&ON, &flow, 1), 0);
    assert_eq!(limits(&ON, &flow, 65_537), stats::LARGE);
}

#[test]
fn unread_bytes_are_bounded_with_and_without_the_kernels_count() {
    for exact in [true, false] {
        let mut flow = Flow::default();
        let mut unread = 0;
        while credit(&mut flow, if exact || unread == 0 { unread } else { QUEUED_UNKNOWN }, 4096) {
            send(&mut flow, 4096);
            unread += 4096;
        }
        assert_eq!(unread, CREDIT_BYTES);
        assert!(credit(&mut flow, 0, 4096), "an empty list gives the credit back");
    }
}

#[test]
fn unread_messages_are_bounded_for_a_reader_that_lags() {
    // The reader is always one credit behind and its list is never seen empty.
    let mut flow = Flow::default();
    let mut unread: u64 = 0;
    let mut worst = 0;
    for round in 0..100_000_u64 {
        let size = 1 + round % 7;
        if credit(&mut flow, unread, size) {
            send(&mut flow, size);
            unread += size;
            worst = worst.max(unread);
        } else {
            unread -= unread / 2;
        }
    }
    assert!(worst <= 7 * CREDIT_MESSAGES, "{worst} bytes in messages of at most 7");
    assert!(flow.tally.messages > 50_000, "and the reader's progress is noticed");
}

#[test]
fn a_large_message_counts_before_it_is_sent() {
    let mut flow = Flow::default();
    send(&mut flow, CREDIT_BYTES);
    assert!(!credit(&mut flow, CREDIT_BYTES, 1));
    assert!(credit(&mut flow, CREDIT_BYTES - 1, 1));
}

#[test]
fn only_a_sender_of_a_half_pair_leaves() {
    let flow = Flow { turn: LEAVE_BYTES + 1, ..Flow::default() };
    assert!(must_leave(level::HALF, &flow));
    assert!(!must_leave(level::FULL, &flow));
    assert!(!must_leave(level::HALF, &Flow { role: role::DELIVERY, ..flow }));
}

#[test]
fn an_application_never_has_bytes_in_both_queues() {
    assert!(must_go_on(role::ACCEPTED, 1) && must_go_on(role::DELIVERY, QUEUED_UNKNOWN));
    assert!(!must_go_on(role::ACCEPTED, 0), "an empty list: TCP may take over");
    assert!(!must_go_on(role::APPLICATION, 1), "ztunnel reads until both queues are empty");
}

#[test]
fn towards_an_application_size_alone_changes_nothing() {
    let flow = Flow { turn: u64::MAX / 2, role: role::DELIVERY, ..Flow::default() };
    assert_eq!(limits(&Control { bulk_limit: 1, ..ON }, &flow, 1 << 20), 0);
}

#[test]
fn the_credit_towards_an_application_is_its_own() {
    let mut flow = Flow { role: role::ACCEPTED, ..Flow::default() };
    assert!(credit(&mut flow, 0, CREDIT_BYTES_TO_APPLICATION));
    assert!(!credit(&mut flow, 0, CREDIT_BYTES_TO_APPLICATION + 1));
}
