// SPDX-License-Identifier: Apache-2.0
//! `test` and `ci`: stages, each with its name and time, and one summary at the end.
//!
//! A stage that fails does not hide the next ones; a stage that needs a failed one is skipped, and said so.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::step::Count;
use crate::{count, ebpf, envoy, fuzz, host, show, step, tidy};

/// No single stage may take longer: a hanging test must not eat the whole run.
const STAGE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// How one stage went.
struct Stage {
    name: &'static str,
    took: Duration,
    count: Count,
    outcome: Outcome,
}

enum Outcome {
    Ok,
    Failed(String),
    Skipped(&'static str),
}

/// The stages so far.
struct Run {
    total: usize,
    stages: Vec<Stage>,
}

/// Every test there is.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    let mut run = Run::of(TEST_STAGES);
    run.test_stages(filter);
    run.finish()
}

/// Exactly what CI runs.
pub(crate) fn ci() -> Result<()> {
    let mut run = Run::of(7 + TEST_STAGES + 1);
    run.cargo("format", &["fmt", "--all", "--check"]);
    run.cargo(
        "format of the kernel programs",
        &["fmt", "--check", "--manifest-path", "ztunnel-ebpf/Cargo.toml"],
    );
    run.cargo("format of the fuzz targets", &["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"]);
    run.cargo("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run.stage("house rules", |_| (Count::default(), tidy::run()));
    let mut doc = host::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    doc.env("RUSTDOCFLAGS", "-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links");
    run.stage("documentation", |_| step::run(&mut doc, STAGE_LIMIT));
    run.stage("instructions of the core", |_| (Count::default(), count::run()));
    run.test_stages(None);
    if host::is_root() {
        run.stage("benchmark, one tiny round", |_| {
            if let Err(error) = show::build_release() {
                return (Count::default(), Err(error));
            }
            let mut smoke = Command::new(host::target().join("release/bench"));
            step::run(smoke.arg("--smoke").current_dir(host::root()), STAGE_LIMIT)
        });
    } else {
        run.skip("benchmark, one tiny round", "needs root");
    }
    run.finish()
}

/// How many stages [`Run::test_stages`] has.
const TEST_STAGES: usize = 6;

impl Run {
    fn of(total: usize) -> Self {
        Self { total, stages: Vec::new() }
    }

    /// The eBPF object, host tests, and (root) the contract test and the scenarios.
    fn test_stages(&mut self, filter: Option<&str>) {
        let object = self.stage("eBPF object", |_| (Count::default(), ebpf::build()));
        self.cargo("host tests", &["test", "--workspace", "--no-fail-fast", "--quiet"]);
        self.stage("fuzz targets, some seconds each", |_| (Count::default(), fuzz::smoke()));
        if !host::is_root() {
            for name in ["kernel contract", "release build", "scenarios in namespaces"] {
                self.skip(name, "needs root");
            }
            return;
        }
        if object {
            self.stage("kernel contract", |_| {
                let object = ["test", "--quiet", "-p", "ztunnel-common", "--test", "contract"];
                let (first, kept) = step::run(host::cargo().args(object), STAGE_LIMIT);
                let kernel = ["test", "--quiet", "-p", "ztunnel", "--lib", "fastpath", "--", "--ignored"];
                let (second, held) = step::run(host::cargo().args(kernel), STAGE_LIMIT);
                (first.plus(second), kept.and(held))
            });
        } else {
            self.skip("kernel contract", "no eBPF object");
        }
        let built = self.cargo("release build", &["build", "--release", "-p", "ztunnel"]);
        if !built {
            self.skip("scenarios in namespaces", "no ztunnel binary");
            return;
        }
        self.stage("scenarios in namespaces", |_| {
            if let Err(error) = host::install_tools().and_then(|()| envoy::install()) {
                return (Count::default(), Err(error));
            }
            // Namespaces, cgroups and the fast path belong to the whole machine: one test at a time.
            let mut command = host::cargo();
            command.args(["test", "-p", "ztunnel-tests", "--no-fail-fast"]).args(filter);
            command.args(["--", "--ignored", "--test-threads=1"]);
            step::run(&mut command, STAGE_LIMIT)
        });
    }

    fn cargo(&mut self, name: &'static str, args: &[&str]) -> bool {
        self.stage(name, |_| step::run(host::cargo().args(args), STAGE_LIMIT))
    }

    /// Runs one stage; true if it went well.
    fn stage(&mut self, name: &'static str, work: impl FnOnce(&Self) -> (Count, Result<()>)) -> bool {
        println!("\n== {}/{} {name}", self.stages.len() + 1, self.total);
        let started = Instant::now();
        let (count, result) = work(self);
        let outcome = result.map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Ok);
        let stage = Stage { name, took: started.elapsed(), count, outcome };
        println!("== {stage}");
        let ok = matches!(stage.outcome, Outcome::Ok);
        self.stages.push(stage);
        ok
    }

    fn skip(&mut self, name: &'static str, reason: &'static str) {
        println!("\n== {}/{} {name}: skipped, {reason}", self.stages.len() + 1, self.total);
        let outcome = Outcome::Skipped(reason);
        self.stages.push(Stage { name, took: Duration::ZERO, count: Count::default(), outcome });
    }

    /// Prints the summary. A skipped stage fails the run: a test that did not run has not passed.
    fn finish(self) -> Result<()> {
        println!("\nSummary");
        for stage in &self.stages {
            println!("  {stage}");
        }
        let count = self.stages.iter().fold(Count::default(), |sum, stage| sum.plus(stage.count));
        let broken = |stage: &&Stage| matches!(stage.outcome, Outcome::Failed(_)) && stage.count.failed == 0;
        // A stage that failed without a failed test (a build, a lint) counts as one.
        let failed =
            count.failed + u32::try_from(self.stages.iter().filter(broken).count()).unwrap_or(u32::MAX);
        let skipped = self.stages.iter().filter(|stage| matches!(stage.outcome, Outcome::Skipped(_))).count();
        println!();
        if skipped > 0 {
            println!("{skipped} stages did not run; for all of them, as root: `cargo xtask test`");
        }
        println!("{} passed, {failed} failed", count.passed);
        if failed > 0 || skipped > 0 { bail!("not everything passed") } else { Ok(()) }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        match &self.outcome {
            Outcome::Ok if self.count.passed > 0 => {
                write!(f, "{:<32} ok      {seconds:>7.1} s  {} tests", self.name, self.count.passed)
            }
            Outcome::Ok => write!(f, "{:<32} ok      {seconds:>7.1} s", self.name),
            Outcome::Failed(why) => write!(f, "{:<32} FAILED  {seconds:>7.1} s  {why}", self.name),
            Outcome::Skipped(why) => write!(f, "{:<32} skipped            {why}", self.name),
        }
    }
}
