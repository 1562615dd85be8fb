// SPDX-License-Identifier: Apache-2.0
//! When a run warms up, measures and ends, and what each connection counted meanwhile.

use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::outcome::{Latency, Outcome};

/// More errors than this end a run: what it measures then is its own failing.
pub(crate) const TOO_MANY: u64 = 1000;

/// The plan of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Window {
    /// A run that begins now.
    pub(crate) fn begin(warmup: Duration, length: Duration) -> Self {
        let from = Instant::now() + warmup;
        Self { from, to: from + length }
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.to
    }

    pub(crate) fn counts(&self, now: Instant) -> bool {
        now >= self.from && now < self.to
    }
}

/// What a connection, a thread or a whole run counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) latency: Histogram,
    pub(crate) ops_total: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_total: u64,
    pub(crate) errors: u64,
    pub(crate) error_texts: Vec<String>,
    /// Where the measured window was not the planned one.
    pub(crate) seconds: Option<f64>,
}

impl Tally {
    /// One operation that began at `began` (or should have) and ended at `now`.
    pub(crate) fn done(&mut self, window: &Window, began: Instant, now: Instant, bytes: usize) {
        self.ops_total += 1;
        self.bytes_total += bytes as u64;
        if window.counts(now) {
            self.bytes += bytes as u64;
            self.latency.record(now.saturating_duration_since(began));
        }
    }

    pub(crate) fn error(&mut self, text: impl std::fmt::Display) {
        self.errors += 1;
        if self.error_texts.len() < 5 {
            self.error_texts.push(text.to_string());
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.ops_total += other.ops_total;
        self.bytes += other.bytes;
        self.bytes_total += other.bytes_total;
        self.errors += other.errors;
        let room = 5_usize.saturating_sub(self.error_texts.len());
        self.error_texts.extend(other.error_texts.iter().take(room).cloned());
        self.seconds = match (self.seconds, other.seconds) {
            (Some(mine), Some(theirs)) => Some(mine.max(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }

    /// The line to print.
    pub(crate) fn outcome(self, load: &str, conns: usize, size: usize, length: Duration) -> Outcome {
        let seconds = self.seconds.unwrap_or(length.as_secs_f64());
        let histogram = &self.latency;
        let ops = histogram.count();
        let latency = (ops > 0).then(|| Latency {
            min: histogram.min(),
            mean: histogram.mean(),
            p50: histogram.quantile(0.5),
            p90: histogram.quantile(0.9),
            p99: histogram.quantile(0.99),
            p999: histogram.quantile(0.999),
            max: histogram.max(),
            curve: histogram.curve(),
        });
        Outcome {
            load: load.to_owned(),
            conns,
            size,
            seconds,
            ops,
            ops_total: self.ops_total,
            bytes: self.bytes,
            bytes_total: self.bytes_total,
            rate: ops as f64 / seconds,
            gbit: self.bytes as f64 * 8.0 / seconds / 1e9,
            errors: self.errors,
            error_texts: self.error_texts,
            latency,
            cpu: own_cpu(),
        }
    }
}

/// CPU seconds of this process so far.
fn own_cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        micros as f64 / 1e6
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_inside_the_window_is_measured() {
        let window = Window::begin(Duration::from_secs(1), Duration::from_secs(1));
        let mut tally = Tally::default();
        let began = window.from - Duration::from_millis(500);
        for end in [500, 1500, 2500] {
            tally.done(&window, began, began + Duration::from_millis(end - 100), 10);
        }
        assert_eq!((tally.latency.count(), tally.ops_total), (1, 3));
        assert_eq!((tally.bytes, tally.bytes_total), (10, 30));
    }

    #[test]
    fn a_sum_keeps_the_first_errors() {
        let mut sum = Tally::default();
        for number in 0..9 {
            let mut one = Tally::default();
            one.error(number);
            sum.add(&one);
        }
        assert_eq!((sum.errors, sum.error_texts.len()), (9, 5));
    }
}
