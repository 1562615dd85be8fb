// SPDX-License-Identifier: Apache-2.0
//! The dates of a certificate, and when they make us ask for the next one.

use std::time::{Duration, Instant, SystemTime};

/// Certificates are not renewed more often than this, however short they live.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// From when and until when a certificate is valid, by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

/// When a certificate is renewed and when it ends, by the clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The next one is asked for from here on.
    pub renew_at: Instant,
    /// It is of no use any more.
    pub ends_at: Instant,
}

/// A certificate whose dates make it useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DateError {
    /// It ended before it began.
    #[error("its validity ends before it begins")]
    Reversed,
    /// It is over.
    #[error("it expired {}s ago (is the clock of this node, or of the authority, wrong?)", .0.as_secs())]
    Expired(Duration),
}

impl Validity {
    /// True if it is over at `wall`.
    #[must_use]
    pub fn is_over(&self, wall: SystemTime) -> bool {
        wall >= self.not_after
    }

    /// What becomes of a certificate that arrives at `now`, when the wall clock says `wall`.
    ///
    /// Half of its life is the time to renew it. One that arrives later than that, because it was dated back by
    /// more than it has left, is renewed when half of the rest is over.
    ///
    /// A certificate that begins in the future is accepted: peers judge it by their own clocks.
    ///
    /// # Errors
    /// It is of no use to anybody.
    pub fn life(&self, wall: SystemTime, now: Instant) -> Result<Life, DateError> {
        let whole =
            self.not_after.duration_since(self.not_before).map_err(|_negative| DateError::Reversed)?;
        let left =
            self.not_after.duration_since(wall).map_err(|error| DateError::Expired(error.duration()))?;
        if left.is_zero() {
            return Err(DateError::Expired(Duration::ZERO));
        }
        let until_half = left.checked_sub(whole / 2).filter(|until| !until.is_zero());
        let renew_in = until_half.unwrap_or(left / 2).max(LEAST_AGE);
        // Beyond what the clock can count is as good as never.
        let at = |after: Duration| now.checked_add(after).unwrap_or(now + FAR);
        Ok(Life { renew_at: at(renew_in), ends_at: at(left) })
    }
}

/// Longer than any process lives.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
