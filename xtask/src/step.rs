// SPDX-License-Identifier: Apache-2.0
//! Runs one command: its output passes through, its tests are counted, its time is limited.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many tests passed, failed, were ignored; read from cargo's own summary lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Count {
    /// Adds the line `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines change nothing.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else { return };
        let Some((_, numbers)) = rest.split_once(". ") else { return };
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// The sum of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// Runs `command` to its end, at most for `limit`. What it prints passes through.
///
/// # Errors
/// If it cannot start, takes too long or fails; the count read so far is given in any case.
pub(crate) fn run(command: &mut Command, limit: Duration) -> (Count, Result<()>) {
    let mut count = Count::default();
    let outcome = watch(command, limit, &mut count);
    (count, outcome)
}

fn watch(command: &mut Command, limit: Duration, count: &mut Count) -> Result<()> {
    let name = line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{name}`"))?;
    let lines = lines_of(&mut child);
    let deadline = Instant::now() + limit;
    let mut out = std::io::stdout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                count.read(&line);
                // A reader that went away is no reason to stop a test run.
                writeln!(out, "{line}").ok();
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                end_tree(&mut child);
                bail!("`{name}` was stopped after {} minutes", limit.as_secs() / 60);
            }
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{name}`"))?;
    if status.success() { Ok(()) } else { bail!("`{name}`: {status}") }
}

fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line);
                if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    receiver
}

/// Asks the child and everything it started to end; the tests remove their namespaces on SIGTERM.
fn end_tree(child: &mut Child) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in descendants(child.id()) {
            // Already gone is as good as ended.
            kill(pid, signal).ok();
        }
        let patience = Instant::now() + Duration::from_secs(20);
        while Instant::now() < patience {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// `pid` and its children's children, the youngest first.
fn descendants(pid: u32) -> Vec<Pid> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let child = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold spaces; the state and the parent follow it.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((child, parent))
        })
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.iter().rev().filter_map(|pid| i32::try_from(*pid).ok()).map(Pid::from_raw).collect()
}

/// The command as one would type it.
fn line_of(command: &Command) -> String {
    let program =
        std::path::Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let args = command.get_args().map(std::ffi::OsStr::to_string_lossy);
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_counted_and_others_are_not() {
        let mut count = Count::default();
        count.read(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        );
        count.read("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out");
        count.read("test passed_over ... ok");
        assert_eq!(count, Count { passed: 5, failed: 4, ignored: 1 });
    }

    #[test]
    fn a_command_over_its_time_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & wait"]);
        let started = Instant::now();
        let (_, outcome) = run(&mut command, Duration::from_millis(200));
        assert!(outcome.is_err());
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let (_, outcome) = run(Command::new("sh").args(["-c", "exit 3"]), Duration::from_secs(5));
        let text = outcome.expect_err("exit code 3").to_string();
        assert!(text.contains("sh -c") && text.contains('3'), "{text}");
    }
}
