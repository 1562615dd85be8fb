// SPDX-License-Identifier: Apache-2.0
//! The one line of JSON that a run of `load` prints: what it measured. `bench` and `demo` read it.

use serde::{Deserialize, Serialize};

/// What one run measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// `rr`, `crr`, `bulk` or `idle`.
    pub(crate) load: String,
    /// Connections, or streams, or how many at a time.
    pub(crate) conns: usize,
    /// Bytes of a request; zero for bulk.
    pub(crate) size: usize,
    /// Length of the measured window.
    pub(crate) seconds: f64,
    /// Requests or connections that ended inside the window.
    pub(crate) ops: u64,
    /// The same with the warm-up, for costs that are read around the whole run.
    pub(crate) ops_total: u64,
    /// Payload bytes inside the window, both directions.
    pub(crate) bytes: u64,
    /// Payload bytes of the whole run.
    pub(crate) bytes_total: u64,
    /// Operations per second.
    pub(crate) rate: f64,
    /// Payload in gigabits per second.
    pub(crate) gbit: f64,
    /// Everything that did not go as it should, wrong bytes included.
    pub(crate) errors: u64,
    /// The first few of them.
    pub(crate) error_texts: Vec<String>,
    /// In microseconds; absent for bulk and idle.
    pub(crate) latency: Option<Latency>,
    /// CPU seconds of the load generator itself.
    pub(crate) cpu: f64,
}

/// Quantiles in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) min: f64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// `[quantile, microseconds]`, towards the tail in ever smaller steps.
    pub(crate) curve: Vec<[f64; 2]>,
}
