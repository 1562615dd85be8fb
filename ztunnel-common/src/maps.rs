// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Names (at most 15 characters, the kernel's limit) and sizes of the maps, for both halves.

/// One [`Control`](crate::Control): the switches of the node.
pub const CONTROL: &str = "CONTROL";
/// Enrolled network namespaces.
pub const PODS: &str = "PODS";
/// What ztunnel says about its own sockets.
pub const TAGS: &str = "TAGS";
/// Active ends that wait for their passive end.
pub const PENDING: &str = "PENDING";
/// The sockets that can be redirected to.
pub const SOCKS: &str = "SOCKS";
/// What a member socket knows about itself.
pub const OWN: &str = "OWN";
/// Pairs.
pub const CONNS: &str = "CONNS";
/// Counters.
pub const STATS: &str = "STATS";

/// Ring buffer of aya-log, for `EBPF_DEBUG`; its size in bytes is the loader's choice.
pub const LOGS: &str = "AYA_LOGS";

/// Enrolled pods of one node.
pub const PODS_ENTRIES: usize = 4096;
/// Pairs of one node, unless the operator says otherwise.
pub const CONNS_DEFAULT: u32 = 65_536;
/// Pairs of one node. A pair that does not fit stays on TCP.
pub const CONNS_ENTRIES: usize = CONNS_DEFAULT as usize;
/// Member sockets of one node. A socket that does not fit stays on TCP.
pub const SOCKS_ENTRIES: usize = socks_entries(CONNS_DEFAULT) as usize;
/// Handshakes between their two callbacks; the oldest gives way, and its connection stays on TCP.
pub const PENDING_ENTRIES: usize = pending_entries(CONNS_DEFAULT) as usize;

/// The fewest pairs that can be asked for: the self-test needs some itself.
pub const CONNS_MIN: u32 = 64;
/// The most: their sockhash alone takes 32 MiB.
pub const CONNS_MAX: u32 = 1 << 20;
/// An LRU map hands its entries out to the CPUs in batches: a smaller one would push out what is waited for.
const PENDING_MIN: u32 = 1024;

/// Member sockets for so many pairs: two ends each.
#[must_use]
pub const fn socks_entries(pairs: u32) -> u32 {
    pairs * 2
}

/// Handshakes for so many pairs: a quarter of them at the same moment.
#[must_use]
pub const fn pending_entries(pairs: u32) -> u32 {
    if pairs / 4 < PENDING_MIN { PENDING_MIN } else { pairs / 4 }
}

/// Size of the key and the value of a map, for the contract test and the loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Name of the map.
    pub name: &'static str,
    /// Bytes of its key.
    pub key: usize,
    /// Bytes of its value.
    pub value: usize,
}

const fn shape<K, V>(name: &'static str) -> Shape {
    Shape { name, key: size_of::<K>(), value: size_of::<V>() }
}

/// Every map of the object.
pub const ALL: [Shape; 8] = [
    shape::<u32, crate::Control>(CONTROL),
    shape::<u64, crate::Pod>(PODS),
    shape::<i32, u32>(TAGS),
    shape::<crate::PendingKey, crate::Pending>(PENDING),
    shape::<u64, u32>(SOCKS),
    shape::<i32, crate::Own>(OWN),
    shape::<u64, crate::Conn>(CONNS),
    shape::<u32, u64>(STATS),
];
