// SPDX-License-Identifier: Apache-2.0
//! `load`: a small load generator and its server, for the demo, the benchmark and the scenarios.
//!
//! One program plays both ends: `load serve` in one pod; `load rr`, `crr`, `bulk` or `idle` in another. Every
//! byte of a request and a response is checked. A run prints one line of JSON ([`outcome`]).
//!
//! Map: [`frame`] bytes on the wire; [`histogram`], [`tally`] measuring; [`threads`] blocking clients, one thread
//! per connection; [`events`] the same loads event-driven; [`serve`] both kinds of server.
//! The event-driven half reads as tokio, nginx and netty do: edge-triggered, and a short read means "drained".

#![expect(clippy::print_stdout, reason = "the result is printed")]
#![expect(clippy::print_stderr, reason = "so is a failure")]
#![expect(clippy::cast_precision_loss, reason = "counts below 2^53 become rates")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

mod events;
mod frame;
mod histogram;
mod outcome;
mod serve;
mod tally;
mod threads;

use tally::{Tally, Window};

/// Load generator and server that check every byte.
#[derive(Debug, Parser)]
#[command(name = "load")]
struct Cli {
    /// Run on this core only
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// How the sockets are used
    #[arg(long, global = true, value_enum, default_value_t = Io::Blocking)]
    io: Io,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Io {
    /// One thread per connection
    Blocking,
    /// One thread for all of them, epoll
    Nonblocking,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer on four ports from PORT on: requests, sink, source, echo; prints `ready`, runs until killed
    Serve {
        #[arg(long, default_value = "0.0.0.0")]
        addr: IpAddr,
        #[arg(long, default_value_t = 7000)]
        port: u16,
        /// The sink checks the stream's bytes as well as their number
        #[arg(long)]
        verify: bool,
    },
    /// Request and response on open connections; with --rate at fixed times, else as fast as answers come
    Rr {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 1)]
        conns: usize,
        /// Bytes of a request
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Bytes of a response; those of the request if not given
        #[arg(long)]
        answer: Option<usize>,
        /// Requests per second over all connections; latency counts from when one was due
        #[arg(long)]
        rate: Option<f64>,
    },
    /// A new connection for every request
    Crr {
        #[command(flatten)]
        target: Target,
        /// How many at a time
        #[arg(long, default_value_t = 1)]
        conns: usize,
    },
    /// Streams of bytes as fast as they go
    Bulk {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 1)]
        conns: usize,
        /// From the server to here, instead of towards it
        #[arg(long)]
        download: bool,
        /// Check every byte that is received here
        #[arg(long)]
        verify: bool,
    },
    /// Open connections, use each once, print the line, hold them until standard input ends
    Idle {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 1000)]
        conns: usize,
    },
}

#[derive(Debug, Clone, Args)]
struct Target {
    /// The server's address and first port
    #[arg(long)]
    to: SocketAddr,
    /// Seconds to measure
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Seconds to run before that
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
}

/// What the clients need to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) to: SocketAddr,
    pub(crate) conns: usize,
    pub(crate) size: usize,
    pub(crate) answer: usize,
    /// Time between two requests of one connection, for fixed rates.
    pub(crate) interval: Option<Duration>,
    pub(crate) download: bool,
    pub(crate) verify: bool,
    warmup: Duration,
    length: Duration,
}

impl Plan {
    fn new(target: &Target, conns: usize, size: usize) -> Result<Self> {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).context("not a length of time");
        if conns == 0 || !(frame::HEADER..=frame::MAX).contains(&size) {
            bail!("at least one connection, and sizes from {} to {} bytes", frame::HEADER, frame::MAX);
        }
        Ok(Self {
            to: target.to,
            conns,
            size,
            answer: size,
            interval: None,
            download: false,
            verify: false,
            warmup: seconds(target.warmup)?,
            length: seconds(target.secs)?,
        })
    }

    fn begin(&self) -> Window {
        Window::begin(self.warmup, self.length)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    prepare(cli.cpu)?;
    let (name, plan, tally) = match cli.command {
        Command::Serve { addr, port, verify } => {
            let sink = if verify { serve::Service::CheckedSink } else { serve::Service::Sink };
            let listeners = serve::listen(addr, port, sink)?;
            println!("ready");
            return match cli.io {
                Io::Blocking => serve::threads::run(listeners),
                Io::Nonblocking => serve::events::run(listeners),
            };
        }
        Command::Rr { target, conns, size, answer, rate } => {
            let mut plan = Plan::new(&target, conns, size)?;
            plan.answer = answer.unwrap_or(size).clamp(frame::HEADER, frame::MAX);
            plan.interval = rate.map(|rate| Duration::from_secs_f64(conns as f64 / rate.max(0.001)));
            let tally = if cli.io == Io::Blocking { threads::rr(&plan) } else { events::exchange::rr(&plan) };
            ("rr", plan, tally?)
        }
        Command::Crr { target, conns } => {
            let plan = Plan::new(&target, conns, 64)?;
            let tally =
                if cli.io == Io::Blocking { threads::crr(&plan) } else { events::exchange::crr(&plan) };
            ("crr", plan, tally?)
        }
        Command::Bulk { target, conns, download, verify } => {
            let plan = Plan { download, verify, ..Plan::new(&target, conns, frame::HEADER)? };
            let tally =
                if cli.io == Io::Blocking { threads::bulk(&plan) } else { events::stream::bulk(&plan) };
            ("bulk", Plan { size: 0, ..plan }, tally?)
        }
        Command::Idle { target, conns } => {
            let plan = Plan::new(&target, conns, 64)?;
            let (held, tally) = threads::idle(&plan)?;
            report("idle", &plan, tally)?;
            // The other end of standard input says when.
            std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the end of standard input")?;
            drop(held);
            return Ok(());
        }
    };
    report(name, &plan, tally)
}

fn report(name: &str, plan: &Plan, tally: Tally) -> Result<()> {
    let outcome = tally.outcome(name, plan.conns, plan.size, plan.length);
    println!("{}", serde_json::to_string(&outcome).context("write the outcome")?);
    std::io::stdout().flush().context("print the outcome")
}

/// Thousands of sockets, exact timers, one core if asked.
fn prepare(cpu: Option<usize>) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of open files")?;
    nix::sys::prctl::set_timerslack(1).context("timer slack")?;
    if let Some(cpu) = cpu {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu).with_context(|| format!("core {cpu}"))?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
            .with_context(|| format!("run on core {cpu}"))?;
    }
    Ok(())
}
