// SPDX-License-Identifier: Apache-2.0
//! The rules of this house that neither rustc nor clippy checks, each with its reason.
//!
//! [`rules`] looks at one Rust file, [`papers`] at the documents and manifests, [`conformance`] at the tests that a
//! document names. All are functions from text to complaints; this module only finds the files and prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::host;

mod conformance;
mod papers;
mod rules;

/// One broken rule: where, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) file: String,
    /// Counted from one; zero is the file as a whole.
    pub(super) line: usize,
    pub(super) text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.text),
            line => write!(f, "{}:{line}: {}", self.file, self.text),
        }
    }
}

/// Reads every source and document; fails if any rule is broken.
pub(crate) fn run() -> Result<()> {
    let root = host::root();
    let files = sources(&root)?;
    let known: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    let mut complaints = Vec::new();
    let read = |name: &String| fs::read_to_string(root.join(name)).ok();
    let is_rust = |name: &&String| Path::new(name.as_str()).extension().is_some_and(|kind| kind == "rs");
    let sources: BTreeMap<String, String> =
        files.iter().filter(is_rust).filter_map(|name| Some((name.clone(), read(name)?))).collect();
    for name in &files {
        let Some(text) = read(name) else { continue };
        complaints.extend(rules::anywhere(name, &text));
        match Path::new(name).extension().and_then(std::ffi::OsStr::to_str) {
            Some("rs") => complaints.extend(rules::rust(name, &text)),
            Some("md") => {
                complaints.extend(papers::markdown(name, &text, &known));
                complaints.extend(conformance::tables(name, &text, &sources));
            }
            _ if name.ends_with("Cargo.toml") => complaints.extend(papers::manifest(name, &text)),
            _ => {}
        }
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    if complaints.is_empty() {
        println!("tidy: {} files, nothing to say", files.len());
        return Ok(());
    }
    bail!("tidy: {} of the house rules broken", complaints.len())
}

/// The files of the project, by their path from its root: what git knows or would add.
fn sources(root: &Path) -> Result<Vec<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    let mut names: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        _ => walk(root)?,
    };
    names.retain(|name| root.join(name).is_file());
    names.sort();
    names.dedup();
    Ok(names)
}

/// The same without git: an unpacked archive.
fn walk(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).context("list the sources")? {
            let entry = entry.context("list the sources")?;
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                if entry.file_name() != "target" && entry.file_name() != ".git" {
                    folders.push(path);
                }
            } else if let Some(name) = path.to_str() {
                found.push(name.to_owned());
            }
        }
    }
    Ok(found)
}
