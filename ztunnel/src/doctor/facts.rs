// SPDX-License-Identifier: Apache-2.0
//! What the probes found: plain data, without an opinion.

use std::fmt;
use std::io;
use std::path::PathBuf;

use ztunnel_core::fastpath::Level;

use super::mounts::Mount;
use crate::config::Config;
use crate::fastpath::Check;

/// What came of one attempt: what was seen, or why it failed.
pub(super) type Outcome = Result<String, Failure>;

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The kernel's number for it, if it was the kernel that refused.
    pub(super) errno: Option<i32>,
    /// In words.
    pub(super) text: String,
}

impl Failure {
    /// A failure that is not an error of the kernel's.
    pub(super) fn because(text: impl Into<String>) -> Self {
        Self { errno: None, text: text.into() }
    }

    /// The kernel refused for lack of a privilege, as opposed to not knowing what was asked for.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.errno, Some(libc::EPERM | libc::EACCES))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Release of the running kernel, for the reader; nothing is decided by it.
    pub(super) kernel: String,
    /// Effective capabilities of this process as a bit set; they explain a refusal.
    pub(super) capabilities: Option<u64>,
    /// The settings, or the defaults where they cannot be used.
    pub(super) config: Config,
    /// Whether the settings can be used.
    pub(super) settings: Outcome,
    /// Whether the mesh file can be used; `None` if there is none.
    pub(super) mesh: Option<Outcome>,
    /// What sockets and namespaces allow.
    pub(super) sockets: Sockets,
    /// What eBPF allows.
    pub(super) bpf: Bpf,
    /// The servers of the control plane that the settings name.
    pub(super) control_plane: Vec<Remote>,
    /// What is around us.
    pub(super) host: Host,
}

/// A server of the control plane.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    /// `istiod` or `CA`.
    pub(super) name: &'static str,
    /// Roots were read, and TCP, TLS and HTTP/2 came about.
    pub(super) reached: Outcome,
    /// What calls would show of us could be read.
    pub(super) token: Outcome,
}

/// What sockets and namespaces allow.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    pub(super) setns: Outcome,
    pub(super) mark: Outcome,
    pub(super) reuse_port: Outcome,
    pub(super) netns_cookie: Outcome,
    pub(super) v4: Family,
    /// `Err`: no IPv6 here.
    pub(super) v6: Result<Family, Failure>,
}

/// What sockets of one address family allow.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) transparent: Outcome,
    pub(super) freebind: Outcome,
    /// `Ok`: connection tracking answered, even if only that it does not know the connection.
    pub(super) original_dst: Outcome,
}

/// What eBPF allows.
#[derive(Clone, Debug)]
pub(super) struct Bpf {
    /// The binary carries the programs.
    pub(super) embedded: bool,
    pub(super) btf: Outcome,
    /// A tiny map could be made.
    pub(super) syscall: Outcome,
    /// Name and outcome of each type of program and map and each helper that our programs use.
    pub(super) types: Vec<(&'static str, Outcome)>,
    /// Contents of `/sys/kernel/security/lockdown`, if there is such a file.
    pub(super) lockdown: Option<String>,
    /// Contents of `net.core.bpf_jit_enable`, visible in the first network namespace only.
    pub(super) jit: Option<String>,
    /// Candidates for `sock_ops`, in the order of the mount table.
    pub(super) cgroups: Vec<Cgroup>,
    /// Programs of others that also claim sockets.
    pub(super) foreign: Vec<String>,
    /// What the fast path said about itself.
    pub(super) trial: Trial,
}

/// A directory of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// Where.
    pub(super) path: PathBuf,
    /// What part of the hierarchy the mount table says it is; empty if the operator named it.
    pub(super) root: String,
    /// What the directory itself shows.
    pub(super) extent: Extent,
}

/// How much of the node a cgroup directory covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The root of the hierarchy: every process of the node.
    Node,
    /// A cgroup below it.
    Subtree,
    /// No cgroup v2 directory.
    None,
}

/// The fast path's own verdict after it was loaded, attached and tried.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    /// The highest level that it would use here.
    pub(super) level: Level,
    /// Why.
    pub(super) reason: String,
    /// Step by step.
    pub(super) checks: Vec<Check>,
}

/// What is around us.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// The hard limit of open files.
    pub(super) open_files: Result<u64, Failure>,
    /// Effective user.
    pub(super) uid: u32,
    /// The mount table.
    pub(super) mounts: Vec<Mount>,
    /// The node agent's socket.
    pub(super) agent: Outcome,
    /// Our own ports: number, what for, whether it is free.
    pub(super) ports: Vec<(u16, &'static str, Outcome)>,
}
