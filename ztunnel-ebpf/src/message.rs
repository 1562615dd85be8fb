// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One message: redirect or pass.
//!
//! The program runs under the sender's socket lock, so that its `write_seq` stands still and its
//! direction of the pair has one writer. The receiver's `copied_seq` only grows towards it. The
//! reads come first and the look-up of the receiver by its cookie, which is never used again, comes
//! last: if it succeeds, the memory was that socket all the time.

use core::intrinsics::{AtomicOrdering, atomic_xchg};

use aya_ebpf::bindings::{BPF_F_INGRESS, sk_action::SK_PASS};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SkMsgContext;
use ztunnel_common::{Conn, Control, Flow, Own, role, stats, verdict};

use crate::kernel;
use crate::maps::{CONNS, CONTROL, OWN, PODS, SOCKS, count};

/// The kernel's answer to `bpf_msg_redirect_hash` when the key was found.
const FOUND: i64 = SK_PASS as i64;

#[inline(always)]
pub fn verdict(ctx: &SkMsgContext) -> u32 {
    let size = ctx.size() as u64;
    let Some(own) = own(ctx) else { return alone(size) };
    let Some(conn) = CONNS.get(&own.id) else {
        own.sent.passed_bytes += size;
        return alone(size);
    };
    let reason = judge(ctx, own, conn, size);
    let flow = sending(own, conn);
    if reason == 0 {
        flow.tally.bytes += size;
        flow.tally.messages += 1;
        count(stats::REDIRECTED_MESSAGES, 1);
        count(stats::REDIRECTED_BYTES, size);
    } else {
        flow.tally.passed_bytes += size;
        flow.tally.passed_messages += 1;
        flow.tally.last_pass = reason;
        count(reason, 1);
        count(stats::PASSED_BYTES, size);
    }
    SK_PASS
}

#[inline(always)]
fn own<'a>(ctx: &SkMsgContext) -> Option<&'a mut Own> {
    // SAFETY: the kernel hands a valid context with a full socket to the program.
    unsafe {
        let sk = (*ctx.msg).__bindgen_anon_3.sk;
        helpers::bpf_sk_storage_get(OWN.as_ptr(), sk.cast(), core::ptr::null_mut(), 0).cast::<Own>().as_mut()
    }
}

#[inline(always)]
fn state(ctx: &SkMsgContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*(*ctx.msg).__bindgen_anon_3.sk).state }
}

#[inline(always)]
fn alone(size: u64) -> u32 {
    count(stats::UNPAIRED, 1);
    count(stats::PASSED_BYTES, size);
    SK_PASS
}

#[inline(always)]
fn sending<'a>(own: &Own, conn: &'a mut Conn) -> &'a mut Flow {
    if own.side == 0 { &mut conn.forward } else { &mut conn.backward }
}

/// Whether the application at the other end has redirected bytes to read.
#[inline(always)]
fn must_go_on(own: &Own, conn: &Conn) -> bool {
    own.role != role::APPLICATION && verdict::must_go_on(own.role, unread(conn, own.side))
}

/// Redirected bytes that the end opposite to `side` has not read; 0 when it is gone.
#[inline(always)]
pub fn unread(conn: &Conn, side: u32) -> u64 {
    let peer = if side == 0 { &conn.backward } else { &conn.forward };
    let layout = kernel::layout();
    if kernel::cookie(&layout, peer.sk) != Some(peer.cookie) {
        return 0;
    }
    kernel::psock(&layout, peer.sk).and_then(|psock| kernel::queued(&layout, psock)).unwrap_or(0)
}

/// 0 if the message was redirected, or the slot of the reason why not.
#[inline(always)]
fn judge(ctx: &SkMsgContext, own: &Own, conn: &mut Conn, size: u64) -> u32 {
    let Some(control) = CONTROL.get(&0) else { return stats::NODE_OFF };
    let control: Control = *control;
    let other = if own.side == 0 { &conn.backward } else { &conn.forward };
    let (peer, peer_cookie) = (other.sk, other.cookie);
    let heard = other.tally.messages + other.tally.passed_messages;
    verdict::take_turn(sending(own, conn), heard, size);
    let go_on = must_go_on(own, conn);
    let reason = verdict::permission(&control, PODS.get(&conn.netns).map(|pod| &*pod), conn.level, own.role);
    if reason != 0 && !go_on {
        return reason;
    }
    let level = conn.level;
    let flow = sending(own, conn);
    if flow.leaving != 0 || verdict::must_leave(level, flow) {
        flow.leaving = 1;
        return stats::BULK;
    }
    let reason = verdict::limits(&control, flow, size);
    if reason != 0 && !go_on {
        return reason;
    }
    if !verdict::may_send(state(ctx)) {
        return stats::STATE;
    }
    let position = own.sent.passed_bytes + flow.tally.bytes + flow.tally.passed_bytes + size;
    let reason = gate(flow, peer, peer_cookie, size);
    if reason != 0 {
        return reason;
    }
    if is_closing(own, conn, position) {
        return stats::CLOSING;
    }
    redirect(ctx, peer_cookie)
}

/// Announces a message that is about to be redirected to ztunnel, and then looks whether ztunnel is
/// closing. ztunnel first says that it is closing and then looks at the announcement
/// ([`close_gate`]). Both steps are fully ordered, so that one of the two sees the other: either
/// this message goes by TCP, or ztunnel waits for it before it sends its FIN.
#[inline(always)]
fn is_closing(own: &Own, conn: &mut Conn, position: u64) -> bool {
    if own.role != role::APPLICATION {
        return false;
    }
    let flow = sending(own, conn);
    // SAFETY: a valid, aligned place in the map. (`core::sync::atomic` offers no exchange for this target.)
    let before = unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut flow.announced, position) };
    // SAFETY: as above; volatile, because ztunnel's question writes it.
    let closing = unsafe { core::ptr::read_volatile(&raw const conn.closing) };
    closing != 0 || before > position
}

/// Wants nothing redirected to `side` any more; answers the position behind the last byte that was.
#[inline(always)]
pub fn close_gate(conn: &mut Conn, side: u32) -> u64 {
    // SAFETY: a valid, aligned place in the map.
    let before = unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut conn.closing, 1) };
    let flow = if side == 0 { &mut conn.backward } else { &mut conn.forward };
    // SAFETY: as above; volatile, because the sender's program writes it.
    let announced = unsafe { core::ptr::read_volatile(&raw const flow.announced) };
    // The result of the exchange must be used, or the compiler chooses one without ordering.
    if before > 1 { 0 } else { announced }
}

/// Order and memory.
#[inline(always)]
fn gate(flow: &mut Flow, peer: u64, peer_cookie: u64, size: u64) -> u32 {
    let layout = kernel::layout();
    let Some(cookie) = kernel::cookie(&layout, peer) else { return stats::UNREADABLE };
    if cookie != peer_cookie {
        return stats::PEER_GONE;
    }
    let Some(written) = kernel::write_seq(&layout, flow.sk) else { return stats::UNREADABLE };
    let Some(copied) = kernel::copied_seq(&layout, peer) else { return stats::UNREADABLE };
    // A receiver without a psock has left the map, or is about to close.
    let Some(psock) = kernel::psock(&layout, peer) else { return stats::NOT_MEMBER };
    // After `copied_seq`: who advances it on the application's behalf has replaced the callbacks before.
    if kernel::is_foreign(&layout, peer, psock) {
        return stats::FOREIGN;
    }
    if written != copied {
        return stats::NOT_DRAINED;
    }
    let Some(queued) = kernel::queued(&layout, psock) else { return stats::NOT_MEMBER };
    if !verdict::credit(flow, queued, size) {
        return stats::CREDIT;
    }
    0
}

/// The redirect itself.
#[inline(always)]
fn redirect(ctx: &SkMsgContext, peer_cookie: u64) -> u32 {
    let mut key = peer_cookie;
    // SAFETY: the context is valid, the map is a sockhash with a key of eight bytes.
    let found = unsafe {
        helpers::bpf_msg_redirect_hash(ctx.msg, SOCKS.as_ptr(), (&raw mut key).cast(), BPF_F_INGRESS as u64)
            as i64
    };
    if found == FOUND { 0 } else { stats::NOT_MEMBER }
}
