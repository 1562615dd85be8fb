// SPDX-License-Identifier: Apache-2.0
//! An invented run, for the tests of the report and for looking at its design: not a measurement of anything.

use std::collections::BTreeMap;

use crate::outcome::{Latency, Outcome};
use crate::plan::{Load, Size, arms, cases};
use crate::record::{Fastpath, Machine, Method, Record, Sample};

/// All cells filled, with winners, losers, a failure and a gap.
pub(crate) fn record() -> Record {
    let mut record = Record {
        schema: 1,
        arms: arms(),
        cases: cases(Size::Full),
        machine: Machine {
            cpu: "invented".to_owned(),
            cores: 2,
            kernel: "6.0".to_owned(),
            ..Machine::default()
        },
        method: Method {
            rounds: 5,
            secs: 1.0,
            warmup: 0.3,
            io: "nonblocking".to_owned(),
            cores: Some([0, 1]),
        },
        notes: vec!["invented figures: this page shows the design of the report".to_owned()],
        ..Record::default()
    };
    let speed = [1.0, 0.31, 0.30, 0.33, 0.44, 0.31];
    for (at, arm) in arms().iter().enumerate() {
        for (number, case) in cases(Size::Full).iter().enumerate() {
            for round in 0..5 {
                let wobble = 1.0 + ((round * 7 + number * 3 + at) % 5) as f64 / 60.0;
                let speed =
                    if arm.id == "full" && case.load == Load::Bulk { 0.25 } else { speed[at] } * wobble;
                record.samples.push(Sample {
                    arm: arm.id.clone(),
                    case: case.id(),
                    round,
                    outcome: outcome(case.load, speed),
                    cpu_node: 2.0 / speed,
                    cpu_ztunnel: if at == 0 { 0.0 } else { 1.0 / speed },
                    rss_before: if at == 0 { 0 } else { 16 << 10 },
                    rss_after: if at == 0 { 0 } else { 24 << 10 },
                    fastpath: (at > 2).then(|| Fastpath {
                        mode: arm.id.clone(),
                        redirected: 9000,
                        passed: BTreeMap::from([("credit".to_owned(), 700), ("unpaired".to_owned(), 30)]),
                    }),
                });
            }
        }
    }
    let last = record.cases.last().map(crate::plan::Case::id).unwrap_or_default();
    record.samples.retain(|sample| sample.arm != "half" || sample.case != last);
    record
}

fn outcome(load: Load, speed: f64) -> Outcome {
    let at = |quantile: f64| 100.0 / speed * (1.0 + 0.25 * (1.0 / (1.0 - quantile)).log2().powf(1.6));
    let curve = (0..28)
        .map(|step| 1.0 - 0.5_f64.powf(f64::from(step) / 2.0))
        .map(|quantile| [quantile, at(quantile)]);
    let latency = Latency {
        min: at(0.0),
        mean: at(0.6),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(0.9999),
        curve: curve.collect(),
    };
    let bulk = load == Load::Bulk;
    Outcome {
        seconds: 1.0,
        ops: 10_000,
        ops_total: 12_000,
        bytes_total: 1_500_000_000,
        rate: if bulk { 0.0 } else { 40_000.0 * speed },
        gbit: if bulk { 14.0 * speed } else { 0.0 },
        latency: (!bulk && load != Load::Idle).then_some(latency),
        ..Outcome::default()
    }
}
