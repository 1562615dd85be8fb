// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel half of the fast path: three entry points, one call each.
//!
//! `sock_ops` (attached once, at the cgroup v2 root) files and pairs sockets when they are
//! established and lets them go when they close; `sk_msg` (attached to the sockhash) decides for
//! every message of a member whether it is redirected or goes by TCP; ztunnel runs `ask`
//! (attached to nothing) before it sends more than its credit to an application, and before a FIN. Everything that can be
//! decided without the kernel is in `ztunnel_common::verdict`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the standard atomics have no exchange for this target")]

mod kernel;
mod maps;
mod message;
mod pair;

use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{RawTracePointContext, SkMsgContext, SockOpsContext};
use ztunnel_common::question;

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

/// Answers a question of ztunnel's about a pair. Never attached, only run (`BPF_PROG_TEST_RUN`).
/// Arguments: the key of the pair, which side asks, and one of `ztunnel_common::question`.
///
/// `aya_ebpf`'s macro for this kind of program drops the answer, so the entry is written out.
#[unsafe(link_section = "raw_tp")]
#[unsafe(no_mangle)]
pub extern "C" fn ztunnel_ask(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let (id, side, asked): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(conn) = maps::CONNS.get(&id) else { return 0 };
    match asked as u32 {
        question::UNREAD => u32::from(message::unread(conn, side as u32) != 0),
        question::CLOSE_GATE => message::close_gate(conn, side as u32) as u32,
        question::CLOSED_AT_HIGH => (message::close_gate(conn, side as u32) >> 32) as u32,
        _ => 0,
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
