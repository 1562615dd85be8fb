// SPDX-License-Identifier: Apache-2.0
//! Starting a program in a network namespace and a cgroup.
//!
//! A child inherits the namespace of the thread that starts it, so a visiting thread does. The cgroup is joined
//! by a line of shell before the program replaces it, so that its sockets belong there from the first one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use crate::cgroup::Cgroup;
use crate::netns::Netns;

/// A program about to be started inside.
#[derive(Debug)]
pub struct Launch {
    netns: Netns,
    command: Command,
}

impl Launch {
    pub(crate) fn new(netns: &Netns, cgroup: Option<&Cgroup>, program: &str) -> Self {
        let mut command;
        if let Some(cgroup) = cgroup {
            command = Command::new("/bin/sh");
            command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
            command.arg(cgroup.path().join("cgroup.procs")).arg(program);
        } else {
            command = Command::new(program);
        }
        Self { netns: netns.clone(), command }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// One variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts with nothing but a search path in its environment.
    #[must_use]
    pub fn clean_env(mut self) -> Self {
        self.command.env_clear();
        self.command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        self
    }

    /// Its working directory.
    #[must_use]
    pub fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Its input.
    #[must_use]
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// Its output.
    #[must_use]
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self
    }

    /// Its complaints.
    #[must_use]
    pub fn stderr(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stderr(to);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(mut self) -> io::Result<Child> {
        self.netns.run(|| self.command.spawn())
    }

    /// Starts it and waits; its output is captured.
    ///
    /// # Errors
    /// As [`Command::output`].
    pub fn output(mut self) -> io::Result<Output> {
        self.netns.run(|| self.command.output())
    }

    /// Starts it and waits.
    ///
    /// # Errors
    /// As [`Command::status`].
    pub fn status(mut self) -> io::Result<ExitStatus> {
        self.netns.run(|| self.command.status())
    }
}
