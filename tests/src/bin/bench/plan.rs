// SPDX-License-Identifier: Apache-2.0
//! What is compared (arms) and under which loads (cases).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ztunnel_tests::Mode;

/// One way to carry the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Arm {
    pub(crate) id: String,
    /// One sentence for the reader of the report.
    pub(crate) what: String,
    /// The arm that this one is a variant of: another program, or other settings. Empty for those of [`arms`].
    pub(crate) of: String,
    /// Another ztunnel than the one built with this program.
    pub(crate) program: Option<PathBuf>,
    /// Settings beside those of the arm.
    pub(crate) environment: Vec<(String, String)>,
}

impl Arm {
    /// The arm of [`arms`] that this one is, or is a variant of.
    pub(crate) fn base(&self) -> &str {
        if self.of.is_empty() { &self.id } else { &self.of }
    }

    /// Its name in the style sheet of the report.
    pub(crate) fn class(&self) -> String {
        self.id.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
    }

    /// The arm that this one is judged against.
    pub(crate) fn baseline(&self) -> &str {
        if self.of.is_empty() { BASELINE } else { &self.of }
    }

    /// This arm with another program or other settings.
    pub(crate) fn variant(&self, name: &str, change: &Change) -> Self {
        let (mark, program, environment) = match change {
            Change::Program(path) => ('@', Some(path.clone()), Vec::new()),
            Change::Settings(settings) => ('+', None, settings.clone()),
        };
        Self {
            id: format!("{}{mark}{name}", self.id),
            what: format!("{} with {change}", self.id),
            of: self.id.clone(),
            program,
            environment,
        }
    }
}

/// What is different about a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Program(PathBuf),
    Settings(Vec<(String, String)>),
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program(_) => write!(f, "the ztunnel of another revision"),
            Self::Settings(settings) => {
                let settings: Vec<String> =
                    settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
                f.write_str(&settings.join(" "))
            }
        }
    }
}

/// `NAME=PATH` or `NAME:VARIABLE=VALUE,…` of the command line.
pub(crate) fn parse_program(text: &str) -> Result<(String, Change), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    Ok((name.to_owned(), Change::Program(path.into())))
}

/// See [`parse_program`].
pub(crate) fn parse_settings(text: &str) -> Result<(String, Change), String> {
    let wrong = "expected NAME:VARIABLE=VALUE,…";
    let (name, settings) = text.split_once(':').ok_or(wrong)?;
    let pair = |setting: &str| {
        let (variable, value) = setting.split_once('=').ok_or(wrong)?;
        Ok((variable.to_owned(), value.to_owned()))
    };
    let settings = settings.split(',').map(pair).collect::<Result<_, &str>>()?;
    Ok((name.to_owned(), Change::Settings(settings)))
}

/// The arm that all others of the mesh are judged against.
pub(crate) const BASELINE: &str = "iptables";

/// All arms, the baseline of each comparison first.
pub(crate) fn arms() -> Vec<Arm> {
    let arm = |id: &str, what: &str| Arm { id: id.to_owned(), what: what.to_owned(), ..Arm::default() };
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
    /// The loads that upstream's ztunnel was measured in.
    Reference,
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
        (Load::Rr, 32, 1024),
        (Load::Rr, 64, 1024),
        (Load::Rr, 1, 16384),
        (Load::Rr, 16, 16384),
        (Load::Rr, 64, 16384),
        (Load::OpenLoop, 16, 1024),
        (Load::Crr, 1, 64),
        (Load::Crr, 16, 64),
        (Load::Bulk, 1, 0),
        (Load::Bulk, 8, 0),
        (Load::Idle, 2000, 64),
    ];
    let reference: &[(Load, usize, usize)] = &[
        (Load::Rr, 1, 64),
        (Load::Rr, 1, 1024),
        (Load::Rr, 32, 1024),
        (Load::Bulk, 1, 0),
        (Load::Bulk, 8, 0),
        (Load::Crr, 1, 64),
        (Load::Crr, 16, 64),
        (Load::Idle, 2000, 64),
    ];
    let quick: &[(Load, usize, usize)] =
        &[(Load::Rr, 1, 64), (Load::Rr, 16, 1024), (Load::Crr, 16, 64), (Load::Bulk, 1, 0)];
    let smoke: &[(Load, usize, usize)] =
        &[(Load::Rr, 4, 1024), (Load::Crr, 2, 64), (Load::Bulk, 1, 0), (Load::Idle, 10, 64)];
    let chosen = match size {
        Size::Full => full,
        Size::Reference => reference,
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
        for size in [Size::Full, Size::Reference, Size::Quick, Size::Smoke] {
            let cases = cases(size);
            let names: BTreeSet<String> = cases.iter().map(Case::id).collect();
            assert_eq!(names.len(), cases.len());
        }
    }

    #[test]
    fn variants_are_read_and_judged_against_what_they_vary() {
        let (name, change) = parse_settings("one:ZTUNNEL_WORKER_THREADS=1,RUST_LOG=warn").unwrap();
        let arm = arms()[1].variant(&name, &change);
        assert_eq!((arm.id.as_str(), arm.base(), arm.baseline()), ("iptables+one", "iptables", "iptables"));
        assert_eq!(arm.environment.len(), 2);
        let (name, change) = parse_program("old=target/old/ztunnel").unwrap();
        assert_eq!(arms()[4].variant(&name, &change).id, "full@old");
        assert!(parse_settings("one:two").is_err() && parse_program("three").is_err());
    }

    #[test]
    fn an_arm_without_the_fast_path_never_loads_it() {
        for arm in arms() {
            let off = arm.id == "direct" || arm.id == "iptables";
            assert_eq!(settings(&arm.id).0 == Mode::Off, off, "{}", arm.id);
        }
    }
}
