// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Reads of kernel memory, at the offsets that the loader found in the kernel's BTF.
//!
//! The verifier forbids arithmetic on a socket pointer, so that a socket is an address here.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use ztunnel_common::Layout;
use ztunnel_common::settings::ABSENT;
use ztunnel_common::verdict::QUEUED_UNKNOWN;

/// Filled in by the loader before the programs are loaded.
#[unsafe(no_mangle)]
static LAYOUT: [u32; Layout::WORDS] = [0; Layout::WORDS];

/// Low bits of `sk_user_data` are flags.
const USER_DATA_FLAGS: u64 = 7;

#[inline(always)]
pub fn layout() -> Layout {
    // SAFETY: a static of this program; volatile, because its value is not the one compiled in.
    Layout::from_words(unsafe { core::ptr::read_volatile(&raw const LAYOUT) })
}

#[inline(always)]
fn read<T: Default>(base: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    let address = base.wrapping_add(offset as u64);
    // SAFETY: the helper copies into `value` and reports a bad address instead of faulting.
    let status =
        unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    (status == 0).then_some(value)
}

/// Cookie of the socket at this address.
#[inline(always)]
pub fn cookie(layout: &Layout, sk: u64) -> Option<u64> {
    read(sk, layout.sk_cookie)
}

/// Sequence number behind the last byte that the socket's owner gave to TCP.
#[inline(always)]
pub fn write_seq(layout: &Layout, sk: u64) -> Option<u32> {
    read(sk, layout.write_seq)
}

/// Sequence number of the first byte that the socket's owner has not read from TCP.
#[inline(always)]
pub fn copied_seq(layout: &Layout, sk: u64) -> Option<u32> {
    read(sk, layout.copied_seq)
}

/// What the sockmap keeps beside the socket; nothing if it is in none.
#[inline(always)]
pub fn psock(layout: &Layout, sk: u64) -> Option<u64> {
    let psock = read::<u64>(sk, layout.sk_user_data)? & !USER_DATA_FLAGS;
    (psock != 0).then_some(psock)
}

/// Whether a second sockmap user takes, or once took, what this socket receives by TCP.
///
/// Such a user has a parser or a verdict on received bytes (`sk_skb`). The kernel starts it by replacing the socket's
/// `data_ready` and `write_space` (`sk_psock_start_strp`, `sk_psock_start_verdict`) and keeps the old ones in the psock.
/// When it leaves, `saved_data_ready` is empty again while bytes that it took may still be on their way; `write_space` is not
/// put back before the psock itself goes. What cannot be read counts as taken.
#[inline(always)]
pub fn is_foreign(layout: &Layout, sk: u64, psock: u64) -> bool {
    let Some([saved_write_space, saved_data_ready]) = read::<[u64; 2]>(psock, layout.saved_callbacks) else {
        return true;
    };
    saved_data_ready != 0 || read(sk, layout.sk_write_space) != Some(saved_write_space)
}

/// Redirected bytes that wait to be read, or [`QUEUED_UNKNOWN`].
#[inline(always)]
pub fn queued(layout: &Layout, psock: u64) -> Option<u64> {
    let head = psock.wrapping_add(layout.ingress_msg as u64);
    let next: u64 = read(psock, layout.ingress_msg)?;
    if next == head {
        return Some(0);
    }
    if layout.ingress_len == ABSENT {
        return Some(QUEUED_UNKNOWN);
    }
    // A list that is not empty never counts as empty, whatever its length says at this moment.
    let length: u32 = read(psock, layout.ingress_len)?;
    Some(if length == 0 { QUEUED_UNKNOWN } else { length as u64 })
}

/// Whether this is a subflow of multipath TCP.
#[inline(always)]
pub fn is_mptcp(layout: &Layout, sk: u64) -> bool {
    if layout.is_mptcp_bit == ABSENT {
        return false;
    }
    match read::<u8>(sk, layout.is_mptcp_bit / 8) {
        Some(byte) => byte >> (layout.is_mptcp_bit % 8) & 1 == 1,
        None => true,
    }
}
