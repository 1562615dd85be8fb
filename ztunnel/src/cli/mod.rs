// SPDX-License-Identifier: Apache-2.0
//! The command line. `proxy`, `version` and `help` are the contract's; the rest looks at this machine or at a running node.
//!
//! * [`door`]: how a running node is asked. [`form`]: how its answers are printed.
//! * [`status`], [`connections`], [`denials`], [`top`]: what it says. [`bugreport`]: all of it in one archive.
#![expect(clippy::print_stderr, reason = "a command line talks to its user")]

mod bugreport;
mod connections;
mod denials;
mod door;
mod form;
mod status;
mod top;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::env::ProcessEnv;
use crate::telemetry::log;
use crate::{app, doctor, version};
use door::{Door, Query};
use form::{Output, say};

/// There are problems, and `status --check` was to say so.
const PROBLEMS: u8 = 2;

const EXIT_CODES: &str = "Exit codes: 0: done; 1: it could not be done, or the arguments are wrong; \
                          2: `status --check` found problems.";

#[derive(Debug, Parser)]
#[command(
    name = "ztunnel",
    about = "The node proxy of Istio ambient mesh, with local hops accelerated by eBPF",
    after_help = EXIT_CODES
)]
#[command(disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    place: Place,
}

/// Where the running node listens. Without any: the socket or port that its settings say.
#[derive(Debug, Default, Args)]
struct Place {
    /// Port of the node's admin server on localhost.
    #[arg(long, global = true, value_name = "PORT", conflicts_with = "admin_socket")]
    admin_port: Option<u16>,
    /// Unix socket of the node's admin server (its setting ADMIN_SOCKET).
    #[arg(long, global = true, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Form {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node proxy (the default). Settings come from the environment.
    Proxy {
        /// As Istio's chart passes them; recorded, not interpreted.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Print what this binary is.
    Version,
    /// Print this help.
    Help,
    /// Check what this kernel and these privileges allow, one line per need, with the fix.
    Doctor {
        #[command(flatten)]
        form: Form,
    },
    /// Show the running node: problems first, then fast path, sessions and pods.
    Status {
        #[command(flatten)]
        form: Form,
        /// Only this pod, as `namespace/name`.
        #[arg(long)]
        pod: Option<String>,
        /// End with code 2 if there are problems.
        #[arg(long)]
        check: bool,
    },
    /// Show open connections: who talks to whom, on which path, and why.
    Connections {
        #[command(flatten)]
        form: Form,
        /// Only those of this pod, as `namespace/name`.
        #[arg(long)]
        pod: Option<String>,
        /// Only those whose other end has this in its name, identity, address or service.
        #[arg(long)]
        peer: Option<String>,
        /// Only those on this path (`ebpf`, `tcp`, `opening`), or there for this reason.
        #[arg(long)]
        path: Option<String>,
        /// At most so many; those that carried most come first.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show who was turned away lately, and which policy did it.
    Denials {
        #[command(flatten)]
        form: Form,
        /// Only requests of this pod, and to it, as `namespace/name`.
        #[arg(long)]
        pod: Option<String>,
    },
    /// Show every certificate and its remaining life.
    Certs {
        #[command(flatten)]
        form: Form,
    },
    /// Show what each pod costs: connections and bytes per second, share of the fast path, time to open.
    Top {
        /// Seconds between two looks.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// Look twice, print once, and end.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Switch the fast path of the running node, or show it.
    Accel {
        /// What to do.
        action: Accel,
        /// Only this pod, as `namespace/name`.
        #[arg(long)]
        pod: Option<String>,
    },
    /// Write one archive of everything above, without secrets, to attach to a report.
    Bugreport {
        /// Where to: a file that does not exist yet, or `-` for standard output.
        #[arg(long, default_value = "ztunnel-bugreport.tar.gz")]
        file: PathBuf,
        /// A file with the node's log, to be put in as well.
        #[arg(long)]
        log: Option<PathBuf>,
    },
    /// Print the completions of a shell.
    Completions {
        /// Which.
        shell: Shell,
    },
    /// Print the manual page (roff).
    Man,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    On,
    Off,
    Show,
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let failed = error.use_stderr();
            // A closed terminal is no reason to fail differently.
            drop(error.print());
            return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let Arguments { command, place } = arguments;
    match run(command.unwrap_or(Command::Proxy { arguments: Vec::new() }), &place) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ztunnel: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, place: &Place) -> io::Result<ExitCode> {
    let door = || Door::new(place.admin_port, place.admin_socket.as_deref());
    match command {
        Command::Proxy { arguments: _ } => return Ok(proxy()),
        Command::Version => say(&format!("{}\n", version::describe())),
        Command::Help => Arguments::command().print_help()?,
        Command::Doctor { form } => return Ok(examine(form.output)),
        Command::Status { form, pod, check } => {
            let answer = door().json("/status")?;
            form.output.print(&answer, |answer| status::render(answer, pod.as_deref()))?;
            if check && answer["problems"].as_array().is_none_or(|problems| !problems.is_empty()) {
                return Ok(ExitCode::from(PROBLEMS));
            }
        }
        Command::Connections { form, pod, peer, path, limit } => {
            let query = Query::default().with("pod", pod).with("peer", peer).with("path", path);
            let query = query.with("limit", Some(limit.to_string()));
            form.output.print(&door().json(&query.of("/connections"))?, connections::render)?;
        }
        Command::Denials { form, pod } => {
            let answer = door().json(&Query::default().with("pod", pod.clone()).of("/denials"))?;
            form.output.print(&answer, |answer| denials::render(answer, pod.as_deref()))?;
        }
        Command::Certs { form } => {
            let certificates = door().json("/status")?["certificates"].take();
            form.output.print(&certificates, status::render_certificates)?;
        }
        Command::Top { interval, once, form } => {
            top::run(&door(), Duration::from_secs(interval), once, form.output)?;
        }
        Command::Accel { action: Accel::Show, pod } => {
            say(&status::render_accel(&door().json("/status")?, pod.as_deref()));
        }
        Command::Accel { action, pod } => {
            let state = if action == Accel::On { "on" } else { "off" };
            let query = Query::default().with("state", Some(state.to_owned())).with("pod", pod);
            say(&door().post(&query.of("/accel"))?);
        }
        Command::Bugreport { file, log } => bugreport::write(&door(), &file, log.as_deref())?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "ztunnel", &mut io::stdout());
        }
        Command::Man => clap_mangen::Man::new(Arguments::command()).render(&mut io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn proxy() -> ExitCode {
    log::init(&ProcessEnv);
    let result = app::run(&ProcessEnv);
    log::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn examine(output: Output) -> ExitCode {
    let report = doctor::examine(&ProcessEnv);
    match output.print(&serde_json::json!(report), |_| report.to_string()) {
        Ok(()) => ExitCode::from(report.exit_code()),
        Err(error) => {
            eprintln!("ztunnel: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_the_chart_are_accepted() {
        let parsed = Arguments::try_parse_from(["ztunnel", "proxy", "ztunnel"]).unwrap();
        assert!(matches!(parsed.command, Some(Command::Proxy { .. })));
        assert!(Arguments::try_parse_from(["ztunnel", "nonsense"]).is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_manual_page_names_every_command() {
        let mut page = Vec::new();
        clap_mangen::Man::new(Arguments::command()).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for name in ["doctor", "status", "connections", "denials", "certs", "top", "accel", "bugreport"] {
            assert!(page.contains(name), "{name}");
        }
        assert!(page.contains("Exit codes"), "{page}");
    }
}
