// SPDX-License-Identifier: Apache-2.0
//! Renders what the core reports: log lines and metrics; and remembers what somebody may ask about.
//!
//! * [`log`]: the process' log, text or JSON, written by one thread.
//! * [`metrics`]: counters and their exposition. [`process`]: what this process takes of the machine.
//! * [`dns`]: the counters of the DNS proxy.
//! * [`connection`]: one connection's life in both. [`live`]: the connections that are open now.
//! * [`refusals`]: who was turned away lately. [`standing`]: how the sessions stand that tell us what to do.

pub mod connection;
pub mod dns;
pub mod live;
pub mod log;
pub mod metrics;
pub mod process;
pub mod refusals;
pub mod standing;
