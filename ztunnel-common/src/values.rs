// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Keys and values of the maps.

/// How much of a pod's traffic may be redirected (`Pod::level`).
pub mod level {
    /// Nothing.
    pub const OFF: u32 = 0;
    /// From the application to ztunnel.
    pub const HALF: u32 = 1;
    /// Both ways.
    pub const FULL: u32 = 2;
}

/// Which end of a local hop a socket is.
pub mod role {
    /// The application's own socket; never tagged.
    pub const APPLICATION: u32 = 0;
    /// Accepted from a listener of ztunnel's.
    pub const ACCEPTED: u32 = 1;
    /// Opened by ztunnel towards an application.
    pub const DELIVERY: u32 = 2;
}

/// An enrolled pod; its key is the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// One of [`level`].
    pub level: u32,
    /// 1 while the operator has not switched this pod off.
    pub on: u32,
}

/// The initial sequence numbers that both ends of a connection see, and where.
///
/// It is written as the active end sees them and looked up by the passive end, mirrored.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingKey {
    /// Network namespace cookie: a pair never crosses namespaces.
    pub netns: u64,
    /// Next sequence number of the active end.
    pub active_seq: u32,
    /// Next sequence number of the passive end.
    pub passive_seq: u32,
}

/// An active end that waits for its passive end. Whoever deletes it owns the pair.
///
/// One end that stays out tells the other why by `refused`: both ends of a connection then give one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Address of the socket, as a number.
    pub sk: u64,
    /// Cookie of the socket.
    pub cookie: u64,
    /// One of [`role`].
    pub role: u32,
    /// One of [`level`], as it was when the socket entered.
    pub level: u32,
    /// The [`stats`](crate::stats) slot that says why one of the two ends stays out; 0 if none does.
    pub refused: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// What a member socket knows about itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Key of its [`Conn`]: the cookie of the active end; 0 if it was never paired.
    pub id: u64,
    /// Its own cookie.
    pub cookie: u64,
    /// Its own address, as a number.
    pub sk: u64,
    /// The key it filed, if it is the active end.
    pub filed: PendingKey,
    /// 0 for the active end, 1 for the passive end.
    pub side: u32,
    /// One of [`role`].
    pub role: u32,
    /// The [`stats`](crate::stats) slot that says why it was not paired; 0 if it was.
    pub unpaired: u32,
    /// 1 after the socket closed and `sent`/`received` hold the final figures.
    pub closed: u32,
    /// What this end sent; until the pair is made, what it passed.
    pub sent: Tally,
    /// What this end was sent.
    pub received: Tally,
}

/// Traffic of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that were redirected.
    pub bytes: u64,
    /// Messages that were redirected.
    pub messages: u64,
    /// Bytes that a member sent by TCP.
    pub passed_bytes: u64,
    /// Messages that a member sent by TCP.
    pub passed_messages: u64,
    /// The [`stats`](crate::stats) slot of the last message that was passed; 0 if none was.
    pub last_pass: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
}

/// One direction of a pair, written only by the program of the end that sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Address of the sending socket, as a number.
    pub sk: u64,
    /// Cookie of the sending socket.
    pub cookie: u64,
    /// What went which way.
    pub tally: Tally,
    /// Redirected bytes that the receiver is known to have read.
    pub read: u64,
    /// Redirected messages that the receiver is known to have read.
    pub read_messages: u64,
    /// Once `read` reaches this, the first `mark_messages` messages are read.
    pub mark: u64,
    /// See `mark`.
    pub mark_messages: u64,
    /// Messages of the other direction when this one last began to speak.
    pub heard: u64,
    /// Bytes since then.
    pub turn: u64,
    /// Position in the sender's stream behind the last byte that was redirected, or is about to be.
    pub announced: u64,
    /// One of [`role`], of the sending socket.
    pub role: u32,
    /// 1: the sending socket leaves the map at the next round-trip sample.
    pub leaving: u32,
}

/// A pair: the two ends of one connection within one pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conn {
    /// Network namespace cookie of both ends.
    pub netns: u64,
    /// One of [`level`]: the pod's when the pair was made; it can only shrink.
    pub level: u32,
    /// Keeps the layout free of padding.
    pub reserved: u32,
    /// 1: ztunnel is about to send its FIN and wants nothing redirected to it any more. As wide as
    /// an atomic exchange needs it.
    pub closing: u64,
    /// From the active end to the passive end.
    pub forward: Flow,
    /// From the passive end to the active end.
    pub backward: Flow,
}
