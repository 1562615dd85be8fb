// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel half of the fast path: two entry points, one call each.
//!
//! `sock_ops` (attached once, at the cgroup v2 root) files and pairs sockets when they are
//! established and lets them go when they close; `sk_msg` (attached to the sockhash) decides for
//! every message of a member whether it is redirected or goes by TCP. Everything that can be
//! decided without the kernel is in `ztunnel_common::verdict`.
#![no_std]
#![no_main]

mod kernel;
mod maps;
mod message;
mod pair;

use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};

/// Files and pairs sockets.
#[sock_ops]
pub fn ztunnel_pair(ctx: SockOpsContext) -> u32 {
    pair::on_event(&ctx);
    1
}

/// Redirects or passes one message.
#[sk_msg]
pub fn ztunnel_message(ctx: SkMsgContext) -> u32 {
    message::verdict(&ctx)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
