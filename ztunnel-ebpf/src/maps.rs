// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The maps of the contract, and the few helpers that touch them.
//!
//! One generic definition for every kind: socket storage needs the clone flag and is used from
//! programs for which `aya_ebpf` has no safe wrapper, so that raw helper calls are wanted anyway.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKHASH,
};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::macros::btf_map;
use ztunnel_common::maps::{CONNS_ENTRIES, PENDING_ENTRIES, PODS_ENTRIES, SOCKS_ENTRIES};
use ztunnel_common::stats::SLOTS;
use ztunnel_common::{Conn, Control, Own, Pending, PendingKey, Pod};

const NO_PREALLOC: usize = 1;
const CLONE: usize = 1 << 9;

/// A map as BTF describes it: the loader reads the types behind the pointers, nobody follows them.
#[repr(C)]
pub struct Map<K, V, const TYPE: usize, const ENTRIES: usize, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers are null and never followed; the kernel serializes access to a map.
unsafe impl<K, V, const TYPE: usize, const ENTRIES: usize, const FLAGS: usize> Sync
    for Map<K, V, TYPE, ENTRIES, FLAGS>
{
}

impl<K, V, const TYPE: usize, const ENTRIES: usize, const FLAGS: usize> Map<K, V, TYPE, ENTRIES, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The address that the loader replaces by the map.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }

    /// The value in place, shared with every other program run.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<&mut V> {
        // SAFETY: the helper returns null or a value of this map, alive for this program run.
        unsafe {
            helpers::bpf_map_lookup_elem(self.as_ptr(), core::ptr::from_ref(key).cast()).cast::<V>().as_mut()
        }
    }

    #[inline(always)]
    pub fn insert(&self, key: &K, value: &V) -> i64 {
        // SAFETY: both references are valid for the call.
        unsafe {
            helpers::bpf_map_update_elem(
                self.as_ptr(),
                core::ptr::from_ref(key).cast(),
                core::ptr::from_ref(value).cast(),
                0,
            ) as i64
        }
    }

    /// 0 if there was an entry and this call removed it.
    #[inline(always)]
    pub fn remove(&self, key: &K) -> i64 {
        // SAFETY: the reference is valid for the call.
        unsafe { helpers::bpf_map_delete_elem(self.as_ptr(), core::ptr::from_ref(key).cast()) as i64 }
    }
}

type Array<V, const N: usize> = Map<u32, V, { BPF_MAP_TYPE_ARRAY as usize }, N, 0>;
type Hash<K, V, const N: usize, const FLAGS: usize> = Map<K, V, { BPF_MAP_TYPE_HASH as usize }, N, FLAGS>;
type Lru<K, V, const N: usize> = Map<K, V, { BPF_MAP_TYPE_LRU_HASH as usize }, N, 0>;
type PerCpu<V, const N: usize> = Map<u32, V, { BPF_MAP_TYPE_PERCPU_ARRAY as usize }, N, 0>;
type Sockets<K, const N: usize> = Map<K, u32, { BPF_MAP_TYPE_SOCKHASH as usize }, N, 0>;
type Storage<V, const FLAGS: usize> = Map<i32, V, { BPF_MAP_TYPE_SK_STORAGE as usize }, 0, FLAGS>;

#[btf_map]
pub static CONTROL: Array<Control, 1> = Map::new();
#[btf_map]
pub static PODS: Hash<u64, Pod, PODS_ENTRIES, 0> = Map::new();
#[btf_map]
pub static TAGS: Storage<u32, { NO_PREALLOC | CLONE }> = Map::new();
#[btf_map]
pub static PENDING: Lru<PendingKey, Pending, PENDING_ENTRIES> = Map::new();
#[btf_map]
pub static SOCKS: Sockets<u64, SOCKS_ENTRIES> = Map::new();
#[btf_map]
pub static OWN: Storage<Own, NO_PREALLOC> = Map::new();
#[btf_map]
pub static CONNS: Hash<u64, Conn, CONNS_ENTRIES, NO_PREALLOC> = Map::new();
#[btf_map]
pub static STATS: PerCpu<u64, SLOTS> = Map::new();

/// Adds to a counter of this CPU. No atomic: a program that is preempted between load and store may
/// lose one count; the figures of a connection (`Tally`) are exact, they have one writer.
#[inline(always)]
pub fn count(slot: u32, by: u64) {
    if let Some(cell) = STATS.get(&slot) {
        *cell = cell.wrapping_add(by);
    }
}
