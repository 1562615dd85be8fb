// SPDX-License-Identifier: Apache-2.0
//! What went wrong in a run, counted per program and mode.

use std::collections::BTreeMap;
use std::fmt;

use ztunnel_tests::Mode;

/// How an application can be harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    /// A blocking call gave `EAGAIN`.
    Eagain,
    /// Fewer bytes than the call promised, or than there are.
    Short,
    /// Nothing happened within the time limit.
    Hang,
    /// Other bytes than were sent.
    WrongByte,
    /// Anything else.
    Other,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eagain => "EAGAIN",
            Self::Short => "short",
            Self::Hang => "hang",
            Self::WrongByte => "wrong byte",
            Self::Other => "other",
        })
    }
}

/// A run that failed: how, and in the program's own words.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) harm: Harm,
    pub(crate) said: String,
}

/// The runs of one program in one mode.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    pub(crate) runs: u64,
    pub(crate) failures: BTreeMap<Harm, u64>,
    /// What the first failure of each kind said.
    pub(crate) said: BTreeMap<Harm, String>,
}

impl Cell {
    pub(crate) fn count(&mut self, run: Result<(), Failure>) {
        self.runs += 1;
        if let Err(failure) = run {
            *self.failures.entry(failure.harm).or_default() += 1;
            self.said.entry(failure.harm).or_insert(failure.said);
        }
    }

    /// A hang costs its whole time limit, and what never worked will not work the next time.
    pub(crate) fn is_hopeless(&self) -> bool {
        let failed: u64 = self.failures.values().sum();
        self.failures.get(&Harm::Hang).is_some_and(|hangs| *hangs >= 3)
            || (failed >= 20 && failed == self.runs)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures.is_empty() {
            return write!(f, "0 of {}", self.runs);
        }
        let failed: u64 = self.failures.values().sum();
        let kinds: Vec<String> = self
            .failures
            .iter()
            .map(|(harm, times)| if *times == failed { harm.to_string() } else { format!("{times} {harm}") })
            .collect();
        write!(f, "{failed} of {}: {}", self.runs, kinds.join(", "))?;
        if self.is_hopeless() { f.write_str(" (stopped)") } else { Ok(()) }
    }
}

/// Programs by modes, in the order in which they were run.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<(&'static str, Mode, Cell)>);

impl Table {
    pub(crate) fn push(&mut self, program: &'static str, mode: Mode, cell: Cell) {
        self.0.push((program, mode, cell));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut programs: Vec<&str> = Vec::new();
        let mut modes: Vec<Mode> = Vec::new();
        for (program, mode, _) in &self.0 {
            if !programs.contains(program) {
                programs.push(program);
            }
            if !modes.contains(mode) {
                modes.push(*mode);
            }
        }
        let heads: Vec<String> = modes.iter().map(|mode| format!("`{mode}`")).collect();
        writeln!(f, "| failures of runs | {} |", heads.join(" | "))?;
        writeln!(f, "|--|{}", "--|".repeat(modes.len()))?;
        for program in programs {
            let cells: Vec<String> = modes
                .iter()
                .map(|mode| {
                    let cell = self.0.iter().find(|(name, of, _)| *name == program && of == mode);
                    cell.map_or_else(|| "not run".to_owned(), |(.., cell)| cell.to_string())
                })
                .collect();
            writeln!(f, "| {program} | {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}
