// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The contract between the kernel programs (`ztunnel-ebpf`) and the loader (`ztunnel::fastpath`).
//!
//! | map | type | key → value | written by | read by |
//! |--|--|--|--|--|
//! | `CONTROL` | array of one | 0 → [`Control`] | loader | programs |
//! | `PODS` | hash | netns cookie → [`Pod`] | loader | programs |
//! | `TAGS` | socket storage, cloned on accept | socket → [`Role`](role) | loader | `sock_ops` |
//! | `PENDING` | LRU hash | [`PendingKey`] → [`Pending`] | `sock_ops`, active end | `sock_ops`, passive end |
//! | `SOCKS` | sockhash | socket cookie → socket | `sock_ops` | `sk_msg` |
//! | `OWN` | socket storage | socket → [`Own`] | `sock_ops` | `sk_msg`, loader |
//! | `CONNS` | hash | cookie of the active end → [`Conn`] | `sock_ops`, `sk_msg` | `sk_msg`, loader |
//! | `STATS` | per-CPU array | [`stats`] slot → count | programs | loader |
//!
//! Every shared struct consists of `u64` and `u32` only and has no padding (`layout`), so that a
//! key can be hashed and a value copied bytewise. The programs' decisions live in [`verdict`], as
//! pure functions that are tested on the host.
#![no_std]

mod layout;
#[cfg(feature = "user")]
pub use layout::Plain;
pub mod maps;
pub mod settings;
pub mod stats;
pub mod values;
pub mod verdict;

pub use settings::{Control, Layout};
pub use values::{Conn, Flow, Own, Pending, PendingKey, Pod, level, role};

/// Changes with every change of a map, a value or a slot.
pub const CONTRACT_VERSION: u32 = 3;

/// What ztunnel asks the kernel about a pair (`ztunnel_ask`).
pub mod question {
    /// Has the other end redirected bytes to read? 1 or 0.
    pub const UNREAD: u32 = 0;
    /// Redirect nothing to us any more. The answer: the low half of the position, in the other end's
    /// stream, behind the last byte that was redirected to us.
    pub const CLOSE_GATE: u32 = 1;
    /// The high half of it.
    pub const CLOSED_AT_HIGH: u32 = 2;
}
