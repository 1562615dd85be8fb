// SPDX-License-Identifier: Apache-2.0
//! What a run of the benchmark leaves behind: every sample as it was read. `bench.json` is this, nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::plan::{Arm, Case};

/// The whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Changes when a reader of the file would have to.
    pub(crate) schema: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) machine: Machine,
    pub(crate) method: Method,
    pub(crate) arms: Vec<Arm>,
    pub(crate) cases: Vec<Case>,
    pub(crate) samples: Vec<Sample>,
    /// What went otherwise than planned.
    pub(crate) notes: Vec<String>,
}

/// The machine it ran on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) congestion: String,
    /// Load average when the run began: other work on the machine.
    pub(crate) busy: String,
}

/// How it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Method {
    pub(crate) rounds: usize,
    pub(crate) secs: f64,
    pub(crate) warmup: f64,
    /// `nonblocking` or `blocking` sockets in client and server.
    pub(crate) io: String,
    /// Core of the client and of the servers; the proxies are not pinned.
    pub(crate) cores: Option<[usize; 2]>,
}

/// One case, once, in one arm.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) arm: String,
    pub(crate) case: String,
    pub(crate) round: usize,
    pub(crate) outcome: Outcome,
    /// CPU seconds of the whole machine and of the ztunnel processes, over the whole run with warm-up.
    pub(crate) cpu_node: f64,
    pub(crate) cpu_ztunnel: f64,
    /// Resident memory of the ztunnel processes before and after (idle: while held), KiB.
    pub(crate) rss_before: u64,
    pub(crate) rss_after: u64,
    /// What the fast path did meanwhile; absent where none was loaded.
    pub(crate) fastpath: Option<Fastpath>,
}

/// Growth of the fast path's counters during a sample, all nodes together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Fastpath {
    /// The mode that was in force, with the reason where it is not the configured one.
    pub(crate) mode: String,
    pub(crate) redirected: u64,
    /// Messages that took TCP, by reason.
    pub(crate) passed: BTreeMap<String, u64>,
}
