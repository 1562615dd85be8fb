// SPDX-License-Identifier: Apache-2.0
//! The command line. `proxy`, `version` and `help` are the contract's; the rest looks at this machine or at a running node.
#![expect(clippy::print_stderr, reason = "a command line talks to its user")]

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::admin::ADMIN_PORT;
use crate::config::Config;
use crate::config::env::ProcessEnv;
use crate::telemetry::log;
use crate::{app, doctor, version};

/// How long the admin server of a running node may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(
    name = "ztunnel",
    about = "The node proxy of Istio ambient mesh, with local hops accelerated by eBPF"
)]
#[command(disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
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
        /// Form of the report.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the running node: pods, fast path, and why it is off where it is off.
    Status {
        /// Form of the report.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Switch the fast path of the running node, or show it.
    Accel {
        /// What to do.
        action: Accel,
        /// Only this pod, as `namespace/name`.
        #[arg(long)]
        pod: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
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
    let result = match arguments.command.unwrap_or(Command::Proxy { arguments: Vec::new() }) {
        Command::Proxy { arguments: _ } => return proxy(),
        Command::Version => {
            say(&format!("{}\n", version::describe()));
            Ok(())
        }
        Command::Help => {
            use clap::CommandFactory as _;
            Arguments::command().print_help()
        }
        Command::Doctor { output } => return examine(output),
        Command::Status { output } => status(output, None),
        Command::Accel { action: Accel::Show, pod } => status(Output::Text, pod.as_deref()),
        Command::Accel { action, pod } => switch(action, pod.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error}");
            ExitCode::FAILURE
        }
    }
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
    match output {
        Output::Text => say(&report.to_string()),
        Output::Json => say(&format!("{:#}\n", serde_json::json!(report))),
    }
    ExitCode::from(report.exit_code())
}

fn switch(action: Accel, pod: Option<&str>) -> io::Result<()> {
    let state = if action == Accel::On { "on" } else { "off" };
    let pod = pod.map(|pod| format!("&pod={pod}")).unwrap_or_default();
    say(&ask("POST", &format!("/accel?state={state}{pod}"))?);
    Ok(())
}

fn status(output: Output, pod: Option<&str>) -> io::Result<()> {
    let text = ask("GET", "/status")?;
    if output == Output::Json {
        say(&text);
        return Ok(());
    }
    let status: Value = serde_json::from_str(&text).map_err(io::Error::other)?;
    say(&render(&status, pod));
    Ok(())
}

/// Prints; whoever reads us may stop reading, which is no failure.
fn say(text: &str) {
    io::stdout().write_all(text.as_bytes()).ok();
}

/// The status for people: problems first.
fn render(status: &Value, only: Option<&str>) -> String {
    let mut lines = Vec::new();
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    if let Some(pending) = status["pending"].as_array().filter(|pending| !pending.is_empty()) {
        let pending: Vec<_> = pending.iter().map(word).collect();
        lines.push(format!("NOT READY, waiting for: {}", pending.join(", ")));
    }
    let mode = &status["mode"];
    let state = if mode["on"] == true { "on" } else { "off" };
    lines.push(format!(
        "fast path: {state} (mode {}, configured {}: {})",
        word(&mode["effective"]),
        word(&mode["configured"]),
        word(&mode["reason"])
    ));
    for check in status["self_test"].as_array().into_iter().flatten().filter(|check| check["ok"] != true) {
        lines.push(format!("  self-test FAILED {}: {}", word(&check["name"]), word(&check["detail"])));
    }
    let traffic = &status["fastpath"];
    lines.push(format!(
        "  paired {}, unpaired {}, redirected {} messages, {} bytes",
        traffic["paired"], traffic["unpaired"], traffic["redirected_messages"], traffic["redirected_bytes"]
    ));
    for (reason, count) in traffic["passed"].as_object().into_iter().flatten() {
        lines.push(format!("  passed to TCP, {reason}: {count}"));
    }
    lines.push(format!("{:<40} {:<6} {:<24} {:>11}", "POD", "LEVEL", "REASON", "CONNECTIONS"));
    for pod in status["pods"].as_array().into_iter().flatten() {
        let name = format!("{}/{}", word(&pod["namespace"]), word(&pod["name"]));
        if only.is_none_or(|only| only == name) {
            lines.push(format!(
                "{name:<40} {:<6} {:<24} {:>11}",
                word(&pod["level"]),
                word(&pod["reason"]),
                pod["connections"]
            ));
        }
    }
    lines.join("\n") + "\n"
}

/// Asks the admin server of the node in this network namespace.
fn ask(method: &str, target: &str) -> io::Result<String> {
    // The node's settings are ours, if we run beside it.
    let port = Config::from_env(&ProcessEnv).map_or(ADMIN_PORT, |config| config.ports.admin);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = TcpStream::connect_timeout(&address, ADMIN_TIMEOUT).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("no ztunnel answers on {address}: {error} (run this in its network namespace)"),
        )
    })?;
    socket.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(
        socket,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("not an HTTP answer"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(body.trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_arguments_of_the_chart_are_accepted() {
        let parsed = Arguments::try_parse_from(["ztunnel", "proxy", "ztunnel"]).unwrap();
        assert!(matches!(parsed.command, Some(Command::Proxy { .. })));
        assert!(Arguments::try_parse_from(["ztunnel", "nonsense"]).is_err());
    }

    #[test]
    fn problems_come_first() {
        let status = json!({
            "pending": ["workload proxy manager"],
            "mode": { "configured": "auto", "effective": "off", "reason": "no BTF", "on": false },
            "self_test": [{ "name": "load", "ok": false, "detail": "EPERM" }],
            "fastpath": { "paired": 0, "unpaired": 0, "redirected_messages": 0, "redirected_bytes": 0, "passed": {} },
            "pods": [{ "name": "a", "namespace": "ns", "level": "off", "reason": "kernel_unfit", "connections": 3 }],
        });
        let text = render(&status, None);
        assert!(text.starts_with("NOT READY, waiting for: workload proxy manager\nfast path: off"), "{text}");
        assert!(text.contains("self-test FAILED load: EPERM"), "{text}");
        assert!(!render(&status, Some("ns/b")).contains("ns/a"));
    }
}
