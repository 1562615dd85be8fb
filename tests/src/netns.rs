// SPDX-License-Identifier: Apache-2.0
//! Named network namespaces, and running code inside one.
//!
//! A socket stays in the namespace in which it was made, whichever thread uses it later: so a short visit on a
//! thread of its own is enough to make one. No thread of the caller ever changes its namespace.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::launch::Launch;

/// Where `ip netns` keeps its names.
pub const FOLDER: &str = "/run/netns";

/// A network namespace with a name. Clones are the same namespace.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace with loopback up and neither address detection delays nor multicast snooping.
    ///
    /// # Errors
    /// No permission, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        let output = Command::new("ip").args(["netns", "add", name]).output().context("start `ip`")?;
        if !output.status.success() {
            bail!("ip netns add {name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let handle =
            File::open(Path::new(FOLDER).join(name)).with_context(|| format!("open netns {name}"))?;
        let netns = Self(Arc::new(Named { name: name.to_owned(), handle }));
        netns.run(|| -> Result<()> {
            for (key, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/dad_transmits", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
            ] {
                let path = Path::new("/proc/sys/net").join(key);
                std::fs::write(&path, value).with_context(|| format!("write {}", path.display()))?;
            }
            Ok(())
        })?;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Its name in `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its file in [`FOLDER`].
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(self.name())
    }

    /// The namespace itself, as the node agent hands it over.
    #[must_use]
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.0.handle.as_fd()
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` inside on a thread of its own. The namespace lives until it has ended.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.clone();
        thread::spawn(move || {
            netns.enter();
            work()
        })
    }

    /// A program that will run inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Launch {
        Launch::new(self, None, program)
    }

    /// Runs a batch of `ip` commands inside.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch)
    }

    /// Runs a program inside with `input`, and expects success.
    ///
    /// # Errors
    /// It cannot be started or fails; the error has its output.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{program}`"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).with_context(|| format!("write to `{program}`"))?;
        }
        let output = child.wait_with_output().with_context(|| format!("wait for `{program}`"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} in {}: {}\n{said}\n{input}", self.name(), output.status);
        }
        Ok(())
    }

    /// Moves the calling thread, which must be one of ours and end with the work.
    fn enter(&self) {
        let moved = setns(self.0.handle.as_fd(), CloneFlags::CLONE_NEWNET);
        moved.unwrap_or_else(|error| unreachable!("enter netns {}: {error}", self.name()));
    }
}
