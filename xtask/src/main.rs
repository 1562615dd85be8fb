// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask`: everything a developer runs, in the order a newcomer needs it.
//!
//! Map, in reading order: [`host`] knows this machine (folders, root, missing tools), [`step`] runs one
//! command and says how it went, [`ebpf`] builds the kernel programs, [`checks`] holds `test` and `ci`, [`count`]
//! counts instructions, [`fuzz`] feeds the parsers, [`envoy`] has one for the tests, [`show`] hands over to `demo` and `bench`, [`tidy`] reads the sources for the rules of this house.
//!
//! Nothing of the product is a dependency of this crate, so it builds in seconds.

#![expect(clippy::print_stdout, reason = "a command line talks to its user")]
#![expect(clippy::print_stderr, reason = "a command line talks to its user")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod checks;
mod count;
mod ebpf;
mod envoy;
mod fuzz;
mod host;
mod show;
mod step;
mod tidy;

/// Build, show, test and measure the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Start with `cargo xtask demo`. Missing tools are installed with apt and named as that \
     happens; results and caches stay under target/.";

/// The commands, in the order a newcomer needs them.
#[derive(Debug, Subcommand)]
enum Command {
    /// Two nodes, real traffic through HBONE mTLS, the fast path off and on; leaves nothing behind (root)
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Every test: on the host, the kernel contract, and in network namespaces (root for the last)
    Test {
        /// Only scenarios whose name contains this
        filter: Option<String>,
    },
    /// Only the eBPF object; the next `cargo build` embeds it
    BuildEbpf,
    /// Compare direct, fast path off, and each fast-path mode: table, JSON and HTML report (root)
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Instructions per decision of the core, against their budgets
    Count,
    /// Feed the parsers of what others say with inputs that nobody thought of
    Fuzz {
        /// Only this target of tests/fuzz
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Give this one input to the target, and show what happens
        #[arg(long, requires = "target", conflicts_with = "seconds")]
        input: Option<PathBuf>,
    },
    /// Write docs/reference.md anew from the code; a test fails when it is stale
    Reference,
    /// The rules of this house that no compiler checks
    Tidy,
    /// Exactly what CI runs: fmt, clippy, tidy, doc, then `test`, then one tiny benchmark
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo { args } => show::demo(&args),
        Command::Test { filter } => checks::test(filter.as_deref()),
        Command::BuildEbpf => ebpf::build(),
        Command::Bench { args } => show::bench(&args),
        Command::Count => count::run(),
        Command::Fuzz { target: Some(target), input: Some(input), .. } => fuzz::replay(&target, &input),
        Command::Fuzz { target, seconds, .. } => fuzz::run(target.as_deref(), seconds),
        Command::Reference => show::reference(),
        Command::Tidy => tidy::run(),
        Command::Ci => checks::ci(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
