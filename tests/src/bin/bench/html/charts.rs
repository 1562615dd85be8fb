// SPDX-License-Identifier: Apache-2.0
//! The pictures of the report, as inline SVG: bars with their spread, latency over percentiles.

use std::fmt::Write as _;

use super::escape;
use crate::plan::{BASELINE, Case, Load};
use crate::record::Record;
use crate::summary::Verdict;
use crate::table::number;

/// One color per arm, told apart also without color vision: light, dark, and the dashes of its line.
const COLORS: &[(&str, &str, &str, &str)] = &[
    ("direct", "#8a9097", "#8e959c", "1 3"),
    ("iptables", "#2166ac", "#5fa3e0", ""),
    ("loaded-off", "#7fb2dc", "#3f6f9c", "6 3"),
    ("half", "#d98a1f", "#e3a444", "8 2 2 2"),
    ("full", "#0f8a72", "#35bfa3", ""),
    ("auto", "#8b4fa8", "#bd8bd6", "4 2"),
];

/// The style rules that give each arm its color.
pub(super) fn arm_styles(record: &Record) -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for arm in &record.arms {
        let Some((_, day, night, dashes)) = COLORS.iter().find(|(id, ..)| *id == arm.base()) else {
            continue;
        };
        // A variant has the color of what it varies.
        let (id, dashes) = (arm.class(), if arm.of.is_empty() { dashes } else { "1 4" });
        write!(light, ".a-{id}{{--arm:{day}}}").ok();
        write!(dark, ".a-{id}{{--arm:{night}}}").ok();
        if !dashes.is_empty() {
            write!(light, ".curve.a-{id}{{stroke-dasharray:{dashes}}}").ok();
        }
    }
    format!("{light}@media (prefers-color-scheme:dark){{{dark}}}")
}

/// The headline figure of one case: a bar per arm, with its extremes, its ratio to direct, and who loses.
pub(super) fn bars(record: &Record, case: &Case) -> String {
    const ROW: f64 = 21.0;
    const LEFT: f64 = 66.0;
    const WIDTH: f64 = 340.0;
    let figure = case.headline();
    let worth = |arm: &str| record.figure(arm, case, figure).is_some() || record.errors(arm, case).0 > 0;
    let rows: Vec<_> = record.arms.iter().filter(|arm| worth(&arm.id)).collect();
    let top = rows
        .iter()
        .filter_map(|arm| record.figure(&arm.id, case, figure))
        .map(|spread| spread.max)
        .fold(0.0, f64::max);
    if rows.is_empty() || top <= 0.0 {
        return String::new();
    }
    let scale = |value: f64| value / top * (WIDTH - LEFT - 112.0);
    let mut marks = String::new();
    for (at, arm) in rows.iter().enumerate() {
        let y = at as f64 * ROW;
        let id = escape(&arm.id);
        write!(marks, "<text x=0 y={:.1}>{id}</text>", y + 14.0).ok();
        let Some(spread) = record.figure(&arm.id, case, figure) else {
            write!(marks, "<text x={LEFT} y={:.1} class=badt>failed</text>", y + 14.0).ok();
            continue;
        };
        let (from, to) = (LEFT + scale(spread.min), LEFT + scale(spread.max));
        write!(
            marks,
            "<rect class=\"bar a-{}\" x={LEFT} y={:.1} width={:.1} height=13 rx=2 />\
             <path class=spread d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {up:.1}v6M{to:.1} {up:.1}v6\" fill=none />",
            arm.class(),
            y + 3.5,
            scale(spread.median).max(1.0),
            middle = y + 10.0,
            up = y + 7.0,
        )
        .ok();
        let x = LEFT + scale(spread.max).max(scale(spread.median)) + 6.0;
        let ratio = record
            .ratio(&arm.id, "direct", case, figure)
            .filter(|_| arm.id != "direct")
            .map_or_else(String::new, |ratio| format!(" <tspan class=dim>{ratio:.2}x</tspan>"));
        let verdict = record
            .verdict(&arm.id, arm.baseline(), case, figure)
            .filter(|_| arm.id != "direct" && arm.id != BASELINE);
        let verdict = match verdict {
            Some(Verdict::Better) => " <tspan class=goodt>better</tspan>",
            Some(Verdict::Worse) => " <tspan class=badt>worse</tspan>",
            _ => "",
        };
        write!(marks, "<text x={x:.1} y={:.1}>{}{ratio}{verdict}</text>", y + 14.0, number(spread.median))
            .ok();
    }
    let better = if figure.more_is_better() { "more is better" } else { "less is better" };
    format!(
        "<figure><figcaption>{} <small>{}, {better}</small></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {:.0}\" role=img aria-label=\"{0}, {1}\">{marks}</svg></figure>\n",
        case.title(),
        figure.title(),
        rows.len() as f64 * ROW + 2.0,
    )
}

/// Latency over percentiles, both axes logarithmic: the tail gets the room it deserves.
pub(super) fn latency(record: &Record, case: &Case) -> String {
    if !matches!(case.load, Load::Rr | Load::OpenLoop | Load::Crr) {
        return String::new();
    }
    let curves: Vec<_> = record
        .arms
        .iter()
        .map(|arm| (arm, record.curve(&arm.id, case)))
        .filter(|(_, curve)| curve.len() > 2)
        .collect();
    let values = || curves.iter().flat_map(|(_, curve)| curve.iter());
    // The very first values are the luckiest request, not latency: the curve begins at the first percentile.
    let low = values().map(|point| point[1]).fold(f64::INFINITY, f64::min);
    let high = values().map(|point| point[1]).fold(0.0, f64::max);
    let nines = values().map(|point| -(1.0 - point[0]).log10()).fold(1.0, f64::max);
    if curves.is_empty() || low <= 0.0 || high <= low {
        return String::new();
    }
    let frame = Frame { low: low.log10(), high: high.log10(), nines };
    let mut marks = frame.axes();
    for (arm, curve) in &curves {
        let points: Vec<String> =
            curve.iter().map(|point| format!("{:.1},{:.1}", frame.x(point[0]), frame.y(point[1]))).collect();
        write!(marks, "<polyline class=\"curve a-{}\" points=\"{}\" />", arm.class(), points.join(" ")).ok();
    }
    format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {} {}\" role=img \
         aria-label=\"latency percentiles, {0}\">{marks}</svg></figure>\n",
        case.title(),
        Frame::WIDTH,
        Frame::HEIGHT,
    )
}

/// Where a point of a latency chart goes.
struct Frame {
    /// Decimal logarithms of the lowest and highest latency.
    low: f64,
    high: f64,
    /// How many nines the longest tail has.
    nines: f64,
}

impl Frame {
    const WIDTH: f64 = 340.0;
    const HEIGHT: f64 = 200.0;
    const LEFT: f64 = 44.0;
    const BOTTOM: f64 = 20.0;

    fn x(&self, quantile: f64) -> f64 {
        let nines = -(1.0 - quantile).max(1e-12).log10();
        Self::LEFT + nines / self.nines * (Self::WIDTH - Self::LEFT - 8.0)
    }

    fn y(&self, micros: f64) -> f64 {
        let room = Self::HEIGHT - Self::BOTTOM - 8.0;
        let share = (micros.log10() - self.low) / (self.high - self.low).max(1e-9);
        8.0 + (1.0 - share) * room
    }

    fn axes(&self) -> String {
        let mut marks = String::new();
        let floor = Self::HEIGHT - Self::BOTTOM;
        let ends = [
            (0.5, "p50"),
            (0.9, "p90"),
            (0.99, "p99"),
            (0.999, "p99.9"),
            (0.9999, "p99.99"),
            (0.99999, "p99.999"),
        ];
        for (quantile, name) in ends {
            let x = self.x(quantile);
            if x > Self::WIDTH - 6.0 {
                continue;
            }
            write!(marks, "<path class=axis d=\"M{x:.1} 8V{floor}\" /><text class=dim x={x:.1} y={:.0} text-anchor=middle>{name}</text>", Self::HEIGHT - 5.0).ok();
        }
        for micros in steps(self.low, self.high) {
            let y = self.y(micros);
            write!(marks, "<path class=axis d=\"M{} {y:.1}H{}\" /><text class=dim x={} y={:.1} text-anchor=end>{}</text>", Self::LEFT, Self::WIDTH - 8.0, Self::LEFT - 5.0, y + 4.0, time(micros)).ok();
        }
        marks
    }
}

/// A time on an axis, short.
fn time(micros: f64) -> String {
    match micros {
        micros if micros >= 1e6 => format!("{} s", micros / 1e6),
        micros if micros >= 1e3 => format!("{} ms", micros / 1e3),
        micros => format!("{micros} us"),
    }
}

/// Round values between two powers of ten, few enough to be read.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let all = |parts: &'static [f64]| {
        let decades = (-1..8).map(|decade| 10_f64.powi(decade));
        let values = decades.flat_map(move |decade| parts.iter().map(move |part| part * decade));
        values.filter(|value| (low..=high).contains(&value.log10())).collect::<Vec<_>>()
    };
    let choices: [&'static [f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    choices.into_iter().map(all).find(|values| values.len() <= 7).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_few_and_inside() {
        for (low, high) in [(1.0, 4.0), (1.9, 2.6), (1.0, 7.0)] {
            let steps = steps(low, high);
            assert!(!steps.is_empty() && steps.len() <= 7, "{low} {high}: {steps:?}");
            assert!(steps.iter().all(|step| (low..=high).contains(&step.log10())));
        }
    }

    #[test]
    fn times_on_an_axis_are_short() {
        assert_eq!([50.0, 2000.0, 3e6].map(time), ["50 us", "2 ms", "3 s"]);
    }

    #[test]
    fn charts_have_no_broken_number() {
        let record = crate::sample::record();
        for case in &record.cases {
            let svg = bars(&record, case) + &latency(&record, case);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
