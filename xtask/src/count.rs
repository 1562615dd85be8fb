// SPDX-License-Identifier: Apache-2.0
//! `count`: instructions per decision of the core, under valgrind, against the budgets in
//! `ztunnel/core/benches/instructions.txt`.
//!
//! Instructions do not depend on what else the machine does, so that this can fail a build where a timing could not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;

const BUDGETS: &str = "ztunnel/core/benches/instructions.txt";
/// Each part runs so often, and twice as often; the difference is free of start-up and of building the mesh.
const TIMES: u32 = 200;

/// Counts every part and compares it with its budget.
///
/// # Errors
/// A part is over its budget, has none, or valgrind cannot be had.
pub(crate) fn run() -> Result<()> {
    host::install("valgrind", "valgrind")?;
    let program = build()?;
    let path = host::root().join(BUDGETS);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut over = Vec::new();
    println!("{:<28}{:>12}{:>12}", "instructions", "now", "budget");
    for (name, budget) in budgets(&text)? {
        let (once, twice) = (instructions(&program, name, TIMES)?, instructions(&program, name, TIMES * 2)?);
        let each = twice.saturating_sub(once) / u64::from(TIMES);
        println!("{name:<28}{each:>12}{budget:>12}");
        if each == 0 {
            bail!("no part is named `{name}` in ztunnel/core/benches/decisions.rs");
        }
        if each > budget {
            over.push(name);
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    bail!("over budget: {}. Make it cheaper, or raise its line in {BUDGETS} and say why", over.join(", "))
}

/// `instructions name` by line; `#` begins a comment.
fn budgets(text: &str) -> Result<Vec<(&str, u64)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (budget, name) = line.split_once(' ').with_context(|| format!("{BUDGETS}: `{line}`"))?;
            let budget = budget.replace('_', "").parse().with_context(|| format!("{BUDGETS}: `{line}`"))?;
            Ok((name.trim(), budget))
        })
        .collect()
}

/// The path of the built program, from what cargo says of it.
fn build() -> Result<PathBuf> {
    let mut cargo = host::cargo();
    cargo.args(["bench", "-p", "ztunnel-core", "--bench", "decisions", "--no-run", "--message-format=json"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("start cargo")?;
    if !output.status.success() {
        bail!("the parts cannot be built");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let executable = said
        .lines()
        .filter(|line| line.contains("\"name\":\"decisions\""))
        .find_map(|line| line.split_once("\"executable\":\"")?.1.split_once('"').map(|(path, _)| path));
    executable.map(PathBuf::from).context("cargo did not say where it put the parts")
}

fn instructions(program: &Path, part: &str, times: u32) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--count", part, &times.to_string()])
        .output()
        .context("start valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{part}` failed under valgrind: {}", said.trim());
    }
    let counted = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    counted.with_context(|| format!("valgrind did not count `{part}`: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn budgets_are_read_by_line() {
        let text = "# what for\n\n1_200 route to a service\n  35 x\n";
        assert_eq!(super::budgets(text).unwrap(), [("route to a service", 1200), ("x", 35)]);
        assert!(super::budgets("many route").is_err());
    }
}
