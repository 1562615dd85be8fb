// SPDX-License-Identifier: Apache-2.0
//! `ztunnel doctor`: one line per kernel or privilege need, met or not, with the fix.
//!
//! Needs are tried, never derived from a version number. Two halves:
//! * [`probes`] try things and collect [`facts::Facts`]; every probe is a few lines of IO;
//! * [`judge`] turns facts into a [`Report`]: a pure function, tested as data.
//!
//! Looking changes nothing on the node: no pin is left, the node agent is not spoken to (it would hand the pods over
//! to us), and the fast path is attached only for as long as its self-test takes.

mod facts;
mod judge;
mod mounts;
mod probes;
mod report;
#[cfg(test)]
mod tests;

use crate::config::env::Env;
pub use report::{Line, Need, Report, Topic};

/// Tries everything that ztunnel needs, with the settings in `env`.
pub fn examine(env: &impl Env) -> Report {
    judge::report(&probes::collect(env))
}
