// SPDX-License-Identifier: Apache-2.0
//! Control groups (v2) of pods and of each ztunnel: eBPF programs, CPU time, and killing what is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{cleanup, wait};

/// Where the v2 hierarchy is mounted. Hybrid hosts do not have it at `/sys/fs/cgroup`.
///
/// # Errors
/// It is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4))?
        })
        .map(PathBuf::from)
        .next()
        .context("no cgroup v2 hierarchy is mounted")
}

/// One control group.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes `name` (a relative path) below the mount point.
    ///
    /// # Errors
    /// No permission.
    pub fn create(name: &str) -> Result<Self> {
        cleanup::hold_while_stopping();
        let path = mount_point()?.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Processes in it.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// CPU time of everything that ever ran in it, if the kernel counts it.
    ///
    /// # Errors
    /// The group is gone.
    pub fn cpu_time(&self) -> Result<Option<Duration>> {
        let text = fs::read_to_string(self.0.join("cpu.stat")).context("read cpu.stat")?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Ok(usage.map(Duration::from_micros))
    }

    /// Kills everything in it and below, and waits until it is empty.
    ///
    /// # Errors
    /// Something does not die.
    pub fn kill(&self) -> Result<()> {
        kill(&self.0)
    }
}

/// Kills everything in the group at `path`, and below.
pub(crate) fn kill(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("kill {}", path.display()))?;
    wait::until("an empty cgroup", Duration::from_secs(10), || {
        fs::read_to_string(path.join("cgroup.events")).is_ok_and(|text| text.contains("populated 0"))
    })
}

/// Removes the group at `path` with everything below.
pub(crate) fn remove(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))?.flatten() {
        if entry.path().is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("remove cgroup {}", path.display()))
}
