// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The programs' decisions, pure and testable on the host.
//!
//! A message is redirected only if all of this holds; otherwise it goes by TCP, with the reason:
//! * *permission*: node, pod and direction are switched on;
//! * *order*: every byte that this end ever gave to TCP has been read by the other end
//!   (`write_seq == copied_seq`), and the receiver is the socket it was;
//! * *memory*: what is redirected and unread stays within [`CREDIT_BYTES`] and
//!   [`CREDIT_MESSAGES`].

use crate::settings::Control;
use crate::stats;
use crate::values::{Flow, Pod, level, role};

/// Redirected bytes that may be unread in one direction of one pair.
pub const CREDIT_BYTES: u64 = 256 << 10;
/// The same towards an application: ztunnel waits until its credit comes back, so that it is also
/// what can be sent in one go.
pub const CREDIT_BYTES_TO_APPLICATION: u64 = 1 << 20;
/// Redirected messages that may be unread. A message of one byte costs the kernel a `sk_msg` of
/// 1 KiB and may keep a page fragment of 32 KiB alive, so that bytes alone are no bound.
pub const CREDIT_MESSAGES: u64 = 96;
/// An unread ingress list whose length the kernel does not tell.
pub const QUEUED_UNKNOWN: u64 = u64::MAX;
/// What a sender that must be able to leave the map may send in one turn before it does.
pub const LEAVE_BYTES: u64 = 64 << 10;

const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;

/// Whether an active end of this role and a passive end of that role belong together: exactly one
/// of the two is ztunnel's, and of the kind that meets applications on that side.
#[inline(always)]
#[must_use]
pub const fn roles_match(active: u32, passive: u32) -> bool {
    matches!((active, passive), (role::APPLICATION, role::ACCEPTED) | (role::DELIVERY, role::APPLICATION))
}

/// What can be said before the kernel is asked: 0, or the slot of the reason.
#[inline(always)]
#[must_use]
pub fn permission(control: &Control, pod: Option<&Pod>, conn_level: u32, sender: u32) -> u32 {
    if control.on == 0 {
        return stats::NODE_OFF;
    }
    let Some(pod) = pod else { return stats::POD_OFF };
    if pod.on == 0 || pod.level == level::OFF {
        return stats::POD_OFF;
    }
    let granted = if pod.level < conn_level { pod.level } else { conn_level };
    if sender != role::APPLICATION && granted < level::FULL {
        return stats::DIRECTION;
    }
    0
}

/// Whether a socket in this state may send at all. Elsewhere TCP gives the right error.
#[inline(always)]
#[must_use]
pub const fn may_send(state: u32) -> bool {
    state == ESTABLISHED || state == CLOSE_WAIT
}

/// Keeps account of the turn: bytes since the other end last said something.
#[inline(always)]
pub fn take_turn(flow: &mut Flow, other_messages: u64, size: u64) {
    if flow.heard != other_messages {
        flow.heard = other_messages;
        flow.turn = 0;
    }
    flow.turn += size;
}

/// The limits that do not need the kernel: 0, or the slot of the reason.
#[inline(always)]
#[must_use]
pub fn limits(control: &Control, flow: &Flow, size: u64) -> u32 {
    let forced = control.pass_every != 0
        && (flow.tally.messages + flow.tally.passed_messages).is_multiple_of(control.pass_every as u64);
    if forced {
        return stats::FORCED;
    }
    if flow.role != role::APPLICATION {
        // Towards an application nothing changes queues without need: see `must_go_on`.
        return 0;
    }
    if size > control.message_limit as u64 {
        return stats::LARGE;
    }
    let small = size < control.bulk_message as u64;
    if small && control.bulk_limit != 0 && flow.turn > control.bulk_limit as u64 {
        return stats::BULK;
    }
    0
}

/// Whether one more message of `size` bytes fits, when `queued` bytes are unread now.
///
/// The number of unread messages is bounded by a mark: once as many bytes are read as had been
/// sent at the mark, every message before the mark is read.
#[inline(always)]
#[must_use]
pub fn credit(flow: &mut Flow, queued: u64, size: u64) -> bool {
    if queued == 0 {
        flow.read = flow.tally.bytes;
        flow.read_messages = flow.tally.messages;
        flow.mark = flow.tally.bytes;
        flow.mark_messages = flow.tally.messages;
    } else if queued != QUEUED_UNKNOWN {
        let read = flow.tally.bytes.saturating_sub(queued);
        if read > flow.read {
            flow.read = read;
        }
        if flow.read >= flow.mark {
            flow.read_messages = flow.mark_messages;
            flow.mark = flow.tally.bytes;
            flow.mark_messages = flow.tally.messages;
        }
    }
    let unread = flow.tally.bytes.saturating_sub(flow.read);
    let unread_messages = flow.tally.messages.saturating_sub(flow.read_messages);
    let bytes = if flow.role == role::APPLICATION { CREDIT_BYTES } else { CREDIT_BYTES_TO_APPLICATION };
    unread + size <= bytes && unread_messages < CREDIT_MESSAGES
}

/// Whether a message is redirected whatever the switches say: the sender is ztunnel, and the
/// application has redirected bytes to read (`queued`).
///
/// An application's socket then never holds bytes in both of its queues. One read takes from one of
/// them, and a reader that takes a short read for an empty socket (edge-triggered epoll) would wait
/// for ever for what is in the other. A switch takes effect once the application has read what it
/// has; the credit is kept by ztunnel, who asks before it sends more (`ztunnel_unread`).
#[inline(always)]
#[must_use]
pub const fn must_go_on(sender: u32, queued: u64) -> bool {
    sender != role::APPLICATION && queued != 0
}

/// Whether the sender has to leave the map: it is the application's, it never receives redirected
/// bytes (level `half`), and it sends in bulk.
#[inline(always)]
#[must_use]
pub const fn must_leave(conn_level: u32, flow: &Flow) -> bool {
    conn_level == level::HALF && flow.role == role::APPLICATION && flow.turn > LEAVE_BYTES
}

#[cfg(test)]
mod tests;
