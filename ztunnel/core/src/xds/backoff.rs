// SPDX-License-Identifier: Apache-2.0
//! How streams end, and when to dial again: always after a wait, whatever the end was.
//!
//! The wait doubles with every stream on which nothing was achieved, and chance spreads the nodes of a mesh over it,
//! so that a control plane that comes back is not met by all of them at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const LAST: Duration = Duration::from_secs(15);
/// After a stream that did its work: istiod ends every stream after half an hour, and all when it restarts.
const ROUTINE: Duration = Duration::from_millis(200);

/// How a stream came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was never answered: no connection, no TLS, no token, or a refusal.
    NotConnected(String),
    /// The connection went away beneath it.
    Lost(String),
    /// The server ended it with an error, or sent what cannot be read.
    Failed(String),
    /// The server ended it and said that all is well.
    Clean,
}

impl Ending {
    /// The end of a stream that was answered, by gRPC status.
    #[must_use]
    pub fn of_status(code: i32, message: &str) -> Self {
        let text = || message.to_owned();
        let gone = ["transport is closing", "received prior goaway"];
        match code {
            0 => Self::Clean,
            // Cancelled, Unknown, DeadlineExceeded.
            1 | 2 | 4 => Self::Lost(text()),
            // Unavailable.
            14 if gone.iter().any(|gone| message.contains(gone)) => Self::Lost(text()),
            _ => Self::Failed(text()),
        }
    }

    /// The `reason` of `istio_xds_connection_terminations_total`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotConnected(_) => "ConnectionError",
            Self::Lost(_) => "Reconnect",
            Self::Failed(_) => "Error",
            Self::Clean => "Complete",
        }
    }

    /// What was said at the end.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::NotConnected(reason) | Self::Lost(reason) | Self::Failed(reason) => reason,
            Self::Clean => "the control plane ended the stream",
        }
    }
}

/// When to dial again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After this long.
    pub after: Duration,
}

/// The state of the waits.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a stream that achieved nothing.
    pub(super) fn after_failure(&mut self, entropy: u64) -> Retry {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(LAST);
        Retry { after: spread(wait, entropy) }
    }

    /// The wait after a stream that did its work.
    pub(super) fn after_success(&mut self, entropy: u64) -> Retry {
        self.next = FIRST;
        Retry { after: spread(ROUTINE, entropy) }
    }
}

/// Somewhere between half of it and all of it.
fn spread(wait: Duration, entropy: u64) -> Duration {
    let half = wait / 2;
    let share = u32::try_from(entropy >> 32).unwrap_or(u32::MAX);
    half + Duration::from_nanos(
        u64::try_from((half.as_nanos() * u128::from(share)) >> 32).unwrap_or(u64::MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_fifteen_seconds_and_chance_takes_up_to_half_of_it() {
        let (mut longest, mut shortest) = (Backoff::default(), Backoff::default());
        let mut waits = Vec::new();
        for _ in 0..12 {
            let (long, short) = (longest.after_failure(u64::MAX).after, shortest.after_failure(0).after);
            assert!(
                short * 2 <= long + Duration::from_millis(1) && long <= short * 2,
                "{short:?} to {long:?}"
            );
            waits.push(short.as_millis() * 2);
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        assert_eq!(shortest.after_success(0).after, ROUTINE / 2);
        assert_eq!(shortest.after_failure(0).after, FIRST / 2);
    }

    #[test]
    fn every_end_has_the_label_of_the_contract() {
        for (code, message, label) in [
            (0, "", "Complete"),
            (1, "", "Reconnect"),
            (2, "h2 protocol error", "Reconnect"),
            (4, "", "Reconnect"),
            (14, "transport is closing", "Reconnect"),
            (14, "overloaded", "Error"),
            (16, "", "Error"),
            (8, "too large", "Error"),
        ] {
            assert_eq!(Ending::of_status(code, message).label(), label, "{code} {message}");
        }
        assert_eq!(Ending::NotConnected(String::new()).label(), "ConnectionError");
    }
}
