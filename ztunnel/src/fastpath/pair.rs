// SPDX-License-Identifier: Apache-2.0
//! One connection's place in the kernel: paired at establishment or not, why, and its bytes.

use std::os::fd::BorrowedFd;

use serde::Serialize;
use ztunnel_common::values::Tally;
use ztunnel_common::{Own, role, stats};

use super::loader::Kernel;

/// Which way the bytes of one local hop went, as its access log line says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Whether any message was redirected.
    pub redirected: bool,
    /// Why the hop, or its last message that did, went by TCP; `redirected` if none did.
    pub reason: &'static str,
    /// Whether our socket may hold bytes in two queues, so that a short read says nothing about the other.
    pub two_queues: bool,
    /// Redirected bytes that we sent.
    pub tx_bytes: u64,
    /// Redirected bytes that we were sent.
    pub rx_bytes: u64,
    /// Messages of ours that were redirected.
    pub tx_messages: u64,
    /// Messages to us that were redirected.
    pub rx_messages: u64,
    /// Messages of ours that went by TCP although the socket is paired.
    pub tx_passed: u64,
    /// Messages to us that went by TCP although the socket is paired.
    pub rx_passed: u64,
}

impl Path {
    /// A hop that the kernel never paired.
    pub(super) fn by_tcp(reason: &'static str) -> Self {
        Self { reason, ..Self::default() }
    }

    fn paired(sent: &Tally, received: &Tally) -> Self {
        let redirected = sent.messages + received.messages > 0;
        let last = if sent.last_pass == 0 { received.last_pass } else { sent.last_pass };
        Self {
            redirected,
            two_queues: true,
            reason: match last {
                0 if redirected => "redirected",
                0 => "no_message",
                slot => stats::name(slot),
            },
            tx_bytes: sent.bytes,
            rx_bytes: received.bytes,
            tx_messages: sent.messages,
            rx_messages: received.messages,
            tx_passed: sent.passed_messages,
            rx_passed: received.passed_messages,
        }
    }
}

/// Where a socket of ours stands in its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Key of the pair.
    pub(super) id: u64,
    /// Which end we are.
    pub(super) side: u32,
}

/// Reads what the programs remember about a socket of ours, and the place of one that is paired, or about to be.
pub(super) fn locate(kernel: &Kernel, fd: BorrowedFd<'_>) -> (Path, Option<Place>) {
    let own: Own = match kernel.own.of_socket(fd) {
        Ok(Some(own)) => own,
        Ok(None) => return (Path::by_tcp("not_enrolled"), None),
        Err(_) => return (Path { two_queues: true, ..Path::by_tcp("unreadable") }, None),
    };
    if own.unpaired != 0 {
        return (Path::by_tcp(stats::name(own.unpaired)), None);
    }
    (path(kernel, &own), Some(Place { id: own.id, side: own.side }))
}

/// Reads what the programs remember about a pair, from one of its ends.
pub(super) fn look(kernel: &Kernel, place: Place) -> Option<Path> {
    let conn = kernel.conns.get(&place.id).ok().flatten()?;
    Some(match place.side {
        0 => Path::paired(&conn.forward.tally, &conn.backward.tally),
        _ => Path::paired(&conn.backward.tally, &conn.forward.tally),
    })
}

fn path(kernel: &Kernel, own: &Own) -> Path {
    if own.closed != 0 {
        return Path::paired(&own.sent, &own.received);
    }
    match look(kernel, Place { id: own.id, side: own.side }) {
        Some(path) => path,
        // The active end is ours, and the application's end was never seen.
        None if own.role == role::DELIVERY => Path { two_queues: true, ..Path::by_tcp("unpaired") },
        None => Path { two_queues: true, ..Path::by_tcp("unreadable") },
    }
}
