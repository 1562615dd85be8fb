// SPDX-License-Identifier: Apache-2.0
//! `demo` and `bench`: make ready what they need, then become them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{ebpf, host, step};

/// A cold release build on two cores takes about six minutes.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Builds, then runs the demo.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    become_program("demo", args)
}

/// Builds, then runs the comparison.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    become_program("bench", args)
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
