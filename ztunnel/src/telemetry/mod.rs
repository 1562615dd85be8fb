// SPDX-License-Identifier: Apache-2.0
//! Renders what the core reports: log lines and metrics.
//!
//! * [`log`]: the process' log, text or JSON, written by one thread.
//! * [`metrics`]: counters and their exposition.
//! * [`dns`]: the counters of the DNS proxy.
//! * [`connection`]: one connection's life in both.

pub mod connection;
pub mod dns;
pub mod log;
pub mod metrics;
