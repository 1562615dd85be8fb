// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! For tests: another sockmap user on the same node, as an observability agent or a service mesh may be.
//!
//! It changes nothing. `foreign_bytes` sees what members of `BYTES` and `PARSED` receive, those of `PARSED` after
//! `foreign_parser`; `foreign_message` sees what members of `MESSAGES` send, and `foreign_enter` puts every connection
//! that a cgroup opens into `MESSAGES`.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, sk_action::SK_PASS};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::macros::{map, sk_msg, sock_ops, stream_parser, stream_verdict};
use aya_ebpf::maps::SockHash;
use aya_ebpf::programs::{SkBuffContext, SkMsgContext, SockOpsContext};

#[map]
static BYTES: SockHash<u64> = SockHash::with_max_entries(1024, 0);
#[map]
static PARSED: SockHash<u64> = SockHash::with_max_entries(1024, 0);
#[map]
static MESSAGES: SockHash<u64> = SockHash::with_max_entries(1024, 0);

/// Takes what came as one message.
#[stream_parser]
pub fn foreign_parser(ctx: SkBuffContext) -> u32 {
    ctx.len()
}

/// Lets everything pass that a member of `BYTES` or `PARSED` receives.
#[stream_verdict]
pub fn foreign_bytes(_ctx: SkBuffContext) -> u32 {
    SK_PASS
}

/// Lets everything pass that a member of `MESSAGES` sends.
#[sk_msg]
pub fn foreign_message(_ctx: SkMsgContext) -> u32 {
    SK_PASS
}

/// Puts the active end of every new connection into `MESSAGES`.
#[sock_ops]
pub fn foreign_enter(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        // SAFETY: the kernel hands a valid context to the program.
        let key = unsafe { helpers::bpf_get_socket_cookie(ctx.as_ptr()) };
        // SAFETY: as above. One that does not get in is none of this user's.
        let _ = MESSAGES.update(key, unsafe { &mut *ctx.ops }, 0);
    }
    1
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
