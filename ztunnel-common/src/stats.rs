// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The counters, one slot each, and their names.
//!
//! A slot is also the reason code of a connection: why it was not paired, or why its last message
//! went by TCP. Slot 0 is never a reason.

macro_rules! slots {
    ($($(#[$doc:meta])* $slot:ident = $number:literal, $name:literal;)+) => {
        $($(#[$doc])* pub const $slot: u32 = $number;)+

        /// Every slot with its name.
        pub const ALL: &[(u32, &str)] = &[$(($slot, $name)),+];
    };
}

slots! {
    /// Pairs made.
    PAIRED = 1, "paired";
    /// Messages redirected.
    REDIRECTED_MESSAGES = 2, "redirected_messages";
    /// Bytes redirected.
    REDIRECTED_BYTES = 3, "redirected_bytes";
    /// Bytes that members sent by TCP.
    PASSED_BYTES = 4, "passed_bytes";
    /// Members that left the map again, unpaired or turned to bulk.
    LEFT = 5, "left";

    /// Passive end: nobody filed these sequence numbers.
    NO_MIRROR = 8, "no_mirror";
    /// Passive end: the active end is not of the role that belongs to it.
    WRONG_ROLE = 9, "wrong_role";
    /// The sockhash or the table of pairs is full.
    MAP_FULL = 10, "map_full";
    /// Another sockmap user already holds the socket.
    BUSY = 11, "busy";
    /// The kernel refused the socket for another reason.
    REFUSED = 12, "refused";
    /// The other end went away while the pair was being made.
    VANISHED = 13, "vanished";
    /// A multipath TCP subflow must not be in a sockmap.
    MPTCP = 14, "mptcp";

    /// Message: the sender has no pair (yet, or any more).
    UNPAIRED = 16, "unpaired";
    /// Message: the node is switched off.
    NODE_OFF = 17, "node_off";
    /// Message: the pod is switched off, or no longer enrolled.
    POD_OFF = 18, "pod_off";
    /// Message: this direction is not accelerated at the pair's level.
    DIRECTION = 19, "direction";
    /// Message: the sender is not in a state that may send.
    STATE = 20, "state";
    /// Message: the receiver's memory no longer holds the receiver.
    PEER_GONE = 21, "peer_gone";
    /// Message: the kernel could not be read.
    UNREADABLE = 22, "unreadable";
    /// Message: earlier bytes are still in TCP.
    NOT_DRAINED = 23, "not_drained";
    /// Message: too much redirected data is unread.
    CREDIT = 24, "credit";
    /// Message: too large.
    LARGE = 25, "large";
    /// Message: bulk in one direction.
    BULK = 26, "bulk";
    /// Message: the receiver is no longer in the sockhash.
    NOT_MEMBER = 27, "not_member";
    /// Message: a test wanted this one on TCP.
    FORCED = 28, "forced";
    /// Message: ztunnel is about to end its direction, see `Conn::closing`.
    CLOSING = 29, "closing";
    /// Message: a second sockmap user consumes, or consumed, what the receiver gets by TCP.
    FOREIGN = 30, "foreign";
}

/// Number of slots.
pub const SLOTS: usize = 32;

/// First slot that says why a connection was not paired.
pub const FIRST_UNPAIRED: u32 = NO_MIRROR;
/// First slot that says why a message was passed to TCP.
pub const FIRST_PASS: u32 = UNPAIRED;

/// The name of a slot.
#[must_use]
pub fn name(slot: u32) -> &'static str {
    ALL.iter().find(|(number, _)| *number == slot).map_or("unknown", |(_, name)| name)
}
