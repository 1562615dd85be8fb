// SPDX-License-Identifier: Apache-2.0
//! From facts to report. Nothing here touches the machine.
//!
//! * [`refusal`]: why the kernel said no, and what to do.
//! * [`sockets`], [`fastpath`], [`surroundings`]: the lines, by topic.

mod fastpath;
mod refusal;
mod sockets;
mod surroundings;

use ztunnel_core::fastpath::{Level, Mode};

use super::facts::{Facts, Failure, Outcome};
use super::report::{Line, Need, Report, Topic};
use crate::version;

/// The whole report.
pub(super) fn report(facts: &Facts) -> Report {
    let mut needs = surroundings::settings(facts);
    needs.extend(sockets::lines(facts));
    needs.extend(fastpath::needs(facts));
    needs.extend(fastpath::trial(facts));
    needs.extend(surroundings::lines(facts));
    let missing: Vec<&str> = unmet(&needs, Need::Required);
    let (summary, exit_code) = if missing.is_empty() {
        (runs(facts, &needs), 0)
    } else {
        (format!("ztunnel does not work here: missing {}", missing.join(", ")), 1)
    };
    let subject = format!("{} on kernel {}", version::describe(), facts.kernel);
    Report { subject, needs, summary, exit_code }
}

/// The summary where ztunnel works: with or without fast path, and why.
fn runs(facts: &Facts, needs: &[Line]) -> String {
    let (trial, config) = (&facts.bpf.trial, &facts.config.fastpath);
    if config.mode == Mode::Off {
        return format!(
            "ztunnel runs here, without fast path: EBPF_FASTPATH=off (this machine allows: {})",
            level(trial.level)
        );
    }
    // Loading and redirecting within a scratch namespace is not all: the programs must reach the pods as well.
    let unreached = needs.iter().filter(|line| line.topic != Topic::SelfTest);
    let unreached: Vec<&str> = unmet(unreached, Need::FastPath);
    match trial.level {
        Level::Half | Level::Full if !unreached.is_empty() => {
            format!("ztunnel runs here; the fast path works, but not for pods: see {}", unreached.join(", "))
        }
        Level::Full if config.mode == Mode::Auto && config.full_workloads.is_empty() => {
            "ztunnel runs here; the fast path works, but EBPF_FULL_WORKLOADS names no workload for it"
                .to_owned()
        }
        Level::Full => "ztunnel runs here, with fast path".to_owned(),
        Level::Half => format!("ztunnel runs here, with fast path from applications only: {}", trial.reason),
        Level::Off => {
            let missing = unmet(needs, Need::FastPath);
            format!("ztunnel runs here, without fast path: {} (see {})", trial.reason, missing.join(", "))
        }
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Off => "off",
        Level::Half => "half",
        Level::Full => "full",
    }
}

fn unmet<'a>(lines: impl IntoIterator<Item = &'a Line>, need: Need) -> Vec<&'a str> {
    let unmet = lines.into_iter().filter(|line| !line.met && line.need == need);
    unmet.map(|line| line.name.as_str()).collect()
}

/// A line from an outcome; `fix` is asked only if there is something to fix.
fn line(
    topic: Topic,
    name: &str,
    need: Need,
    outcome: &Outcome,
    fix: impl FnOnce(&Failure) -> String,
) -> Line {
    let (met, detail, fix) = match outcome {
        Ok(seen) => (true, seen.clone(), None),
        Err(failure) => (false, failure.text.clone(), Some(fix(failure))),
    };
    Line { topic, name: name.to_owned(), need, met, detail, fix }
}
