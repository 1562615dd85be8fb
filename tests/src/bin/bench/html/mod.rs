// SPDX-License-Identifier: Apache-2.0
//! The report: one HTML file with everything in it, readable on a phone, in the dark and on paper.
//!
//! [`charts`] draws, this module tells. Nothing is rounded in our favor: cells that lose against the userspace
//! datapath are marked, failed ones stay in the tables.

use std::fmt::Write as _;

use crate::plan::{Arm, BASELINE, Case, Figure, Load, Place};
use crate::record::Record;
use crate::summary::Verdict;
use crate::table::{number, share};

mod charts;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(crate) fn page(record: &Record) -> String {
    let mut body = String::new();
    body.push_str("<h1>What the mesh costs, and what the fast path gives back</h1>\n");
    body.push_str(&verdicts(record));
    body.push_str(&legend(record));
    for place in Place::ALL {
        let cases: Vec<&Case> = record.cases.iter().filter(|case| case.place == place).collect();
        if cases.is_empty() {
            continue;
        }
        writeln!(body, "<h2>{}</h2>\n<div class=grid>", capital(place.title())).ok();
        for case in &cases {
            body.push_str(&charts::bars(record, case));
        }
        body.push_str("</div>\n");
        let curves: String = cases.iter().map(|case| charts::latency(record, case)).collect();
        if !curves.is_empty() {
            writeln!(body, "<h3>Latency by percentile</h3>\n<div class=grid>\n{curves}</div>").ok();
        }
    }
    body.push_str("<h2>What the fast path did</h2>\n");
    body.push_str(&redirects(record));
    body.push_str("<h2>All figures</h2>\n");
    for place in Place::ALL {
        body.push_str(&figures(record, place));
    }
    body.push_str(&method(record));
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <meta name=color-scheme content=\"light dark\"><title>ztunnel bench</title>\n\
         <style>{STYLE}{}</style></head>\n<body><main>\n{body}</main></body></html>\n",
        charts::arm_styles(record)
    )
}

/// Text that may hold anything, made safe for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// How often each arm wins, ties and loses against the userspace datapath, and its best and worst case.
fn verdicts(record: &Record) -> String {
    let mut rows = String::new();
    for arm in record.arms.iter().filter(|arm| arm.id != "direct" && arm.id != BASELINE) {
        let judged: Vec<(&Case, Verdict, f64)> = record
            .cases
            .iter()
            .filter_map(|case| {
                let figure = case.headline();
                let verdict = record.verdict(&arm.id, arm.baseline(), case, figure)?;
                let ratio = record.ratio(&arm.id, arm.baseline(), case, figure)?;
                // As a gain: above one is good, whatever the figure.
                Some((case, verdict, if figure.more_is_better() { ratio } else { 1.0 / ratio.max(1e-9) }))
            })
            .collect();
        let count = |verdict| judged.iter().filter(|(_, seen, _)| *seen == verdict).count();
        let gain = |found: Option<&(&Case, Verdict, f64)>| {
            found.map_or_else(String::new, |(case, _, gain)| {
                format!(
                    "{:+.0}&nbsp;% <small>{}, {}</small>",
                    (gain - 1.0) * 100.0,
                    case.title(),
                    case.place.title()
                )
            })
        };
        let best = judged.iter().max_by(|a, b| a.2.total_cmp(&b.2));
        let worst = judged.iter().min_by(|a, b| a.2.total_cmp(&b.2));
        let (better, same, worse) = (count(Verdict::Better), count(Verdict::Same), count(Verdict::Worse));
        writeln!(
            rows,
            "<tr><th><i class=\"key a-{5}\"></i>{0}</th><td class={4}>{better}</td><td>{same}</td>\
             <td class={1}>{worse}</td><td>{2}</td><td>{3}</td></tr>",
            escape(&arm.id),
            if worse > 0 { "bad" } else { "none" },
            gain(best),
            gain(worst),
            if better > 0 { "good" } else { "none" },
            arm.class(),
        )
        .ok();
    }
    if rows.is_empty() {
        return String::new();
    }
    let notes: String = record.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
    let notes =
        if notes.is_empty() { notes } else { format!("<p>In this run:</p><ul class=notes>{notes}</ul>") };
    format!(
        "<p class=lead>Against the same proxy without the fast path (<b>{BASELINE}</b>), counting a difference only \
         where every round agrees on it and it exceeds two percent:</p>\n\
         <div class=scroll><table><thead><tr><th>arm</th><th>better</th><th>same</th><th>worse</th><th>best case</th>\
         <th>worst case</th></tr></thead><tbody>\n{rows}</tbody></table></div>\n{notes}"
    )
}

fn legend(record: &Record) -> String {
    let entry = |arm: &Arm| {
        format!(
            "<li><i class=\"key a-{}\"></i><b>{}</b> {}</li>",
            arm.class(),
            escape(&arm.id),
            escape(&arm.what)
        )
    };
    let arms: String = record.arms.iter().map(entry).collect();
    format!("<ul class=legend>{arms}</ul>\n")
}

/// Hit ratio and reasons, by arm and case.
fn redirects(record: &Record) -> String {
    let mut rows = String::new();
    for arm in &record.arms {
        for case in &record.cases {
            let Some((redirected, passed, mode)) = record.fastpath(&arm.id, case) else { continue };
            let total: u64 = passed.values().sum();
            let hit =
                share(redirected, total).map_or_else(|| "-".to_owned(), |share| format!("{share:.1}&nbsp;%"));
            let mut reasons: Vec<(&String, &u64)> = passed.iter().filter(|(_, count)| **count > 0).collect();
            reasons.sort_by(|a, b| b.1.cmp(a.1));
            let reasons: Vec<String> = reasons
                .iter()
                .map(|(reason, count)| format!("{} {}", escape(reason), number(**count as f64)))
                .collect();
            writeln!(rows,
                "<tr><th><i class=\"key a-{6}\"></i>{0}</th><td class=l>{1}, {2}</td><td>{hit}</td><td>{3}</td>\
                 <td class=l>{4}</td><td class=l>{5}</td></tr>",
                escape(&arm.id),
                case.title(),
                case.place.title(),
                number(redirected as f64),
                reasons.join(", "),
                escape(&mode),
                arm.class(),
            )
            .ok();
        }
    }
    if rows.is_empty() {
        return "<p>No arm of this run had the fast path loaded.</p>\n".to_owned();
    }
    format!(
        "<p>Messages that the kernel handed from socket to socket, and those that took TCP, with the reason.</p>\n\
         <details><summary>Show by arm and load</summary><div class=scroll><table><thead><tr><th>arm</th><th>load</th>\
         <th>redirected</th><th>messages</th><th>took TCP because</th><th>mode in force</th></tr></thead>\
         <tbody>\n{rows}</tbody></table></div></details>\n"
    )
}

/// Every figure of every case at one place.
fn figures(record: &Record, place: Place) -> String {
    let cases: Vec<&Case> = record.cases.iter().filter(|case| case.place == place).collect();
    if cases.is_empty() {
        return String::new();
    }
    let header: String = record.arms.iter().map(|arm| format!("<th>{}</th>", escape(&arm.id))).collect();
    let mut rows = String::new();
    for case in cases {
        let wanted = Figure::ALL.into_iter().filter(|figure| relevant(case, *figure));
        let mut first = true;
        for figure in wanted {
            let cells: String = record.arms.iter().map(|arm| cell(record, arm, case, figure)).collect();
            let title = if first { case.title() } else { String::new() };
            let class = if first { " class=first" } else { "" };
            writeln!(rows, "<tr{class}><th>{title}</th><th>{}</th>{cells}</tr>", figure.title()).ok();
            first = false;
        }
    }
    format!(
        "<h3>{}</h3><div class=scroll><table class=all><thead><tr><th>load</th><th>figure</th>{header}</tr></thead>\
         <tbody>\n{rows}</tbody></table></div>\n",
        capital(place.title())
    )
}

fn relevant(case: &Case, figure: Figure) -> bool {
    match case.load {
        Load::Bulk => matches!(figure, Figure::Gbit | Figure::CpuNode | Figure::CpuZtunnel | Figure::Rss),
        Load::Idle => matches!(figure, Figure::Rss | Figure::RssPerConn),
        Load::Rr | Load::OpenLoop | Load::Crr => !matches!(figure, Figure::Gbit | Figure::RssPerConn),
    }
}

fn cell(record: &Record, arm: &Arm, case: &Case, figure: Figure) -> String {
    let baseline = arm.baseline();
    let arm = arm.id.as_str();
    let (errors, text) = record.errors(arm, case);
    let failed = if errors > 0 {
        format!(" <b class=bad title=\"{}\">{errors} errors</b>", escape(text.unwrap_or_default()))
    } else {
        String::new()
    };
    let Some(spread) = record.figure(arm, case, figure) else {
        return format!("<td>-{failed}</td>");
    };
    let meshed = arm != "direct" && arm != BASELINE;
    let class = match record.verdict(arm, baseline, case, figure).filter(|_| meshed) {
        Some(Verdict::Better) => " class=good",
        Some(Verdict::Worse) => " class=bad",
        _ => "",
    };
    let ratio = record
        .ratio(arm, "direct", case, figure)
        .filter(|_| arm != "direct")
        .map_or_else(String::new, |ratio| format!(" <small>{ratio:.2}x</small>"));
    let noise = spread.relative() * 100.0;
    format!("<td{class}>{}{ratio}<small> ±{noise:.0}%</small>{failed}</td>", number(spread.median))
}

fn method(record: &Record) -> String {
    let (machine, method) = (&record.machine, &record.method);
    let pinned = method.cores.map_or_else(
        || "nothing is pinned to a core".to_owned(),
        |[client, server]| {
            format!("clients run on core {client}, servers on core {server}, proxies anywhere")
        },
    );
    format!(
        "<h2>Method</h2>\n<p>One run on one machine: {} rounds; in each round every arm in turn, in rotating order, \
         with a freshly started ztunnel per node; {} s measured after {} s of warm-up. Sockets are {}; {pinned}. \
         Every byte of requests and responses is checked, and the sink counts what it received. Cells are medians \
         over the rounds, ± half the distance between the extremes. CPU is per 10,000 operations, or per GB for bulk; \
         \"machine\" includes the load generator, the kernel and everything else that ran.</p>\n\
         <p>Both nodes, the applications and the load share this machine, so a proxy's work also slows the load \
         down. Each node's ztunnel loads its own programs into the one kernel: the hooks' cost counts twice here.</p>\n\
         <h2>Machine</h2>\n<p>{} cores, {}, {} MiB, Linux {}, congestion control {}, load average {} at the start.</p>\n\
         <h2>Noise to expect</h2>\n<p>A machine of few cores flips between two states, both ends of a ping-pong on \
         one core or on two, and a round trip then takes a multiple. Read ratios within this run, not absolute times \
         across runs; treat single cells with a wide ± as unknown. Started {} (seconds since 1970).</p>\n",
        method.rounds,
        number(method.secs),
        number(method.warmup),
        escape(&method.io),
        machine.cores,
        escape(&machine.cpu),
        machine.memory_mib,
        escape(&machine.kernel),
        escape(&machine.congestion),
        escape(&machine.busy),
        record.started,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_nothing_is_still_a_page() {
        let page = page(&Record::default());
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let page = page(&crate::sample::record());
        for needle in ["http://", "https://", "<script", "@import", "url("] {
            assert!(!page.contains(needle), "{needle}");
        }
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let mut record = crate::sample::record();
        record.notes.push("<img src=x>".to_owned());
        record.machine.cpu = "a & b".to_owned();
        let page = page(&record);
        assert!(page.contains("&lt;img") && !page.contains("<img"));
        assert!(page.contains("a &amp; b"));
    }
}
