// SPDX-License-Identifier: Apache-2.0
//! What an operator sees: the mode and why, the self-test, the counters.

use std::collections::BTreeMap;

use serde::Serialize;
use ztunnel_common::stats;

use super::loader::Kernel;

/// Everything about the fast path of this node, as `/status` has it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Configured and effective mode.
    pub mode: ModeStatus,
    /// What was tried at start, and what came of it.
    pub self_test: Vec<Check>,
    /// The counters.
    pub fastpath: Traffic,
}

/// The mode and why it is what it is.
#[derive(Clone, Debug, Serialize)]
pub struct ModeStatus {
    /// As the operator set it.
    pub configured: String,
    /// As it is.
    pub effective: String,
    /// Why.
    pub reason: String,
    /// Whether the node is switched on now.
    pub on: bool,
}

/// One step of the self-test.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which.
    pub name: &'static str,
    /// Whether it held.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// The kernel's counters since start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Traffic {
    /// Pairs made.
    pub paired: u64,
    /// Sockets with a role that found no pair.
    pub unpaired: u64,
    /// Messages that took the fast path.
    pub redirected_messages: u64,
    /// Their bytes.
    pub redirected_bytes: u64,
    /// Bytes that members sent by TCP.
    pub passed_bytes: u64,
    /// Members that left the map again.
    pub left: u64,
    /// Messages of members that went by TCP, by reason.
    pub passed: BTreeMap<&'static str, u64>,
    /// Sockets that found no pair, by reason.
    pub not_paired: BTreeMap<&'static str, u64>,
}

impl Traffic {
    pub(super) fn read(kernel: &Kernel) -> Self {
        let mut traffic = Self::default();
        for &(slot, name) in stats::ALL {
            let count = kernel.count(slot);
            match slot {
                stats::PAIRED => traffic.paired = count,
                stats::REDIRECTED_MESSAGES => traffic.redirected_messages = count,
                stats::REDIRECTED_BYTES => traffic.redirected_bytes = count,
                stats::PASSED_BYTES => traffic.passed_bytes = count,
                stats::LEFT => traffic.left = count,
                slot if slot >= stats::FIRST_PASS => {
                    traffic.passed.insert(name, count);
                }
                _ => {
                    traffic.unpaired += count;
                    traffic.not_paired.insert(name, count);
                }
            }
        }
        traffic
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MapFill {
    /// Which.
    pub name: &'static str,
    /// Its entries.
    pub entries: usize,
    /// The most it takes.
    pub max_entries: usize,
}

/// The checks that did not hold, in words.
pub(super) fn failures(checks: &[Check]) -> String {
    let failed: Vec<String> = checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{} ({})", check.name, check.detail))
        .collect();
    failed.join(", ")
}
