// SPDX-License-Identifier: Apache-2.0
//! The latency table: the same loads without the mesh, with the fast path off, and on; interleaved.

use anyhow::Result;

use crate::outcome::Outcome;
use crate::paper::{Cell, Paper, Tone};
use crate::scene::Scene;

const ROUNDS: usize = 3;
const SECS: f64 = 0.7;

/// One line of the table.
struct Load {
    title: &'static str,
    unit: &'static str,
    words: &'static [&'static str],
    read: fn(&Outcome) -> f64,
    more_is_better: bool,
}

const LOADS: &[Load] = &[
    Load {
        title: "64 B request, one at a time, p50",
        unit: "us",
        words: &["rr"],
        read: |outcome| outcome.latency.as_ref().map_or(0.0, |latency| latency.p50),
        more_is_better: false,
    },
    Load {
        title: "the same, p99",
        unit: "us",
        words: &["rr"],
        read: |outcome| outcome.latency.as_ref().map_or(0.0, |latency| latency.p99),
        more_is_better: false,
    },
    Load {
        title: "1 KiB requests, 16 connections",
        unit: "per s",
        words: &["rr", "--conns", "16", "--size", "1024"],
        read: |outcome| outcome.rate,
        more_is_better: true,
    },
    Load {
        title: "new connections, 4 at a time",
        unit: "per s",
        words: &["crr", "--conns", "4"],
        read: |outcome| outcome.rate,
        more_is_better: true,
    },
    Load {
        title: "upload, one stream",
        unit: "Gbit/s",
        words: &["bulk"],
        read: |outcome| outcome.gbit,
        more_is_better: true,
    },
];

/// Columns of the table: a name, the client's pod, the prefix of the server's, and the state of the fast path.
const ARMS: [(&str, &str, &str, Option<&str>); 3] = [
    ("direct", "bare-client", "bare-", None),
    ("off", "client", "", Some("off")),
    ("on", "client", "", Some("on")),
];

/// Measures and prints. Returns how many runs had errors.
pub(crate) fn table(scene: &Scene, paper: Paper) -> Result<usize> {
    let places = [("near", "same node"), ("far", "cross node")];
    // [place][load][arm] -> a value per round.
    let mut values = vec![vec![vec![Vec::new(); ARMS.len()]; LOADS.len()]; places.len()];
    let mut errors = Vec::new();
    for round in 0..ROUNDS {
        for turn in 0..ARMS.len() {
            let arm = (turn + round) % ARMS.len();
            let (name, client, prefix, state) = ARMS[arm];
            if let Some(state) = state {
                scene.switch(state)?;
            }
            for (place, (server, where_)) in places.iter().enumerate() {
                let mut last: Option<(&[&str], Outcome)> = None;
                for (number, load) in LOADS.iter().enumerate() {
                    paper.progress(&format!(
                        "round {} of {ROUNDS}: {name}, {where_}, {}",
                        round + 1,
                        load.title
                    ));
                    let outcome = match &last {
                        Some((words, outcome)) if *words == load.words => outcome.clone(),
                        _ => scene.load(client, &format!("{prefix}{server}"), load.words, SECS)?,
                    };
                    if outcome.errors > 0 && last.as_ref().is_none_or(|(words, _)| *words != load.words) {
                        let text = outcome.error_texts.first().map_or("", String::as_str);
                        errors.push(format!(
                            "{name}, {where_}, {}: {} errors, {text}",
                            load.title, outcome.errors
                        ));
                    }
                    values[place][number][arm].push((load.read)(&outcome));
                    last = Some((load.words, outcome));
                }
            }
        }
    }
    paper.end_progress();
    for (place, (_, where_)) in places.iter().enumerate() {
        print(paper, where_, &values[place]);
    }
    for error in &errors {
        paper.say(&paper.tone(error, Tone::Bad));
    }
    Ok(errors.len())
}

fn print(paper: Paper, place: &str, values: &[Vec<Vec<f64>>]) {
    let head = [place, "", "direct", "off", "", "on", "", "on against off"];
    let mut rows = vec![head.map(Cell::number).to_vec()];
    rows[0][0] = Cell::text(place);
    for (load, arms) in LOADS.iter().zip(values) {
        let [direct, off, on] = [&arms[0], &arms[1], &arms[2]].map(|values| median(values));
        let times = |value: f64| if direct > 0.0 { format!("{:.2}x", value / direct) } else { String::new() };
        rows.push(vec![
            Cell::text(load.title),
            Cell::text(load.unit).tone(Tone::Quiet),
            Cell::number(figure(direct)),
            Cell::number(figure(off)),
            Cell::number(times(off)).tone(Tone::Quiet),
            Cell::number(figure(on)),
            Cell::number(times(on)).tone(Tone::Quiet),
            gain(load, &arms[1], &arms[2]),
        ]);
    }
    println!();
    paper.table(&rows);
}

/// What the fast path changes; a difference only if all rounds agree.
fn gain(load: &Load, off: &[f64], on: &[f64]) -> Cell {
    let ratios: Vec<f64> =
        off.iter().zip(on).filter(|(off, _)| **off > 0.0).map(|(off, on)| on / off).collect();
    let change = (median(&ratios) - 1.0) * 100.0;
    let up = ratios.iter().filter(|ratio| **ratio > 1.0).count();
    if ratios.len() < ROUNDS || (up != 0 && up != ratios.len()) || change.abs() < 2.0 {
        return Cell::number("within noise").tone(Tone::Quiet);
    }
    let good = (change > 0.0) == load.more_is_better;
    Cell::number(format!("{change:+.0} %")).tone(if good { Tone::Good } else { Tone::Bad })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// A number with the digits that matter, thousands apart.
pub(crate) fn figure(value: f64) -> String {
    let text = match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => return format!("{value:.1}"),
        value => return format!("{value:.2}"),
    };
    let digits: Vec<char> = text.chars().collect();
    let groups: Vec<String> = digits.rchunks(3).rev().map(|group| group.iter().collect()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_three() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([12345.6, 123.4, 12.34, 1.234].map(figure), ["12,346", "123", "12.3", "1.23"]);
    }
}
