// SPDX-License-Identifier: Apache-2.0
//! Latencies in log-linear buckets: every value is kept within 1.6 %, from one nanosecond to hours.
//!
//! Each power of two is cut into 64 equal parts, so recording is a shift and an add, and a histogram of
//! millions of values is 30 KiB.

use std::time::Duration;

/// 64 parts of every power of two.
const PARTS: u32 = 6;
const BUCKETS: usize = 60 << PARTS;

/// Counts of durations.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum: 0.0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[index(nanos)] += 1;
        self.count += 1;
        self.sum += nanos as f64;
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds all that `other` counted.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Mean in microseconds; zero if nothing was counted.
    pub(crate) fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 / 1000.0 }
    }

    /// The smallest duration, in microseconds.
    pub(crate) fn min(&self) -> f64 {
        if self.count == 0 { 0.0 } else { micros(self.min) }
    }

    /// The longest duration, in microseconds.
    pub(crate) fn max(&self) -> f64 {
        micros(self.max)
    }

    /// The duration in microseconds that a share `quantile` of all values does not exceed.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let mut left = (quantile.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0);
        for (at, &bucket) in self.buckets.iter().enumerate() {
            left -= bucket as f64;
            if bucket > 0 && left <= 0.0 {
                return micros(middle(at).clamp(self.min, self.max));
            }
        }
        self.max()
    }

    /// Points for a percentile curve: quantiles that come ever closer to one, as long as values support them.
    pub(crate) fn curve(&self) -> Vec<[f64; 2]> {
        let mut points = Vec::new();
        let mut tail = 1.0;
        while self.count as f64 * tail >= 1.0 && points.len() < 60 {
            let quantile = 1.0 - tail;
            points.push([quantile, self.quantile(quantile)]);
            tail /= std::f64::consts::SQRT_2;
        }
        points
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// The bucket of a value: its highest bit and the six bits below it.
fn index(nanos: u64) -> usize {
    let exponent = (64 - nanos.leading_zeros()).saturating_sub(PARTS + 1);
    let part = usize::try_from(nanos >> exponent).unwrap_or(0);
    (part + ((exponent as usize) << PARTS)).min(BUCKETS - 1)
}

/// The value in the middle of a bucket.
fn middle(index: usize) -> u64 {
    let exponent = (index >> PARTS).saturating_sub(1);
    let part = (index - (exponent << PARTS)) as u64;
    (part << exponent) + (1_u64 << exponent) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_kept_within_two_percent() {
        let mut value = 1_u64;
        while value < 1 << 50 {
            for value in [value, value + value / 3, value * 2 - 1] {
                let kept = middle(index(value));
                let error = (kept as f64 - value as f64).abs() / value as f64;
                assert!(error <= 0.016, "{value} kept as {kept}");
            }
            value *= 2;
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, want) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.quantile(quantile);
            assert!((got - want).abs() / want < 0.02, "{quantile}: {got}");
        }
        assert!((histogram.mean() - 500.5).abs() < 0.01);
        assert!((histogram.min() - 1.0).abs() < f64::EPSILON);
        let curve = histogram.curve();
        assert!(curve.is_sorted_by(|a, b| a[0] < b[0] && a[1] <= b[1]), "{curve:?}");
    }

    #[test]
    fn two_halves_make_the_whole() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        for micros in 1..=500 {
            low.record(Duration::from_micros(micros));
            high.record(Duration::from_micros(500 + micros));
        }
        low.add(&high);
        assert_eq!(low.count(), 1000);
        assert!((low.quantile(0.5) - 500.0).abs() < 10.0);
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let empty = Histogram::default();
        assert_eq!((empty.min(), empty.max(), empty.mean()), (0.0, 0.0, 0.0));
        assert!(empty.curve().is_empty());
    }
}
