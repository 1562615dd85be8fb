// SPDX-License-Identifier: Apache-2.0
//! `demo` and `bench`: make ready what they need, then become them. `reference`: what the code says about itself.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{ebpf, host, step};

/// A cold release build on two cores takes about six minutes.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Builds, then runs the demo.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    become_program("demo", args)
}

/// Builds, then runs the comparison; `--against REV` adds the ztunnel of another revision.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    let mut passed = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--against" {
            let revision = args.next().and_then(|revision| revision.to_str());
            let revision = revision.context("--against wants a revision, such as HEAD~1")?;
            let program = build_revision(revision)?;
            passed.push("--program".into());
            passed.push(format!("{revision}={}", program.display()).into());
        } else {
            passed.push(arg.clone());
        }
    }
    become_program("bench", &passed)
}

/// Writes the reference, as the code has it.
pub(crate) fn reference() -> Result<()> {
    let mut print = host::cargo();
    print.args(["run", "--quiet", "-p", "ztunnel", "--example", "reference"]).stderr(Stdio::inherit());
    let output = print.output().context("cargo")?;
    if !output.status.success() {
        bail!("the code does not build: see above");
    }
    let path = host::root().join("docs/reference.md");
    fs::write(&path, output.stdout).with_context(|| format!("write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// The ztunnel of another revision, built in a folder of its own under `target/`.
fn build_revision(revision: &str) -> Result<PathBuf> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).current_dir(host::root()).output().context("git")?;
        if !output.status.success() {
            bail!("`git {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])?;
    let folder = host::target().join("against").join(&commit);
    let program = folder.join("target/release/ztunnel");
    if program.is_file() {
        return Ok(program);
    }
    println!("building the ztunnel of {revision} ({})", commit.get(..12).unwrap_or(&commit));
    if !folder.is_dir() {
        git(&["worktree", "prune"])?;
        git(&["worktree", "add", "--detach", &folder.to_string_lossy(), &commit])?;
    }
    for args in [&["xtask", "build-ebpf"][..], &["build", "--release", "-p", "ztunnel"]] {
        let mut build = host::cargo();
        build.args(args).current_dir(&folder).env_remove("CARGO_TARGET_DIR");
        step::run(&mut build, BUILD_LIMIT).1.with_context(|| format!("{revision} cannot be built"))?;
    }
    Ok(program)
}

/// Everything a measured run needs: the eBPF object if it can be had, and release builds.
pub(crate) fn build_release() -> Result<()> {
    if let Err(error) = ebpf::build() {
        println!("no eBPF object ({error:#}); going on with the userspace datapath alone");
    }
    println!("building ztunnel and its tools (release; the first time takes some minutes)");
    let (_, built) = step::run(
        host::cargo().args(["build", "--release", "-p", "ztunnel", "-p", "ztunnel-tests", "--bins"]),
        BUILD_LIMIT,
    );
    built
}

/// Replaces this process, so that Ctrl-C reaches the one who has to clean up.
fn become_program(name: &'static str, args: &[OsString]) -> Result<()> {
    let program = host::target().join("release").join(name);
    let asks_for_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    if !asks_for_help {
        host::need_root(name)?;
        host::install_tools()?;
    }
    if !asks_for_help || !program.is_file() {
        build_release()?;
    }
    let failed = Command::new(&program).args(args).current_dir(host::root()).exec();
    Err(failed).with_context(|| format!("start {}", program.display()))
}
