// SPDX-License-Identifier: Apache-2.0
//! The ztunnel process of a node, with its output in files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::Launch;

/// A started ztunnel. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    ended: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts it with output to `<files>.stdout` and `<files>.stderr`.
    pub(super) fn start(launch: Launch, files: &Path) -> Result<Self> {
        let name = |ending: &str| PathBuf::from(format!("{}.{ending}", files.display()));
        let (stdout, stderr) = (name("stdout"), name("stderr"));
        let create = |path: &Path| File::create(path).with_context(|| format!("make {}", path.display()));
        let launch = launch.stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?);
        let child = launch.spawn().context("start ztunnel")?;
        Ok(Self { child, ended: None, stdout, stderr })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        anyhow::ensure!(self.ended.is_none(), "ztunnel has ended already");
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), signal).context("signal ztunnel")
    }

    pub(super) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub(super) fn stderr(&self) -> String {
        read(&self.stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
