// SPDX-License-Identifier: Apache-2.0
//! The report: lines, a summary, an exit code; as text for people and as JSON for programs.

use std::fmt;

use serde::{Serialize, Serializer};

/// Width of the column of marks.
const MARKS: usize = "optional".len();

/// What the doctor found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run where.
    pub subject: String,
    /// Every need.
    pub needs: Vec<Line>,
    /// The whole in one line.
    pub summary: String,
    /// 0: ztunnel runs here; 1: it does not.
    pub exit_code: u8,
}

/// One need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it belongs to.
    pub topic: Topic,
    /// Its name.
    pub name: String,
    /// How much depends on it.
    pub need: Need,
    /// Whether it is met.
    pub met: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it, if it is not met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How much depends on a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Without it ztunnel does not work.
    Required,
    /// Without it ztunnel runs in userspace, or does so for some workloads.
    FastPath,
    /// Good to know.
    Informative,
}

/// What a need belongs to, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// What the operator wrote.
    Settings,
    /// Privileges, and what sockets can do with them.
    Sockets,
    /// What the fast path asks of the kernel.
    FastPath,
    /// How the fast path behaved when it was tried.
    SelfTest,
    /// Files, ports and limits around the process.
    Surroundings,
}

impl Topic {
    /// As in the report's headings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Sockets => "privileges and sockets",
            Self::FastPath => "fast path",
            Self::SelfTest => "fast path, tried",
            Self::Surroundings => "surroundings",
        }
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Report {
    /// 0 if everything that ztunnel cannot do without is there, also if the fast path is not; else 1.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl Line {
    /// The first column.
    pub fn mark(&self) -> &'static str {
        match (self.met, self.need) {
            (true, _) => "ok",
            (false, Need::Required) => "MISSING",
            (false, Need::FastPath) => "optional",
            (false, Need::Informative) => "note",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.subject)?;
        let names = self.needs.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let mut topic = None;
        for line in &self.needs {
            if topic != Some(line.topic) {
                topic = Some(line.topic);
                writeln!(f, "\n{}", line.topic.as_str())?;
            }
            writeln!(f, "  {:<MARKS$}  {:<names$}  {}", line.mark(), line.name, line.detail)?;
            if let Some(fix) = &line.fix {
                writeln!(f, "  {:MARKS$}  fix: {fix}", "")?;
            }
        }
        writeln!(f, "\n{}", self.summary)
    }
}
