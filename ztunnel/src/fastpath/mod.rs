// SPDX-License-Identifier: Apache-2.0
//! The fast path: local hops between an application and ztunnel through a sockmap.
//!
//! The switch is here: on, off, and why. Nothing here fails a connection: whatever is missing or
//! goes wrong, bytes go by TCP, and the reason is counted.
//!
//! * [`layout`]: where this kernel keeps what the gate reads, from its BTF.
//! * [`loader`]: load, pin and attach the programs. [`debug`]: what they say, on request.
//! * [`selftest`]: prove on real sockets, at start, that this kernel does what the fast path needs.
//! * [`pair`]: one connection's place in the kernel: paired or not, why, and its bytes.
//! * [`status`]: what an operator sees.
//! * [`valve`]: what an application has not read stays bounded.
//!
//! The programs are in `ztunnel-ebpf`, their decisions in `ztunnel_common::verdict`, the argument
//! why the order of bytes holds in `docs/fastpath.md`.

mod debug;
mod layout;
mod loader;
mod pair;
mod selftest;
mod status;
mod valve;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use ztunnel_common::{Pod, level, maps, role};
use ztunnel_core::fastpath::{Eligibility, KernelFitness, Level, Mode, Pattern, Reason, eligibility};

use crate::sys::memory;
use loader::Kernel;
pub use pair::{Path, Place};
pub use status::{Check, MapFill, ModeStatus, Status, Traffic};
pub use valve::Valve;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// `EBPF_FASTPATH`.
    pub mode: Mode,
    /// `EBPF_FULL_WORKLOADS`: who qualifies for both directions by the operator's word.
    pub full_workloads: Vec<Pattern>,
    /// `EBPF_CGROUP_ROOT`; found in the mount table if unset.
    pub cgroup_root: Option<PathBuf>,
    /// `EBPF_PIN_PATH`: where the socket map is pinned.
    pub pin_path: PathBuf,
    /// `EBPF_MAX_CONNECTIONS`: pairs at the same time, within [`CONNECTIONS`].
    pub max_connections: u32,
    /// `EBPF_DEBUG`: what the programs say about connections that stay out of the map, in our log.
    pub debug: bool,
}

/// What `EBPF_MAX_CONNECTIONS` may be.
pub const CONNECTIONS: std::ops::RangeInclusive<u32> = maps::CONNS_MIN..=maps::CONNS_MAX;
/// What it is if it is not set.
pub const CONNECTIONS_DEFAULT: u32 = maps::CONNS_DEFAULT;

/// The fast path of this node. Cloning shares it.
#[derive(Clone, Debug)]
pub struct FastPath(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Programs and maps; `None`: everything goes by TCP.
    kernel: Option<Kernel>,
    /// The highest level that the self-test allows.
    ceiling: Level,
    /// Why the effective mode is what it is.
    reason: String,
    checks: Vec<Check>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    node_on: bool,
    pods: HashMap<u64, Pod>,
}

/// Whether this binary was built with the programs.
pub fn is_embedded() -> bool {
    loader::is_embedded()
}

impl FastPath {
    /// Loads, attaches and tests the programs. Never fails: what is missing ends as mode `off` with
    /// a reason that can be read in [`FastPath::status`].
    pub fn start(config: Config) -> Self {
        if config.mode == Mode::Off {
            return Self::without(config, "mode_off".to_owned(), Vec::new());
        }
        let mut checks = Vec::new();
        let mut kernel = match loader::load(&config, &mut checks) {
            Ok(kernel) => kernel,
            Err(error) => {
                tracing::warn!("fast path off: {error}");
                return Self::without(config, error.to_string(), checks);
            }
        };
        let ceiling = selftest::run(&kernel, &mut checks);
        kernel.forget_counts();
        // The kernel's type information is large, and nobody looks at it again.
        memory::release_free();
        if ceiling == Level::Off {
            let reason = status::failures(&checks);
            tracing::warn!("fast path off: self-test failed: {reason}");
            return Self::without(config, format!("self-test failed: {reason}"), checks);
        }
        let reason = match (ceiling, checks.iter().all(|check| check.ok)) {
            (Level::Full, true) => "self-test passed".to_owned(),
            (Level::Full, false) => {
                format!("self-test passed, with a caution: {}", status::failures(&checks))
            }
            (Level::Off | Level::Half, _) => format!("half at most: {}", status::failures(&checks)),
        };
        tracing::info!("fast path {}: {reason}", config.mode);
        Self::with(config, Some(kernel), ceiling, reason, checks)
    }

    fn without(config: Config, reason: String, checks: Vec<Check>) -> Self {
        Self::with(config, None, Level::Off, reason, checks)
    }

    fn with(
        config: Config,
        kernel: Option<Kernel>,
        ceiling: Level,
        reason: String,
        checks: Vec<Check>,
    ) -> Self {
        let state = Mutex::new(State { node_on: true, pods: HashMap::new() });
        Self(Arc::new(Inner { config, kernel, ceiling, reason, checks, state }))
    }

    /// Everything an operator may want to know.
    pub fn status(&self) -> Status {
        let inner = &*self.0;
        let effective = match (&inner.kernel, inner.ceiling) {
            (None, _) | (_, Level::Off) => Mode::Off,
            (Some(_), Level::Half) if inner.config.mode != Mode::Auto => Mode::Half,
            (Some(_), Level::Half | Level::Full) => inner.config.mode,
        };
        let node_on = inner.state.lock().node_on;
        Status {
            mode: ModeStatus {
                configured: inner.config.mode.to_string(),
                effective: effective.to_string(),
                reason: inner.reason.clone(),
                on: node_on && effective != Mode::Off,
            },
            self_test: inner.checks.clone(),
            fastpath: inner.kernel.as_ref().map(Traffic::read).unwrap_or_default(),
        }
    }

    /// How full the maps are, those that can be full: pods and pairs. Takes a walk over all pairs.
    pub fn maps(&self) -> Vec<MapFill> {
        let inner = &*self.0;
        let Some(kernel) = &inner.kernel else { return Vec::new() };
        let pods = inner.state.lock().pods.len();
        let pods = MapFill { name: "pods", entries: pods, max_entries: maps::PODS_ENTRIES };
        let max_entries = inner.config.max_connections as usize;
        let pairs = kernel.conns.count().map(|entries| MapFill { name: "connections", entries, max_entries });
        // Kernels before 5.6 cannot be asked.
        std::iter::once(pods).chain(pairs).collect()
    }

    /// Steps of loading and testing that failed at start, if the fast path was asked for.
    pub fn load_errors(&self) -> usize {
        let inner = &*self.0;
        let failed = inner.checks.iter().filter(|check| !check.ok).count();
        let not_loaded = inner.kernel.is_none() && inner.config.mode != Mode::Off;
        failed.max(usize::from(not_loaded))
    }

    /// A pod was added: decides its level and tells the programs.
    pub fn enroll(&self, cookie: u64, namespace: &str, service_account: &str) -> Eligibility {
        let inner = &*self.0;
        let fitness = if inner.kernel.is_some() { KernelFitness::Fit } else { KernelFitness::Unfit };
        let mut found =
            eligibility(inner.config.mode, &inner.config.full_workloads, namespace, service_account, fitness);
        if found.level > inner.ceiling {
            // Whoever qualifies for both directions only would lose by membership without them.
            let level = if inner.config.mode == Mode::Auto { Level::Off } else { inner.ceiling };
            found = Eligibility { level, reason: Reason::KernelUnfit };
        }
        let Some(kernel) = &inner.kernel else { return found };
        if found.level == Level::Off {
            return found;
        }
        let pod = Pod { level: kernel_level(found.level), on: 1 };
        let mut state = inner.state.lock();
        if let Err(error) = kernel.pods.insert(&cookie, &pod) {
            tracing::warn!("fast path off for {namespace}/{service_account}: {error}");
            return Eligibility { level: Level::Off, reason: Reason::KernelUnfit };
        }
        state.pods.insert(cookie, pod);
        found
    }

    /// A pod is gone. Its pairs fall back to TCP from the next message on.
    pub fn withdraw(&self, cookie: u64) {
        let mut state = self.0.state.lock();
        if state.pods.remove(&cookie).is_some()
            && let Some(kernel) = &self.0.kernel
            && let Err(error) = kernel.pods.remove(&cookie)
        {
            tracing::warn!("fast path: a pod could not be withdrawn: {error}");
        }
    }

    /// An outbound listener of ours: the kernel may pair what it accepts. Children inherit the tag.
    pub fn tag_listener(&self, fd: BorrowedFd<'_>) {
        self.tag(fd, role::ACCEPTED);
    }

    /// A socket of ours towards an application, before it connects.
    pub fn tag_delivery(&self, fd: BorrowedFd<'_>) {
        self.tag(fd, role::DELIVERY);
    }

    fn tag(&self, fd: BorrowedFd<'_>, role: u32) {
        if let Some(kernel) = &self.0.kernel
            && let Err(error) = kernel.tags.set_socket(fd, &role)
        {
            tracing::debug!("fast path: a socket could not be tagged: {error}");
        }
    }

    /// Switches the node; takes effect with the next message.
    pub fn set_node(&self, on: bool) {
        let mut state = self.0.state.lock();
        state.node_on = on;
        if let Some(kernel) = &self.0.kernel
            && let Err(error) = kernel.switch(on)
        {
            tracing::warn!("fast path: the node could not be switched: {error}");
        }
    }

    /// Whether the kernel may carry this pod's bytes now.
    pub fn is_on(&self, cookie: u64) -> bool {
        let state = self.0.state.lock();
        state.node_on && state.pods.get(&cookie).is_some_and(|pod| pod.on != 0)
    }

    /// Switches one pod; takes effect with the next message. `false` if it is not enrolled.
    pub fn set_pod(&self, cookie: u64, on: bool) -> bool {
        let mut state = self.0.state.lock();
        let (Some(pod), Some(kernel)) = (state.pods.get_mut(&cookie), &self.0.kernel) else { return false };
        pod.on = u32::from(on);
        match kernel.pods.insert(&cookie, pod) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("fast path: a pod could not be switched: {error}");
                false
            }
        }
    }

    /// The valve for what we send on the socket at this place.
    pub fn valve(&self, place: Place) -> Valve {
        Valve::new(Arc::clone(&self.0), place)
    }

    /// What became of one of our sockets; ask before it is closed.
    pub fn connection(&self, fd: BorrowedFd<'_>) -> Path {
        self.locate(fd).0
    }

    /// The same, and where to ask later, without the socket; `None`: nothing of it can be redirected.
    pub fn locate(&self, fd: BorrowedFd<'_>) -> (Path, Option<Place>) {
        match &self.0.kernel {
            Some(kernel) => pair::locate(kernel, fd),
            None if self.0.config.mode == Mode::Off => (Path::by_tcp("mode_off"), None),
            None => (Path::by_tcp("kernel_unfit"), None),
        }
    }

    /// What became so far of the connection at this place; `None`: it is gone, or was never paired.
    pub fn look(&self, place: Place) -> Option<Path> {
        pair::look(self.0.kernel.as_ref()?, place)
    }
}

fn kernel_level(level: Level) -> u32 {
    match level {
        Level::Off => level::OFF,
        Level::Half => level::HALF,
        Level::Full => level::FULL,
    }
}

#[cfg(test)]
mod tests;
