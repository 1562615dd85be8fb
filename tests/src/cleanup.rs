// SPDX-License-Identifier: Apache-2.0
//! Nothing stays behind: everything a mesh makes on the machine carries its prefix, and goes by it.
//!
//! A prefix is `zt<pid>-<n>`. [`remove`] is idempotent and needs nothing but the prefix, so the same code runs when
//! a mesh is dropped, on a signal, and at the next start for a run that was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Once};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use parking_lot::Mutex;

use crate::{cgroup, netns, wait};

/// Prefixes of this process that are in use.
static IN_USE: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU32 = AtomicU32::new(0);
/// A signal has come.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// A prefix of our own; first use also removes what dead runs left.
pub(crate) fn new_prefix() -> String {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    hold_while_stopping();
    let prefix = format!("zt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    IN_USE.lock().push(prefix.clone());
    prefix
}

/// Never returns once the process is about to end: nothing new may be made then.
pub(crate) fn hold_while_stopping() {
    while STOPPING.load(Ordering::Acquire) {
        thread::park();
    }
}

/// The folder of a mesh's files.
pub(crate) fn folder(prefix: &str) -> PathBuf {
    Path::new("/tmp").join(prefix)
}

/// Where a mesh mounts its own bpffs.
pub(crate) fn pins(prefix: &str) -> PathBuf {
    folder(prefix).join("bpf")
}

/// Removes everything that carries `prefix`.
///
/// # Errors
/// What could not be removed, all of it.
pub fn remove(prefix: &str) -> Result<()> {
    let mut trouble = Vec::new();
    let mut attempt = |result: Result<()>| {
        if let Err(error) = result {
            trouble.push(format!("{error:#}"));
        }
    };
    let group = cgroup::mount_point()?.join(prefix);
    if group.exists() {
        attempt(cgroup::kill(&group));
        attempt(cgroup::remove(&group));
    }
    let pins = pins(prefix);
    if pins.exists() && is_mounted(&pins) {
        attempt(umount2(&pins, MntFlags::MNT_DETACH).context("unmount the pins"));
    }
    for name in namespaces(prefix) {
        let path = Path::new(netns::FOLDER).join(&name);
        // What `ip netns del` does. A namespace that is only half made is not a mount.
        umount2(&path, MntFlags::MNT_DETACH).unwrap_or_default();
        attempt(fs::remove_file(&path).with_context(|| format!("remove netns {name}")));
    }
    let folder = folder(prefix);
    if folder.exists() {
        attempt(fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display())));
    }
    IN_USE.lock().retain(|used| used != prefix);
    if trouble.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{}", trouble.join("; "))) }
}

/// What is left of `prefix` on this machine, named; empty when all is gone.
#[must_use]
pub fn leaks(prefix: &str) -> Vec<String> {
    let mut found: Vec<String> = namespaces(prefix).into_iter().map(|name| format!("netns {name}")).collect();
    if let Ok(mount) = cgroup::mount_point() {
        found.extend(mount.join(prefix).exists().then(|| format!("cgroup {prefix}")));
    }
    let folder = folder(prefix);
    found.extend(is_mounted(&pins(prefix)).then(|| format!("bpf pins of {prefix}")));
    found.extend(folder.exists().then(|| format!("files in {}", folder.display())));
    found.extend(processes(prefix).into_iter().map(|pid| format!("process {pid}")));
    found
}

/// Removes everything of this process on SIGINT, SIGTERM and SIGHUP, then exits. Call it first thing in `main`.
pub fn on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(thread::spawn(wait_for_signal)));
}

#[expect(clippy::exit, reason = "the user asked for the end, and all is removed")]
fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let kinds = (SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup());
        if let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
            (signal(kinds.0), signal(kinds.1), signal(kinds.2))
        {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
        }
    });
    STOPPING.store(true, Ordering::Release);
    let prefixes = IN_USE.lock().clone();
    for prefix in &prefixes {
        // A mesh that is being built may still add what it had begun to make.
        let mut clean_rounds = 0;
        let gone = || {
            drop(remove(prefix));
            clean_rounds = if leaks(prefix).is_empty() { clean_rounds + 1 } else { 0 };
            clean_rounds > 2
        };
        drop(wait::until("everything to be removed", Duration::from_secs(5), gone));
    }
    std::process::exit(130);
}

/// Removes what runs left that are dead now.
fn sweep() {
    let own = format!("zt{}-", std::process::id());
    let mut prefixes: Vec<String> = Vec::new();
    let groups = cgroup::mount_point().unwrap_or_default();
    for folder in [Path::new(netns::FOLDER), Path::new("/tmp"), &groups] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        prefixes.extend(entries.filter_map(|entry| prefix_of(entry.file_name().to_str()?)));
    }
    prefixes.sort();
    prefixes.dedup();
    for prefix in prefixes {
        let pid = prefix.trim_start_matches("zt").split('-').next().unwrap_or_default();
        if prefix.starts_with(&own) || !Path::new("/proc").join(pid).exists() {
            drop(remove(&prefix));
        }
    }
}

/// `zt<pid>-<n>` of a name that starts so.
fn prefix_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix("zt")?.split('-');
    let (pid, n) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
    Some(format!("zt{pid}-{n}"))
}

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(netns::FOLDER).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| prefix_of(name).as_deref() == Some(prefix)).collect()
}

/// Processes with our prefix in their cgroup: they would have to be in a removed group still.
fn processes(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = format!("/{prefix}/");
    entries
        .filter_map(|entry| {
            let group = fs::read_to_string(entry.path().join("cgroup")).ok()?;
            // A child that is dead but not waited for has nothing any more; it goes with its parent.
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let dead = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
            (group.contains(&ours) && !dead).then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|mount| Path::new(mount) == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_found_at_the_start_of_a_name_and_nothing_else_is() {
        assert_eq!(prefix_of("zt12-0-client"), Some("zt12-0".to_owned()));
        assert_eq!(prefix_of("zt12-0"), Some("zt12-0".to_owned()));
        for other in ["ztunnel", "zt-1", "zt12", "zt12-x", "azt12-0"] {
            assert_eq!(prefix_of(other), None, "{other}");
        }
    }
}
