// SPDX-License-Identifier: Apache-2.0
//! What can be seen from outside: access log lines, metrics, and what crosses the wire between nodes.

pub mod access;
pub mod metrics;
pub mod sniffer;

pub use access::AccessEntry;
pub use metrics::Metrics;
pub use sniffer::{Capture, Sniffer};
