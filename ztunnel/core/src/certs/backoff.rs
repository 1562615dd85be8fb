// SPDX-License-Identifier: Apache-2.0
//! How long to wait after a failed request, per identity.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(150);
/// After this long without success there is nothing left to grow.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// 1 s, doubled at each failure, ±20 %, at most 150 s; always 150 s once it has failed for 15 minutes.
///
/// Source: control-plane contract, section 4.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    since: Instant,
    next: Duration,
}

impl Backoff {
    /// The first failure happened at `now`.
    #[must_use]
    pub fn begin(now: Instant) -> Self {
        Self { since: now, next: FIRST }
    }

    /// The wait after one more failure at `now`; `entropy` spreads nodes that failed together.
    pub fn next_wait(&mut self, now: Instant, entropy: u64) -> Duration {
        if now.saturating_duration_since(self.since) >= PATIENCE {
            return LAST;
        }
        let base = self.next;
        self.next = base.saturating_mul(2).min(LAST);
        // 0 to 400 thousandths, minus 200.
        let spread = u32::try_from(entropy % 401).unwrap_or_default();
        (base * (800 + spread) / 1000).min(LAST)
    }
}
