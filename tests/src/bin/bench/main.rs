// SPDX-License-Identifier: Apache-2.0
//! `bench`: the same loads through every datapath, interleaved, on this machine.
//!
//! [`plan`]: arms and cases. [`world`]: runs one case. [`record`]: what is kept of it. [`summary`]: medians and
//! verdicts. [`table`], [`html`]: how they are shown. Run it with `cargo xtask bench`.

#![expect(clippy::print_stdout, reason = "the result is printed")]
#![expect(clippy::print_stderr, reason = "so is a failure")]
#![expect(clippy::cast_precision_loss, reason = "counts below 2^53 become rates")]

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

mod html;
mod machine;
#[path = "../load/outcome.rs"]
mod outcome;
mod plan;
mod record;
#[cfg(test)]
mod sample;
mod summary;
mod table;
mod world;

use plan::{Arm, Case, Change, Load, Size};
use record::{Method, Record, Sample};
use world::World;

/// Compare every datapath on this machine: a table, target/bench/bench.json and report.html.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    /// Fewer cases and rounds: a few minutes instead of half an hour or more
    #[arg(long)]
    quick: bool,
    /// One tiny round that fails if anything at all goes wrong
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Rounds; in each, every arm runs every case
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds measured per case
    #[arg(long)]
    secs: Option<f64>,
    /// The loads of docs/performance.md's comparison with upstream's ztunnel
    #[arg(long, conflicts_with_all = ["quick", "smoke"])]
    reference: bool,
    /// Only these arms, such as direct,iptables,full
    #[arg(long, value_delimiter = ',')]
    arms: Vec<String>,
    /// Only cases whose name contains this, such as rr-64 or cross
    #[arg(long)]
    case: Option<String>,
    /// Every arm with another ztunnel as well, NAME=PATH; `cargo xtask bench --against REV` builds one
    #[arg(long, value_parser = plan::parse_program)]
    program: Vec<(String, Change)>,
    /// Every arm with other settings as well, NAME:VARIABLE=VALUE,…
    #[arg(long, value_parser = plan::parse_settings)]
    setting: Vec<(String, Change)>,
    /// Sockets of client and server: nonblocking (event-driven programs) or blocking (a thread each)
    #[arg(long, default_value = "nonblocking", value_parser = ["nonblocking", "blocking"])]
    io: String,
    /// Leave client and servers to the scheduler instead of a core each
    #[arg(long)]
    no_pin: bool,
    /// Folder of the results
    #[arg(long)]
    out: Option<PathBuf>,
    /// Do not measure: make table and report again from this bench.json
    #[arg(long)]
    render: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let folder = cli.out.clone().unwrap_or_else(default_folder);
    if let Some(path) = &cli.render {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let record: Record =
            serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        print!("{}", table::render(&record));
        return save(&record, &folder);
    }
    ztunnel_tests::cleanup::on_signals();
    ztunnel_tests::need_root()?;
    let mut record = planned(cli)?;
    announce(&record);
    measure(&mut record, &folder)?;
    print!("{}", table::render(&record));
    save(&record, &folder)?;
    println!("\n{}\n{}", folder.join("report.html").display(), folder.join("bench.json").display());
    if cli.smoke { all_right(&record) } else { Ok(()) }
}

/// `target/bench`, found from where this program was built.
fn default_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().and_then(Path::parent).unwrap_or_else(|| Path::new("target")).join("bench")
}

fn planned(cli: &Cli) -> Result<Record> {
    let (size, rounds, secs, warmup) = match cli {
        Cli { smoke: true, .. } => (Size::Smoke, 1, 0.3, 0.1),
        Cli { quick: true, .. } => (Size::Quick, 3, 1.0, 0.3),
        Cli { reference: true, .. } => (Size::Reference, 5, 1.5, 0.3),
        _ => (Size::Full, 5, 1.5, 0.3),
    };
    let arms = chosen_arms(cli);
    let wanted = |case: &Case| cli.case.as_ref().is_none_or(|part| case.id().contains(part));
    let cases: Vec<Case> = plan::cases(size).into_iter().filter(wanted).collect();
    if arms.is_empty() || cases.is_empty() {
        let known: Vec<String> = plan::arms().into_iter().map(|arm| arm.id).collect();
        bail!("nothing to run; the arms are {}", known.join(", "));
    }
    let cores = machine::cores();
    Ok(Record {
        schema: 1,
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        machine: machine::describe(),
        method: Method {
            rounds: cli.rounds.unwrap_or(rounds).max(1),
            secs: cli.secs.unwrap_or(secs),
            warmup,
            io: cli.io.clone(),
            cores: (!cli.no_pin && cores > 1).then_some([0, 1]),
        },
        arms,
        cases,
        samples: Vec::new(),
        notes: Vec::new(),
    })
}

/// The arms of the command line, each followed by its variants.
fn chosen_arms(cli: &Cli) -> Vec<Arm> {
    let changes: Vec<_> = cli.program.iter().chain(&cli.setting).collect();
    let mut chosen = Vec::new();
    for arm in plan::arms().into_iter().filter(|arm| cli.arms.is_empty() || cli.arms.contains(&arm.id)) {
        let changes = changes.iter().filter(|_| arm.id != "direct");
        let variants: Vec<Arm> = changes.map(|(name, change)| arm.variant(name, change)).collect();
        chosen.push(arm);
        chosen.extend(variants);
    }
    chosen
}

fn announce(record: &Record) {
    let method = &record.method;
    let each = method.secs + method.warmup + 0.3;
    let runs = method.rounds * record.arms.len() * record.cases.len();
    let minutes = (runs as f64 * each + (method.rounds * record.arms.len()) as f64 * 2.0) / 60.0;
    println!(
        "{} arms x {} cases x {} rounds, {} sockets: about {minutes:.1} minutes (Ctrl-C ends it and cleans up)",
        record.arms.len(),
        record.cases.len(),
        method.rounds,
        method.io,
    );
}

/// Round by round, every arm in turn; the order moves on by one each round.
fn measure(record: &mut Record, folder: &Path) -> Result<()> {
    let started = Instant::now();
    let mut world = World::start(&record.method)?;
    for round in 0..record.method.rounds {
        for turn in 0..record.arms.len() {
            let arm = record.arms[(turn + round) % record.arms.len()].clone();
            world.switch(&arm)?;
            if round == 0 && arm.id != "direct" {
                record.notes.push(format!("{}: mode in force was {}", arm.id, world.mode()));
            }
            for case in record.cases.clone() {
                if case.load == Load::Idle && (round > 0 || arm.id == "direct") {
                    continue;
                }
                let sample = world.sample(&case, round)?;
                progress(record, started, &sample, &case);
                record.samples.push(sample);
            }
        }
        // A run that is stopped half-way keeps its whole rounds.
        save(record, folder)?;
    }
    if std::io::stdout().is_terminal() {
        println!("\r\x1b[2K{} samples in {:.0} s", record.samples.len(), started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn progress(record: &Record, started: Instant, sample: &Sample, case: &Case) {
    let outcome = &sample.outcome;
    let figure = outcome.latency.as_ref().map_or_else(
        || {
            if outcome.gbit > 0.01 {
                format!("{} Gbit/s", table::number(outcome.gbit))
            } else {
                "held".to_owned()
            }
        },
        |latency| format!("{} us, {}/s", table::number(latency.p50), table::number(outcome.rate)),
    );
    let errors = match outcome.error_texts.first() {
        Some(text) => format!("  {} errors: {text}", outcome.errors),
        None => String::new(),
    };
    let share = record.samples.len() + 1;
    let all = record.method.rounds * record.arms.len() * record.cases.len();
    let widest = record.arms.iter().map(|arm| arm.id.len()).max().unwrap_or(0) + 2;
    let line = format!(
        "{:>4.0} s  {share:>3}/{all}  {:<widest$}{:<28}{figure}{errors}",
        started.elapsed().as_secs_f64(),
        sample.arm,
        format!("{}, {}", case.short(), case.place.title()),
    );
    if std::io::stdout().is_terminal() && errors.is_empty() {
        print!("\r\x1b[2K{line}");
        std::io::stdout().flush().ok();
    } else {
        println!("{line}");
    }
}

fn save(record: &Record, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let json = serde_json::to_string(record).context("write the record")?;
    for (name, text) in [("bench.json", json), ("report.html", html::page(record))] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// For the smoke run: every sample moved bytes, and nothing went wrong.
fn all_right(record: &Record) -> Result<()> {
    let mut failed = 0;
    for sample in &record.samples {
        let outcome = &sample.outcome;
        if outcome.errors > 0 || outcome.bytes_total == 0 {
            failed += 1;
            println!("{} {}: {} errors {:?}", sample.arm, sample.case, outcome.errors, outcome.error_texts);
        }
    }
    println!("{} passed, {failed} failed", record.samples.len() - failed);
    if failed == 0 { Ok(()) } else { bail!("{failed} of {} samples went wrong", record.samples.len()) }
}
