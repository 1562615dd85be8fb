// SPDX-License-Identifier: Apache-2.0
//! One program with every fuzz target, so that a smoke run of all of them links once. `cargo xtask fuzz` builds it with
//! coverage counters and runs it.
//!
//! `FUZZ_TARGET` names the target, which is a module of [`targets`]; `FUZZ_SEEDS` a folder that gets its seeds. The
//! arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;
use std::{env, fs, path::PathBuf, process};

use libfuzzer_sys::fuzz_target;

use targets::Target;

mod packets;
mod targets;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

/// Finds the target and writes its seeds, before libFuzzer reads its folders.
fn prepare() {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets::ALL.iter().find(|target| target.name == name) else {
        let names: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
        eprintln!("no fuzz target is called `{name}`; there are {}", names.join(", "));
        process::exit(2);
    };
    if let Some(folder) = env::var_os("FUZZ_SEEDS").map(PathBuf::from) {
        for (at, seed) in (target.seeds)().iter().enumerate() {
            let path = folder.join(format!("seed-{at}"));
            if let Err(error) = fs::write(&path, seed) {
                eprintln!("write {}: {error}", path.display());
                process::exit(2);
            }
        }
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: prepare(), |data: &[u8]| {
    (TARGET.get().expect("libFuzzer prepares first").run)(data);
});
