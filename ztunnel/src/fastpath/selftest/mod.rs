// SPDX-License-Identifier: Apache-2.0
//! Proves on real sockets, at start, that this kernel does what the fast path needs.
//!
//! Kernel versions say little: whether `FIONREAD` counts what, whether a redirected byte can be
//! peeked at, was changed and changed back in stable releases. So it is tried, in a network
//! namespace of its own, without any packet filter. A check that fails takes away the levels that
//! depend on it.

mod checks;
mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ztunnel_core::fastpath::Level;

use super::loader::Kernel;
use super::status::Check;
use stage::Stage;

/// What is tried, and the highest level that is left if it does not hold.
type Trial = (&'static str, Level, fn(&Stage<'_>) -> Result<String, String>);

/// A check that limits nothing by itself. Nobody enters the map unless the operator named the
/// workload or the level; what such a workload must not do on this kernel is said in the status.
const CAUTION: Level = Level::Full;

const TRIALS: &[Trial] = &[
    ("pair_outbound", Level::Off, checks::pair_outbound),
    ("pair_inbound", Level::Off, checks::pair_inbound),
    ("stranger_not_paired", Level::Off, checks::stranger_not_paired),
    ("switch", Level::Off, checks::switch),
    ("order_under_path_change", Level::Off, checks::order_under_path_change),
    ("half_close", Level::Off, checks::half_close),
    ("bounded_unread", Level::Off, checks::bounded_unread),
    ("bounded_unread_small", Level::Off, checks::bounded_unread_small),
    ("gate_closes", Level::Off, checks::gate_closes),
    ("one_queue_at_a_time", Level::Half, checks::one_queue_at_a_time),
    ("member_fionread", CAUTION, checks::member_fionread),
    ("redirected_fionread", Level::Half, checks::redirected_fionread),
    ("redirected_peek", Level::Half, checks::redirected_peek),
    ("unread_survives_close", Level::Half, checks::unread_survives_close),
];

/// Runs every trial; the highest level that may be used.
pub(super) fn run(kernel: &Kernel, checks: &mut Vec<Check>) -> Level {
    std::thread::scope(|scope| {
        // Its own thread, because it changes its network namespace and never comes back.
        scope.spawn(|| on_stage(kernel, checks)).join().unwrap_or(Level::Off)
    })
}

fn on_stage(kernel: &Kernel, checks: &mut Vec<Check>) -> Level {
    let stage = match Stage::set(kernel) {
        Ok(stage) => stage,
        Err(error) => {
            checks.push(Check { name: "stage", ok: false, detail: error.to_string() });
            return Level::Off;
        }
    };
    let mut ceiling = Level::Full;
    for (name, otherwise, trial) in TRIALS {
        let outcome = catch_unwind(AssertUnwindSafe(|| trial(&stage)))
            .unwrap_or_else(|_| Err("the check itself failed".to_owned()));
        let ok = outcome.is_ok();
        let (Ok(detail) | Err(detail)) = outcome;
        checks.push(Check { name, ok, detail });
        if !ok {
            ceiling = ceiling.min(*otherwise);
        }
        if let Err(error) = stage.reset() {
            checks.push(Check { name: "reset", ok: false, detail: error.to_string() });
            return Level::Off;
        }
    }
    ceiling
}
