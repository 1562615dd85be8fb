// SPDX-License-Identifier: Apache-2.0
//! The comparison on a terminal.

use std::fmt::Write as _;

use crate::plan::{Arm, Figure, Place};
use crate::record::Record;
use crate::summary::Verdict;

/// A number with three or four digits that matter.
pub(crate) fn number(value: f64) -> String {
    let plain = match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 || size == 0.0 => return format!("{value:.0}"),
        size if size >= 10.0 => return format!("{value:.1}"),
        size if size >= 0.01 => return format!("{value:.2}"),
        _ => return format!("{value:.4}"),
    };
    // Thousands apart.
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |digits| ("-", digits));
    let mut out = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One table per place: cases down, arms across, each cell the median and its ratio to `direct`.
pub(crate) fn render(record: &Record) -> String {
    let mut out = String::new();
    for place in Place::ALL {
        let cases: Vec<_> = record.cases.iter().filter(|case| case.place == place).collect();
        if cases.is_empty() {
            continue;
        }
        let first = 2 + cases.iter().map(|case| case.short().len()).max().unwrap_or(0);
        write!(out, "\n{:<first$}{:<9}", place.title(), "").ok();
        for arm in &record.arms {
            write!(out, "{:>1$}", arm.id, width(arm)).ok();
        }
        out.push('\n');
        for case in cases {
            let figure = case.headline();
            write!(out, "{:<first$}{:<9}", case.short(), figure.title()).ok();
            for arm in &record.arms {
                let Some(spread) = record.figure(&arm.id, case, figure) else {
                    let text = if record.errors(&arm.id, case).0 > 0 { "failed " } else { "- " };
                    write!(out, "{text:>0$}", width(arm)).ok();
                    continue;
                };
                let ratio = record
                    .ratio(&arm.id, "direct", case, figure)
                    .filter(|_| arm.id != "direct")
                    .map_or_else(|| "      ".to_owned(), |ratio| format!("{ratio:>5.2}x"));
                let mark = match record.verdict(&arm.id, arm.baseline(), case, figure) {
                    Some(Verdict::Better) if arm.id != "direct" => "+",
                    Some(Verdict::Worse) if arm.id != "direct" => "-",
                    _ => " ",
                };
                let cell = format!("{} {ratio}{mark}", number(spread.median));
                write!(out, "{cell:>0$}", width(arm)).ok();
            }
            out.push('\n');
        }
    }
    out.push_str("\nMedian of the rounds; `x` is the ratio to direct; `+` better and `-` worse than iptables (a variant: than what it varies), in every round and by over 2 %.\n");
    out.push_str(&costs(record));
    out
}

/// Of an arm's column: a variant has the name of a revision in it.
fn width(arm: &Arm) -> usize {
    16.max(arm.id.len() + 2)
}

/// CPU and hit ratio: what it costs, and what the fast path took.
fn costs(record: &Record) -> String {
    let mut out = String::new();
    for place in Place::ALL {
        let cases: Vec<_> = record
            .cases
            .iter()
            .filter(|case| {
                case.place == place
                    && record.arms.iter().any(|arm| record.figure(&arm.id, case, Figure::CpuNode).is_some())
            })
            .collect();
        if cases.is_empty() {
            continue;
        }
        let first = 2 + cases.iter().map(|case| case.short().len()).max().unwrap_or(0);
        writeln!(out, "\n{}: CPU seconds of the whole machine per 10,000 operations or GB (share of messages redirected)", place.title()).ok();
        for case in cases {
            write!(out, "{:<first$}{:<9}", case.short(), "").ok();
            for arm in &record.arms {
                let cpu = record
                    .figure(&arm.id, case, Figure::CpuNode)
                    .map_or_else(|| "-".to_owned(), |cpu| number(cpu.median));
                let share = record
                    .fastpath(&arm.id, case)
                    .map(|(redirected, passed, _)| share(redirected, passed.values().sum()));
                let share = share.flatten().map_or_else(String::new, |share| format!("({share:.0}%)"));
                write!(out, "{:>1$}", format!("{cpu}{share:>7} "), width(arm)).ok();
            }
            out.push('\n');
        }
    }
    out
}

/// Percentage of redirected messages, if there were any messages.
pub(crate) fn share(redirected: u64, passed: u64) -> Option<f64> {
    (redirected + passed > 0).then(|| redirected as f64 * 100.0 / (redirected + passed) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_matters() {
        for (value, text) in [
            (0.0, "0"),
            (0.1234, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.0, "1,234"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_share_of_nothing_is_none() {
        assert_eq!(share(0, 0), None);
        assert_eq!(share(3, 1), Some(75.0));
    }
}
