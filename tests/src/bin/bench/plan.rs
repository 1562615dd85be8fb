// SPDX-License-Identifier: Apache-2.0
//! What is compared (arms) and under which loads (cases).

use serde::{Deserialize, Serialize};
use ztunnel_tests::Mode;

/// One way to carry the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Arm {
    pub(crate) id: String,
    /// One sentence for the reader of the report.
    pub(crate) what: String,
}

/// All arms, the baseline of each comparison first.
pub(crate) fn arms() -> Vec<Arm> {
    let arm = |id: &str, what: &str| Arm { id: id.to_owned(), what: what.to_owned() };
    vec![
        arm("direct", "pod to pod, no mesh: no encryption, no identity, no policy"),
        arm("iptables", "HBONE mTLS, fast path never loaded (EBPF_FASTPATH=off)"),
        arm("loaded-off", "fast path loaded, then switched off at run time: what the hooks alone cost"),
        arm("half", "EBPF_FASTPATH=half: application to ztunnel by redirect"),
        arm("full", "EBPF_FASTPATH=full for all workloads: both directions by redirect"),
        arm("auto", "EBPF_FASTPATH=auto, the default: only qualified workloads are joined"),
    ]
}

/// EBPF_FASTPATH and EBPF_FULL_WORKLOADS of an arm's ztunnel; `direct` has one as well, that nobody asks anything.
pub(crate) fn settings(arm: &str) -> (Mode, &'static str) {
    match arm {
        "direct" | "iptables" => (Mode::Off, ""),
        "half" => (Mode::Half, "*/*"),
        "full" | "loaded-off" => (Mode::Full, "*/*"),
        _ => (Mode::Auto, ""),
    }
}

/// Where the server is, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    SameNode,
    CrossNode,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::SameNode, Self::CrossNode];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::CrossNode => "cross node",
        }
    }
}

/// What the load generator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// Request and response, as fast as answers come.
    Rr,
    /// The same at a fixed rate per second.
    OpenLoop,
    /// A new connection per request.
    Crr,
    /// Streams towards the server.
    Bulk,
    /// Connections that do nothing.
    Idle,
}

/// One load at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) load: Load,
    pub(crate) conns: usize,
    pub(crate) size: usize,
    pub(crate) place: Place,
}

/// Requests per second of the open loop: about a third of what the slowest arm can do.
pub(crate) const OPEN_RATE: u32 = 2000;

impl Case {
    pub(crate) fn id(&self) -> String {
        let place = match self.place {
            Place::SameNode => "same",
            Place::CrossNode => "cross",
        };
        format!("{}-{place}", self.load_id())
    }

    /// The load without the place.
    pub(crate) fn load_id(&self) -> String {
        let Self { size, conns, .. } = self;
        match self.load {
            Load::Rr => format!("rr-{size}x{conns}"),
            Load::OpenLoop => format!("open-{size}x{conns}"),
            Load::Crr => format!("crr-{conns}"),
            Load::Bulk => format!("bulk-{conns}"),
            Load::Idle => format!("idle-{conns}"),
        }
    }

    pub(crate) fn title(&self) -> String {
        let plural =
            |one: &str| if self.conns == 1 { format!("1 {one}") } else { format!("{} {one}s", self.conns) };
        let size =
            if self.size >= 1024 { format!("{} KiB", self.size / 1024) } else { format!("{} B", self.size) };
        match self.load {
            Load::Rr => format!("rr {size}, {}", plural("conn")),
            Load::OpenLoop => format!("rr {size} at {OPEN_RATE}/s, {}", plural("conn")),
            Load::Crr => format!("new connections, {} at a time", self.conns),
            Load::Bulk => format!("bulk, {}", plural("stream")),
            Load::Idle => format!("idle, {}", plural("conn")),
        }
    }

    /// As narrow as a table on a terminal wants it.
    pub(crate) fn short(&self) -> String {
        let conns = self.conns;
        let size =
            if self.size >= 1024 { format!("{} KiB", self.size / 1024) } else { format!("{} B", self.size) };
        match self.load {
            Load::Rr => format!("rr {size} x {conns}"),
            Load::OpenLoop => format!("rr {size} x {conns}, {OPEN_RATE}/s"),
            Load::Crr => format!("connect x {conns}"),
            Load::Bulk => format!("bulk x {conns}"),
            Load::Idle => format!("idle x {conns}"),
        }
    }

    /// The figure that stands for the case in a table.
    pub(crate) fn headline(&self) -> Figure {
        match self.load {
            Load::Rr if self.conns == 1 => Figure::P50,
            Load::OpenLoop => Figure::P99,
            Load::Rr | Load::Crr => Figure::Rate,
            Load::Bulk => Figure::Gbit,
            Load::Idle => Figure::RssPerConn,
        }
    }

    /// The arguments of `load`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let conns = self.conns.to_string();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        match self.load {
            Load::Rr => words(&["rr", "--conns", &conns, "--size", &self.size.to_string()]),
            Load::OpenLoop => words(&[
                "rr",
                "--conns",
                &conns,
                "--size",
                &self.size.to_string(),
                "--rate",
                &OPEN_RATE.to_string(),
            ]),
            Load::Crr => words(&["crr", "--conns", &conns]),
            Load::Bulk => words(&["bulk", "--conns", &conns]),
            Load::Idle => words(&["idle", "--conns", &conns]),
        }
    }
}

/// A figure that can be read off a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    P50,
    P90,
    P99,
    P999,
    Rate,
    Gbit,
    /// CPU seconds of the whole machine per 10,000 operations or per GB.
    CpuNode,
    /// The same of the ztunnel processes alone.
    CpuZtunnel,
    /// Resident memory of the ztunnel processes, MiB.
    Rss,
    /// Growth of it per idle connection, KiB.
    RssPerConn,
}

impl Figure {
    pub(crate) const ALL: [Self; 10] = [
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::Rate,
        Self::Gbit,
        Self::CpuNode,
        Self::CpuZtunnel,
        Self::Rss,
        Self::RssPerConn,
    ];

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::Gbit)
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::P50 => "p50 us",
            Self::P90 => "p90 us",
            Self::P99 => "p99 us",
            Self::P999 => "p99.9 us",
            Self::Rate => "per s",
            Self::Gbit => "Gbit/s",
            Self::CpuNode => "CPU s machine",
            Self::CpuZtunnel => "CPU s ztunnel",
            Self::Rss => "RSS MiB",
            Self::RssPerConn => "KiB/conn",
        }
    }
}

/// How much of it to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Full,
    Quick,
    Smoke,
}

/// The cases of a run, in the order of running.
pub(crate) fn cases(size: Size) -> Vec<Case> {
    let full: &[(Load, usize, usize)] = &[
        (Load::Rr, 1, 64),
        (Load::Rr, 16, 64),
        (Load::Rr, 64, 64),
        (Load::Rr, 1, 1024),
        (Load::Rr, 16, 1024),
        (Load::Rr, 64, 1024),
        (Load::Rr, 1, 16384),
        (Load::Rr, 16, 16384),
        (Load::Rr, 64, 16384),
        (Load::OpenLoop, 16, 1024),
        (Load::Crr, 1, 64),
        (Load::Crr, 16, 64),
        (Load::Bulk, 1, 0),
        (Load::Bulk, 8, 0),
        (Load::Idle, 1000, 64),
    ];
    let quick: &[(Load, usize, usize)] =
        &[(Load::Rr, 1, 64), (Load::Rr, 16, 1024), (Load::Crr, 16, 64), (Load::Bulk, 1, 0)];
    let smoke: &[(Load, usize, usize)] =
        &[(Load::Rr, 4, 1024), (Load::Crr, 2, 64), (Load::Bulk, 1, 0), (Load::Idle, 10, 64)];
    let chosen = match size {
        Size::Full => full,
        Size::Quick => quick,
        Size::Smoke => smoke,
    };
    let at = |place| chosen.iter().map(move |&(load, conns, size)| Case { load, conns, size, place });
    Place::ALL.into_iter().flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        for size in [Size::Full, Size::Quick, Size::Smoke] {
            let cases = cases(size);
            let names: BTreeSet<String> = cases.iter().map(Case::id).collect();
            assert_eq!(names.len(), cases.len());
        }
    }

    #[test]
    fn an_arm_without_the_fast_path_never_loads_it() {
        for arm in arms() {
            let off = arm.id == "direct" || arm.id == "iptables";
            assert_eq!(settings(&arm.id).0 == Mode::Off, off, "{}", arm.id);
        }
    }
}
