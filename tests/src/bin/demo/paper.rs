// SPDX-License-Identifier: Apache-2.0
//! What is written on the terminal: sections, progress and aligned tables; color only where it is welcome.

use std::env;
use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::Result;

/// The terminal, or the file that stands for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paper {
    color: bool,
    terminal: bool,
    started: Instant,
}

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Quiet,
    Good,
    Bad,
}

impl Paper {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { color: terminal && env::var_os("NO_COLOR").is_none(), terminal, started: Instant::now() }
    }

    pub(crate) fn tone(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Quiet => "2",
            Tone::Good => "32",
            Tone::Bad => "31",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A new section.
    pub(crate) fn section(self, title: &str) {
        println!("\n{}", self.tone(title, Tone::Strong));
    }

    /// A line of text below it.
    pub(crate) fn say(self, text: &str) {
        println!("  {text}");
    }

    pub(crate) fn quiet(self, text: &str) {
        println!("  {}", self.tone(text, Tone::Quiet));
    }

    /// Does something that takes a while, and says so before and after.
    pub(crate) fn step<T>(self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.terminal {
            print!("  {what} ...");
            std::io::stdout().flush().ok();
        }
        let started = Instant::now();
        let outcome = work();
        let took = format!("{:.1} s", started.elapsed().as_secs_f64());
        let end = if outcome.is_ok() { took } else { self.tone("failed", Tone::Bad) };
        let back = if self.terminal { "\r\x1b[2K" } else { "" };
        println!("{back}  {what:<58}{}", self.tone(&end, Tone::Quiet));
        outcome
    }

    /// Replaces the current line, on a terminal.
    pub(crate) fn progress(self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K  {}", self.tone(text, Tone::Quiet));
            std::io::stdout().flush().ok();
        }
    }

    /// Takes the progress away again.
    pub(crate) fn end_progress(self) {
        if self.terminal {
            print!("\r\x1b[2K");
        }
    }

    /// A table: the first row is its head, columns of numbers are aligned to the right.
    pub(crate) fn table(self, rows: &[Vec<Cell>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            let mut line = String::from(" ");
            for (cell, width) in row.iter().zip(&widths) {
                let pad = " ".repeat(width - cell.width());
                let tone = if number == 0 { Tone::Quiet } else { cell.tone };
                let text = self.tone(&cell.text, tone);
                line.push(' ');
                line.push_str(&if cell.right { format!("{pad}{text}") } else { format!("{text}{pad}") });
                line.push(' ');
            }
            println!("{}", line.trim_end());
        }
    }

    pub(crate) fn elapsed(self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    right: bool,
    tone: Tone,
}

impl Cell {
    /// Text, on the left.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), right: false, tone: Tone::Plain }
    }

    /// A number, on the right.
    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), right: true, tone: Tone::Plain }
    }

    pub(crate) fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}
