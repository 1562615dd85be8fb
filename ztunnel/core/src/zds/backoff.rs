// SPDX-License-Identifier: Apache-2.0
//! How long to wait before the next attempt to reach the node agent.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const LAST: Duration = Duration::from_secs(15);

/// 20 ms, doubled at each failure, 15 seconds at most.
#[derive(Clone, Debug)]
pub struct ConnectBackoff {
    next: Duration,
}

impl Default for ConnectBackoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl ConnectBackoff {
    /// The wait after one more failed attempt.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(LAST);
        wait
    }

    /// A connection stood: the next failure is a first one again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_fifteen_seconds() {
        let mut backoff = ConnectBackoff::default();
        let waits: Vec<u128> = (0..12).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        backoff.reset();
        assert_eq!(backoff.next_wait().as_millis(), 20);
    }
}
