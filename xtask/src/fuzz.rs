// SPDX-License-Identifier: Apache-2.0
//! `fuzz`: the targets of `tests/fuzz`, built with coverage counters on the toolchain that builds everything else.
//!
//! What is found to be interesting stays under `target/fuzz/corpus`, so that the next run goes on from there; an input
//! that breaks a target is kept under `target/fuzz/artifacts`, and the error says how to see it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{host, step};

/// The targets are the modules in here.
const TARGETS: &str = "tests/fuzz/src/targets";
/// The same pass and options that `cargo fuzz` asks for; they need no unstable compiler.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// One input may take so many seconds, and the whole run so many mebibytes.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];
/// What each target gets when all tests run.
const SMOKE: Duration = Duration::from_secs(2);
/// Fewer than these in a run, and it has shown nothing. The smallest parser, SOCKS5's, has 93 edges.
const FEWEST_EXECUTIONS: u64 = 200;
const FEWEST_EDGES: u64 = 50;
/// A cold build on two cores takes about three minutes.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What a run has seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    /// Edges of the code that were taken.
    coverage: u64,
    /// Inputs worth keeping.
    corpus: u64,
}

/// Runs `only` this target, or all of them, for `seconds` each.
///
/// # Errors
/// A target was broken, or showed nothing; or it cannot be built.
pub(crate) fn run(only: Option<&str>, seconds: u64) -> Result<()> {
    let program = build()?;
    let mut targets = targets()?;
    if let Some(only) = only {
        targets.retain(|target| target == only);
        if targets.is_empty() {
            bail!("no fuzz target is called `{only}`; see {TARGETS}");
        }
    }
    let mut broken = Vec::new();
    for target in &targets {
        let started = Instant::now();
        match fuzz(&program, target, seconds) {
            Ok(Figures { executions, coverage, corpus }) => println!(
                "{target:<16} {executions:>12} executions in {:.0} s, {coverage} edges, {corpus} inputs kept",
                started.elapsed().as_secs_f64()
            ),
            Err(error) => {
                println!("{target:<16} FAILED: {error:#}");
                broken.push(target.as_str());
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("broken: {}", broken.join(", ")) }
}

/// A few seconds of each target.
pub(crate) fn smoke() -> Result<()> {
    run(None, SMOKE.as_secs())
}

/// Gives one input to a target, and shows what it says.
pub(crate) fn replay(target: &str, input: &Path) -> Result<()> {
    let mut program = Command::new(build()?);
    program.env("FUZZ_TARGET", target).args(LIMITS).arg(input).current_dir(host::root());
    step::run(&mut program, Duration::from_secs(60)).1
}

/// The names of the targets.
fn targets() -> Result<Vec<String>> {
    let folder = host::root().join(TARGETS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let name = entry?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".rs")).map(str::to_owned));
    }
    names.retain(|name| name != "mod");
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    host::target().join("fuzz")
}

/// The program with all targets.
fn build() -> Result<PathBuf> {
    host::install("g++", "g++")?;
    let triple = triple()?;
    let mut cargo = host::cargo();
    // With a target named, only what runs is instrumented: build scripts and macros are not.
    cargo.args(["build", "--quiet", "--release", "--locked", "--target", &triple]);
    cargo.args(["--manifest-path", "tests/fuzz/Cargo.toml", "--target-dir"]).arg(folder());
    cargo.env("RUSTFLAGS", FLAGS.join(" "));
    step::run(&mut cargo, BUILD_LIMIT).1.context("build the fuzz targets")?;
    Ok(folder().join(triple).join("release/fuzz"))
}

/// The machine's own target triple.
fn triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").current_dir(host::root()).output().context("rustc -vV")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

fn fuzz(program: &Path, target: &str, seconds: u64) -> Result<Figures> {
    let [corpus, artifacts] = ["corpus", "artifacts"].map(|kind| folder().join(kind).join(target));
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
    }
    let log = folder().join(format!("{target}.log"));
    let file = fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let mut run = Command::new(program);
    run.env("FUZZ_TARGET", target).env("FUZZ_SEEDS", &corpus).arg(&corpus).args(LIMITS);
    run.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    run.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let status = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).status();
    let status = status.with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let why = said.lines().filter(|line| line.contains("panicked") || line.starts_with("SUMMARY"));
        let why: Vec<&str> = why.collect();
        let again = match artifact(&said) {
            Some(input) => format!("; again with `cargo xtask fuzz {target} --input {input}`"),
            None => String::new(),
        };
        bail!("{status}: {}{again} (all of it: {})", why.join(", "), log.display());
    }
    let figures = figures(&said);
    if figures.executions < FEWEST_EXECUTIONS || figures.coverage < FEWEST_EDGES {
        bail!(
            "it ran without a finding, but not enough to show anything: {figures:?}; see {}",
            log.display()
        );
    }
    Ok(figures)
}

/// Where libFuzzer put the input that broke the target.
fn artifact(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path)
}

/// What libFuzzer says of its progress: `#1024 pulse  cov: 345 ft: 678 corp: 90/12Kb …`, and the sum at the end.
fn figures(said: &str) -> Figures {
    let mut figures = Figures::default();
    for line in said.lines() {
        let mut words = line.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let field = match word {
                "cov:" => &mut figures.coverage,
                "corp:" => &mut figures.corpus,
                "stat::number_of_executed_units:" => &mut figures.executions,
                _ => continue,
            };
            let number = words.next().map(|number| number.split('/').next().unwrap_or(number));
            *field = number.and_then(|number| number.parse().ok()).unwrap_or(*field);
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_last_that_were_said() {
        let said = "#2\tINITED cov: 12 ft: 15 corp: 3/4b exec/s: 0 rss: 30Mb\n\
                    #900\tNEW    cov: 345 ft: 678 corp: 90/12Kb lim: 8 exec/s: 3\n\
                    Done 901 runs in 2 second(s)\nstat::number_of_executed_units: 901\n";
        assert_eq!(figures(said), Figures { executions: 901, coverage: 345, corpus: 90 });
        assert_eq!(figures("nothing"), Figures::default());
    }

    #[test]
    fn the_input_that_broke_a_target_is_named() {
        let said = "x\nartifact_prefix='a/'; Test unit written to a/crash-1\nBase64: eA==\n";
        assert_eq!(artifact(said), Some("a/crash-1"));
    }

    #[test]
    fn every_target_has_a_module() {
        let targets = targets().unwrap();
        assert!(targets.iter().any(|target| target == "connect"), "{targets:?}");
    }
}
