// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Sockets come, meet and go.
//!
//! The active end files the two initial sequence numbers, the passive end looks up the mirror.
//! They are the same numbers on both sides of any address translation, so that the pair needs no
//! tuple. The filed entry is a token: a pair exists for whoever removes it, the passive end (the
//! pair is made) or the active end's close (there is none).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    bpf_sock_ops,
};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use ztunnel_common::values::Tally;
use ztunnel_common::verdict::roles_match;
use ztunnel_common::{Conn, Flow, Own, Pending, PendingKey, Pod, level, role, stats};

use crate::kernel;
use crate::maps::{CONNS, CONTROL, OWN, PENDING, PODS, SOCKS, TAGS, count};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;
const ENOMEM: i64 = -12;
const E2BIG: i64 = -7;
const EBUSY: i64 = -16;

#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => on_active(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => on_passive(ctx),
        BPF_SOCK_OPS_RTT_CB => on_round_trip(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => on_close(ctx),
        _ => {}
    }
}

/// The socket of the event; null when it is not a full socket.
#[inline(always)]
fn sock(ctx: &SockOpsContext) -> *mut core::ffi::c_void {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk.cast() }
}

#[inline(always)]
fn netns_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { helpers::bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { helpers::bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// What ztunnel said about this socket, or about the listener it came from.
#[inline(always)]
fn role_of(sk: *mut core::ffi::c_void) -> u32 {
    // SAFETY: `sk` was checked for null by the caller.
    let tag = unsafe { helpers::bpf_sk_storage_get(TAGS.as_ptr(), sk, core::ptr::null_mut(), 0) };
    // SAFETY: null, or a value of the map.
    unsafe { tag.cast::<u32>().as_ref() }.map_or(role::APPLICATION, |tag| *tag)
}

/// Stores what the socket knows about itself, and its address on the way: the verifier allows no
/// arithmetic on the pointer, but what comes back from the map is a number.
#[inline(always)]
fn remember<'a>(sk: *mut core::ffi::c_void, mut own: Own) -> Option<&'a mut Own> {
    own.sk = sk as u64;
    // SAFETY: `sk` was checked for null by the caller; `own` is valid for the call.
    let place = unsafe {
        helpers::bpf_sk_storage_get(
            OWN.as_ptr(),
            sk,
            (&raw mut own).cast(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
    };
    // SAFETY: null, or a value of the map, alive as long as the socket.
    unsafe { place.cast::<Own>().as_mut() }
}

/// The socket's address as a number.
#[inline(always)]
fn address(own: &Own) -> u64 {
    // SAFETY: a valid reference; volatile, or the compiler would take the pointer that was stored.
    unsafe { core::ptr::read_volatile(&raw const own.sk) }
}

#[inline(always)]
fn recall<'a>(sk: *mut core::ffi::c_void) -> Option<&'a mut Own> {
    // SAFETY: `sk` was checked for null by the caller.
    let own = unsafe { helpers::bpf_sk_storage_get(OWN.as_ptr(), sk, core::ptr::null_mut(), 0) };
    // SAFETY: null, or a value of the map, alive as long as the socket.
    unsafe { own.cast::<Own>().as_mut() }
}

#[inline(always)]
fn enrolled(netns: u64) -> Option<Pod> {
    let pod = *PODS.get(&netns)?;
    // Membership alone changes what an application sees: who is switched off gets no new members.
    let node_on = CONTROL.get(&0).is_some_and(|control| control.on != 0);
    (node_on && pod.on != 0 && pod.level != level::OFF).then_some(pod)
}

/// Puts the socket of this event into the sockhash: 0, or the slot of the reason.
#[inline(always)]
fn enter(ctx: &SockOpsContext, cookie: u64) -> u32 {
    let mut key = cookie;
    // SAFETY: the context is valid, the map is a sockhash with a key of eight bytes.
    let status =
        unsafe { helpers::bpf_sock_hash_update(ctx.ops, SOCKS.as_ptr(), (&raw mut key).cast(), 1) as i64 };
    match status {
        0 => 0,
        E2BIG | ENOMEM => stats::MAP_FULL,
        EBUSY => stats::BUSY,
        _ => stats::REFUSED,
    }
}

#[inline(always)]
fn watch(ctx: &SockOpsContext, flags: u32) {
    // SAFETY: the context is valid.
    unsafe { helpers::bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32) };
}

/// Connections within a pod that never leave it are not ours: REDIRECT does not touch them.
#[inline(always)]
fn to_loopback(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: the context is valid.
    let (family, v4) = unsafe { ((*ops).family, (*ops).remote_ip4) };
    if family == AF_INET {
        return v4 & 0xff == 127;
    }
    // SAFETY: as above.
    let v6 =
        unsafe { [(*ops).remote_ip6[0], (*ops).remote_ip6[1], (*ops).remote_ip6[2], (*ops).remote_ip6[3]] };
    v6[0] | v6[1] == 0
        && ((v6[2] == 0 && u32::from_be(v6[3]) == 1)
            || (u32::from_be(v6[2]) == 0xffff && v6[3] & 0xff == 127))
}

#[inline(always)]
fn sequence(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: the context is valid.
    unsafe { ((*ctx.ops).snd_nxt, (*ctx.ops).rcv_nxt) }
}

/// An active end files itself. It has to enter the sockhash now, before anything is known about
/// the other end: the kernel allows it only in the socket's own callback.
#[inline(always)]
fn on_active(ctx: &SockOpsContext) {
    let netns = netns_of(ctx);
    let Some(pod) = enrolled(netns) else { return };
    let sk = sock(ctx);
    if sk.is_null() {
        return;
    }
    let role = role_of(sk);
    if role == role::APPLICATION && to_loopback(ctx.ops) {
        return;
    }
    let (active_seq, passive_seq) = sequence(ctx);
    let cookie = cookie_of(ctx);
    let filed = PendingKey { netns, active_seq, passive_seq };
    let Some(own) = remember(sk, Own { id: cookie, cookie, filed, role, ..Own::default() }) else { return };
    let address = address(own);
    let refused =
        if kernel::is_mptcp(&kernel::layout(), address) { stats::MPTCP } else { enter(ctx, cookie) };
    if refused != 0 {
        own.id = 0;
        own.unpaired = refused;
        count(refused, 1);
        tell(ctx, refused, netns, cookie);
    } else {
        watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
    }
    let entry = Pending { sk: address, cookie, role, level: pod.level, refused, reserved: 0 };
    PENDING.insert(&filed, &entry);
}

/// What the passive end said about a pair that was not made.
#[inline(always)]
fn learn(own: &mut Own) {
    if own.unpaired == 0
        && let Some(filed) = PENDING.get(&own.filed)
    {
        own.unpaired = filed.refused;
    }
}

/// A passive end looks for its active end and makes the pair.
#[inline(always)]
fn on_passive(ctx: &SockOpsContext) {
    let netns = netns_of(ctx);
    if enrolled(netns).is_none() {
        return;
    }
    let sk = sock(ctx);
    if sk.is_null() {
        return;
    }
    let role = role_of(sk);
    let (passive_seq, active_seq) = sequence(ctx);
    let filed = PendingKey { netns, active_seq, passive_seq };
    let mut counted = false;
    let reason = match PENDING.get(&filed) {
        None => stats::NO_MIRROR,
        Some(active) if !roles_match(active.role, role) => stats::WRONG_ROLE,
        Some(active) if active.refused != 0 => {
            let refused = active.refused;
            // Counted where it happened. Nobody else removes the entry of an end that stays out.
            counted = true;
            PENDING.remove(&filed);
            refused
        }
        Some(active) => {
            let active = *active;
            let refused = make_pair(ctx, sk, role, filed, active);
            if refused != 0
                && let Some(entry) = PENDING.get(&filed)
            {
                entry.refused = refused;
            }
            refused
        }
    };
    // An application's listener serves many who are not ztunnel: no pair is expected there.
    if reason != 0 && role != role::APPLICATION {
        if let Some(own) = remember(sk, Own { side: 1, role, ..Own::default() }) {
            own.id = 0;
            own.unpaired = reason;
        }
    }
    if reason != 0 && !counted && (role != role::APPLICATION || reason != stats::NO_MIRROR) {
        count(reason, 1);
        tell(ctx, reason, netns, cookie_of(ctx));
    }
}

/// Says, when `EBPF_DEBUG` is on, which connection stays out of the map and why. With the level at 0 the verifier finds
/// that the branch is never taken and removes it. Each reason has its own text, since a table of texts would need
/// relocations.
#[inline(always)]
fn tell(ctx: &SockOpsContext, reason: u32, netns: u64, cookie: u64) {
    match reason {
        stats::MAP_FULL => debug!(ctx, "not paired: map_full, netns {}, socket {}", netns, cookie),
        stats::BUSY => debug!(ctx, "not paired: busy, netns {}, socket {}", netns, cookie),
        stats::REFUSED => debug!(ctx, "not paired: refused, netns {}, socket {}", netns, cookie),
        stats::VANISHED => debug!(ctx, "not paired: vanished, netns {}, socket {}", netns, cookie),
        _ => {}
    }
}

#[inline(always)]
fn make_pair(
    ctx: &SockOpsContext,
    sk: *mut core::ffi::c_void,
    role: u32,
    filed: PendingKey,
    active: Pending,
) -> u32 {
    let cookie = cookie_of(ctx);
    let own = Own { id: active.cookie, cookie, side: 1, role, ..Own::default() };
    let Some(own) = remember(sk, own) else { return stats::MAP_FULL };
    let address = address(own);
    if kernel::is_mptcp(&kernel::layout(), address) {
        return stats::MPTCP;
    }
    let refused = enter(ctx, cookie);
    if refused != 0 {
        return refused;
    }
    let conn = Conn {
        netns: filed.netns,
        level: active.level,
        reserved: 0,
        closing: 0,
        forward: Flow { sk: active.sk, cookie: active.cookie, role: active.role, ..Flow::default() },
        backward: Flow { sk: address, cookie, role, ..Flow::default() },
    };
    if CONNS.insert(&active.cookie, &conn) != 0 {
        SOCKS.remove(&cookie);
        return stats::MAP_FULL;
    }
    // The token last: if the active end closed meanwhile, it did not see the pair, so it goes here.
    if PENDING.remove(&filed) != 0 {
        CONNS.remove(&active.cookie);
        SOCKS.remove(&cookie);
        return stats::VANISHED;
    }
    watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
    count(stats::PAIRED, 1);
    0
}

/// The first round-trip sample comes after the peer has seen our data, hence after it was paired,
/// if it ever is. Whoever is still alone, or sends in bulk and receives nothing through the map,
/// leaves it and is an ordinary socket again.
#[inline(always)]
fn on_round_trip(ctx: &SockOpsContext) {
    let sk = sock(ctx);
    if sk.is_null() {
        return;
    }
    let Some(own) = recall(sk) else { return };
    let (leaves, settled) = match CONNS.get(&own.id) {
        // Never paired: the filed token is still there. A pair that is gone leaves no token, and its
        // application may have redirected bytes to read, which leaving would lose.
        None if own.side == 0 => {
            learn(own);
            (PENDING.remove(&own.filed) == 0, true)
        }
        None => (false, true),
        Some(conn) => {
            let flow = if own.side == 0 { &conn.forward } else { &conn.backward };
            (flow.leaving != 0, conn.level == level::FULL || own.role != role::APPLICATION)
        }
    };
    if leaves {
        if SOCKS.remove(&own.cookie) == 0 {
            count(stats::LEFT, 1);
        }
    }
    if leaves || settled {
        watch(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    }
}

/// The sockhash forgets a closed socket by itself and so does socket storage. The pair goes with
/// ztunnel's end, which is the one that is asked for the final figures.
#[inline(always)]
fn on_close(ctx: &SockOpsContext) {
    let sk = sock(ctx);
    if sk.is_null() {
        return;
    }
    let Some(own) = recall(sk) else { return };
    if own.side == 0 {
        learn(own);
        PENDING.remove(&own.filed);
    }
    if own.role == role::APPLICATION {
        return;
    }
    let id = own.id;
    if let Some(conn) = CONNS.get(&id) {
        let (sent, received): (Tally, Tally) = if own.side == 0 {
            (conn.forward.tally, conn.backward.tally)
        } else {
            (conn.backward.tally, conn.forward.tally)
        };
        own.sent = sent;
        own.received = received;
        own.closed = 1;
        CONNS.remove(&id);
    }
}
