// SPDX-License-Identifier: Apache-2.0
//! From samples to statements: medians with their spread, ratios, and whether a difference is one.

use std::collections::BTreeMap;

use crate::plan::{Case, Figure, Load};
use crate::record::{Record, Sample};

/// Median and extremes over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let (min, max) = (
            values.iter().copied().fold(f64::NAN, f64::min),
            values.iter().copied().fold(f64::NAN, f64::max),
        );
        median(values).map(|median| Self { median, min, max })
    }

    /// Half the distance between the extremes, relative to the median.
    pub(crate) fn relative(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median }
    }
}

/// The middle value; the mean of two where there is no middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (left, right) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((left + right) / 2.0)
}

/// How an arm does against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better,
    Worse,
    /// Rounds disagree, or the difference is under two percent.
    Same,
}

/// A difference smaller than this is none.
const NOTHING: f64 = 0.02;

impl Record {
    fn of<'a>(&'a self, arm: &str, case: &Case) -> Vec<&'a Sample> {
        let id = case.id();
        self.samples.iter().filter(|sample| sample.arm == arm && sample.case == id).collect()
    }

    /// A figure over all rounds.
    pub(crate) fn figure(&self, arm: &str, case: &Case, figure: Figure) -> Option<Spread> {
        let values: Vec<f64> =
            self.of(arm, case).iter().filter_map(|sample| read(sample, case, figure)).collect();
        Spread::of(&values)
    }

    /// This arm's median in terms of the other's.
    pub(crate) fn ratio(&self, arm: &str, other: &str, case: &Case, figure: Figure) -> Option<f64> {
        let (mine, theirs) = (self.figure(arm, case, figure)?, self.figure(other, case, figure)?);
        (theirs.median > 0.0).then(|| mine.median / theirs.median)
    }

    /// Round by round against `other`: a difference counts if (nearly) all rounds agree on its sign.
    pub(crate) fn verdict(&self, arm: &str, other: &str, case: &Case, figure: Figure) -> Option<Verdict> {
        let theirs: BTreeMap<usize, f64> = self
            .of(other, case)
            .iter()
            .filter_map(|sample| Some((sample.round, read(sample, case, figure)?)))
            .collect();
        let ratios: Vec<f64> = self
            .of(arm, case)
            .iter()
            .filter_map(|sample| {
                Some(read(sample, case, figure)? / theirs.get(&sample.round).filter(|value| **value > 0.0)?)
            })
            .collect();
        let middle = median(&ratios)?;
        let above = ratios.iter().filter(|ratio| **ratio > 1.0).count();
        let agreed = above.max(ratios.len() - above);
        // One round of ten may be an accident; of fewer, none.
        let clear =
            agreed + ratios.len() / 10 >= ratios.len() && (middle - 1.0).abs() > NOTHING && ratios.len() > 1;
        Some(match (clear, (middle > 1.0) == figure.more_is_better()) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        })
    }

    /// The percentile curve: at each quantile the median over the rounds that reach it.
    pub(crate) fn curve(&self, arm: &str, case: &Case) -> Vec<[f64; 2]> {
        let curves: Vec<&[[f64; 2]]> = self
            .of(arm, case)
            .iter()
            .filter_map(|sample| Some(sample.outcome.latency.as_ref()?.curve.as_slice()))
            .collect();
        let longest = curves.iter().map(|curve| curve.len()).max().unwrap_or(0);
        (0..longest)
            .filter_map(|at| {
                let points: Vec<[f64; 2]> =
                    curves.iter().filter_map(|curve| curve.get(at).copied()).collect();
                let values: Vec<f64> = points.iter().map(|point| point[1]).collect();
                // A tail that only a minority of rounds reached says little.
                (points.len() * 2 > curves.len()).then_some([points.first()?[0], median(&values)?])
            })
            .collect()
    }

    /// Messages by redirect, messages by TCP with their reasons, and the mode in force.
    pub(crate) fn fastpath(&self, arm: &str, case: &Case) -> Option<(u64, BTreeMap<String, u64>, String)> {
        let mut seen = None;
        for fastpath in self.of(arm, case).iter().filter_map(|sample| sample.fastpath.as_ref()) {
            let (redirected, passed, mode) = seen.get_or_insert_with(|| (0, BTreeMap::new(), String::new()));
            *redirected += fastpath.redirected;
            for (reason, count) in &fastpath.passed {
                *passed.entry(reason.clone()).or_default() += count;
            }
            mode.clone_from(&fastpath.mode);
        }
        seen
    }

    /// Everything that went wrong in this cell, and the first text of it.
    pub(crate) fn errors<'a>(&'a self, arm: &str, case: &Case) -> (u64, Option<&'a str>) {
        let count = self.of(arm, case).iter().map(|sample| sample.outcome.errors).sum();
        (
            count,
            self.of(arm, case)
                .iter()
                .find_map(|sample| sample.outcome.error_texts.first())
                .map(String::as_str),
        )
    }
}

/// One figure of one sample.
fn read(sample: &Sample, case: &Case, figure: Figure) -> Option<f64> {
    let latency = sample.outcome.latency.as_ref();
    let per_unit = |seconds: f64| {
        let units = if case.load == Load::Bulk {
            sample.outcome.bytes_total as f64 / 1e9
        } else {
            sample.outcome.ops_total as f64 / 1e4
        };
        (units > 0.0 && case.load != Load::Idle).then(|| seconds / units)
    };
    let meshed = sample.rss_after > 0;
    match figure {
        Figure::P50 => latency.map(|latency| latency.p50),
        Figure::P90 => latency.map(|latency| latency.p90),
        Figure::P99 => latency.map(|latency| latency.p99),
        Figure::P999 => latency.map(|latency| latency.p999),
        Figure::Rate => (sample.outcome.rate > 0.0 && case.load != Load::Idle).then_some(sample.outcome.rate),
        Figure::Gbit => (case.load == Load::Bulk && sample.outcome.gbit > 0.0).then_some(sample.outcome.gbit),
        Figure::CpuNode => per_unit(sample.cpu_node),
        Figure::CpuZtunnel => per_unit(sample.cpu_ztunnel).filter(|_| meshed),
        Figure::Rss => meshed.then_some(sample.rss_after as f64 / 1024.0),
        Figure::RssPerConn => (meshed && case.load == Load::Idle)
            .then(|| sample.rss_after.saturating_sub(sample.rss_before) as f64 / case.conns as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::plan::Place;

    fn case() -> Case {
        Case { load: Load::Crr, conns: 1, size: 64, place: Place::SameNode }
    }

    fn record(rates: &[(&str, &[f64])]) -> Record {
        let mut record = Record::default();
        for (arm, rates) in rates {
            for (round, &rate) in rates.iter().enumerate() {
                let outcome = Outcome { rate, ..Outcome::default() };
                let (arm, case) = ((*arm).to_owned(), case().id());
                record.samples.push(Sample { arm, case, round, outcome, ..Sample::default() });
            }
        }
        record
    }

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_difference_is_one_when_the_rounds_agree() {
        let record = record(&[
            ("off", &[100.0, 110.0, 90.0, 100.0, 105.0]),
            ("faster", &[120.0, 130.0, 110.0, 125.0, 121.0]),
            ("slower", &[90.0, 95.0, 80.0, 85.0, 90.0]),
            ("mixed", &[120.0, 100.0, 110.0, 90.0, 121.0]),
            ("hair", &[101.0, 111.0, 91.0, 101.0, 106.0]),
        ]);
        let verdict = |arm| record.verdict(arm, "off", &case(), Figure::Rate);
        assert_eq!(verdict("faster"), Some(Verdict::Better));
        assert_eq!(verdict("slower"), Some(Verdict::Worse));
        assert_eq!(verdict("mixed"), Some(Verdict::Same));
        assert_eq!(verdict("hair"), Some(Verdict::Same));
        assert_eq!(verdict("absent"), None);
    }

    #[test]
    fn one_round_proves_nothing() {
        let record = record(&[("off", &[100.0]), ("faster", &[200.0])]);
        assert_eq!(record.verdict("faster", "off", &case(), Figure::Rate), Some(Verdict::Same));
    }
}
