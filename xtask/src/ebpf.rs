// SPDX-License-Identifier: Apache-2.0
//! Builds the eBPF objects under `target/bpf`, with whichever toolchain this machine can have: `ztunnel-ebpf.o`, and
//! for the tests `foreign.o`.
//!
//! Two worlds: a rustup nightly with `rust-src` (the usual one), or Debian's rustc with its source package
//! and LLVM, where rustup cannot add a toolchain. Either needs a `bpf-linker` with the LLVM of its rustc, which is
//! built once and kept under `target/tools`. What is missing is installed, after saying so; a world that turns out
//! not to work here gives way to the other.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;

const FOLDER: &str = "target/bpf";
/// The programs, and the foreign sockmap user of the tests.
const OBJECTS: [&str; 2] = ["ztunnel-ebpf", "foreign"];
const TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER: &str = "0.13.0";
/// What this linker can be built with.
const LINKER_LLVM: RangeInclusive<u32> = 21..=23;
/// A fixed day, so that everybody's object comes from the same compiler, and nobody's own nightly is changed.
const NIGHTLY: &str = "nightly-2026-10-29";
/// The LLVM that Debian's rustc is built with.
const DEBIAN_LLVM: u32 = 22;
const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    // The linker links LLVM statically, with the C++ library.
    "g++",
];

/// Who compiles `core` and the programs.
enum Toolchain {
    /// A rustup toolchain; the linker shares the LLVM in its folder.
    Nightly(Nightly),
    /// `/usr/bin/rustc`, allowed to use unstable features.
    Debian,
}

/// A rustup toolchain that has the sources of `core`.
struct Nightly {
    name: &'static str,
    sysroot: PathBuf,
    llvm: u32,
}

/// Builds the objects; the next `cargo build` embeds the first.
///
/// # Errors
/// If no toolchain can be had; the error names what to install.
pub(crate) fn build() -> Result<()> {
    let (toolchain, tools) = toolchain()?;
    println!("eBPF: building the programs ({})", toolchain.name());
    let out = host::root().join("target/bpf").join(toolchain.folder());
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--release", "--quiet", "--target", TARGET, "-Zbuild-std=core"])
        .current_dir(host::root().join("ztunnel-ebpf"))
        .env("CARGO_TARGET_DIR", &out)
        .env("PATH", with_path(&tools)?);
    run(&mut cargo)?;
    for name in OBJECTS {
        let built = out.join(TARGET).join("release").join(name);
        let object = host::root().join(FOLDER).join(format!("{name}.o"));
        // An unchanged object keeps its time, or every `cargo build` would embed it anew.
        let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
        if fs::read(&object).ok().as_deref() != Some(bytes.as_slice()) {
            fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
        }
        println!("eBPF: {FOLDER}/{name}.o ({} KiB)", bytes.len() >> 10);
    }
    println!("eBPF: the next `cargo build` embeds {FOLDER}/{}.o", OBJECTS[0]);
    Ok(())
}

impl Toolchain {
    fn name(&self) -> &'static str {
        match self {
            Self::Nightly(nightly) => nightly.name,
            Self::Debian => "Debian's rustc",
        }
    }

    /// Where its results are kept, apart from those of the other.
    fn folder(&self) -> &'static str {
        match self {
            Self::Nightly(_) => "nightly",
            Self::Debian => "debian",
        }
    }

    /// A cargo of this toolchain, free of what the calling cargo put into the environment.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Nightly(nightly) => {
                let mut command = Command::new("rustup");
                command.args(["run", nightly.name, "cargo"]).env_remove("RUSTC");
                command
            }
            Self::Debian => {
                let mut command = Command::new("/usr/bin/cargo");
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for inherited in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
            command.env_remove(inherited);
        }
        command
    }
}

/// A toolchain and the folder of its linker. What is there comes before what could be installed.
fn toolchain() -> Result<(Toolchain, PathBuf)> {
    let mut nightly = nightly();
    if nightly.is_none() && !debian_is_complete() && host::on_path("rustup") {
        println!("eBPF: adding rustup's {NIGHTLY} with rust-src");
        let mut add = Command::new("rustup");
        add.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
        if succeeds(&mut add) {
            nightly = self::nightly();
        }
        if nightly.is_none() {
            println!("eBPF: rustup could not add it here; trying Debian's packages");
        }
    }
    if let Some(nightly) = nightly {
        let nightly = Toolchain::Nightly(nightly);
        match linker(&nightly) {
            Ok(tools) => return Ok((nightly, tools)),
            Err(error) => {
                println!("eBPF: no linker for {}: {error:#}; trying Debian's packages", nightly.name())
            }
        }
    }
    if !debian_is_complete() {
        install_debian()?;
    }
    let tools = linker(&Toolchain::Debian)?;
    Ok((Toolchain::Debian, tools))
}

/// The first rustup toolchain that can compile `core`, and whose LLVM the linker knows.
fn nightly() -> Option<Nightly> {
    [NIGHTLY, "nightly"].into_iter().find_map(|name| {
        let ask = |args: &[&str]| {
            let mut rustc = Command::new("rustup");
            // Ask only: a toolchain that is not there must not be fetched by the question.
            rustc.args(["run", name, "rustc"]).args(args).env("RUSTUP_AUTO_INSTALL", "0");
            let output = rustc.stderr(Stdio::null()).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let llvm = llvm_major(&ask(&["-vV"])?)?;
        let usable = has_core_source(&sysroot) && LINKER_LLVM.contains(&llvm);
        usable.then_some(Nightly { name, sysroot, llvm })
    })
}

/// From what `rustc -vV` says.
fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
}

fn debian_is_complete() -> bool {
    Path::new("/usr/bin/rustc").exists()
        && Path::new("/usr/bin/cargo").exists()
        && has_core_source(Path::new("/usr"))
        && llvm_prefix().join("lib/libLLVMCore.a").exists()
        && debian_llvm_matches()
}

fn has_core_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// An older `/usr/bin/rustc` (Debian has several packages) speaks another LLVM than the linker.
fn debian_llvm_matches() -> bool {
    let version = Command::new("/usr/bin/rustc").arg("-vV").output();
    version.is_ok_and(|version| llvm_major(&String::from_utf8_lossy(&version.stdout)) == Some(DEBIAN_LLVM))
}

fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{DEBIAN_LLVM}"))
}

fn install_debian() -> Result<()> {
    let packages = DEBIAN_PACKAGES.join(" ");
    let advice = format!(
        "run `rustup toolchain install {NIGHTLY} --component rust-src`, or as root `apt-get install {packages}`"
    );
    if !host::is_root() || !host::on_path("apt-get") {
        bail!("no toolchain for eBPF here: {advice}");
    }
    println!("eBPF: installing {packages} (apt-get)");
    let mut install = apt();
    install.arg("install").args(DEBIAN_PACKAGES);
    if !succeeds(&mut install) {
        run(apt().arg("update"))?;
        run(apt().arg("install").args(DEBIAN_PACKAGES)).with_context(|| advice.clone())?;
    }
    if debian_is_complete() {
        return Ok(());
    }
    bail!(
        "the packages are installed, yet /usr/bin/rustc with LLVM {DEBIAN_LLVM} and its sources is not complete: {advice}"
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-y", "--no-install-recommends"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// The folder of a `bpf-linker` for this toolchain; built on first use.
fn linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let root = host::root().join("target/tools").join(toolchain.folder());
    let bin = root.join("bin");
    // One that was built for a compiler that has changed since does not start.
    if succeeds(
        Command::new(bin.join("bpf-linker")).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()),
    ) {
        return Ok(bin);
    }
    println!("eBPF: building bpf-linker {BPF_LINKER} into target/tools (once, about a minute)");
    let (llvm, prefix) = match toolchain {
        Toolchain::Nightly(nightly) => (nightly.llvm, shared_llvm(&nightly.sysroot, &root.join("llvm"))?),
        Toolchain::Debian => (DEBIAN_LLVM, llvm_prefix()),
    };
    let mut install = host::cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--quiet", "--force", "--root"])
        .arg(&root)
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .env("LLVM_PREFIX", prefix)
        .env("CARGO_TARGET_DIR", host::root().join("target/tools/build"));
    run(&mut install)?;
    Ok(bin)
}

/// Makes `prefix` a place where the linker finds the LLVM that rustc itself uses. rustc's copy has a name of its own,
/// and what is linked against it remembers that name and this place.
fn shared_llvm(sysroot: &Path, prefix: &Path) -> Result<PathBuf> {
    let lib = prefix.join("lib");
    let context = || format!("prepare {}", lib.display());
    if lib.exists() {
        fs::remove_dir_all(&lib).with_context(context)?;
    }
    fs::create_dir_all(&lib).with_context(context)?;
    let theirs = sysroot.join("lib");
    for entry in fs::read_dir(&theirs).with_context(|| format!("read {}", theirs.display()))? {
        let name = entry?.file_name();
        let Some(text) = name.to_str() else { continue };
        if text.starts_with("libLLVM.so.") {
            symlink(theirs.join(&name), lib.join(&name)).with_context(context)?;
            symlink(theirs.join(&name), lib.join("libLLVM.so")).with_context(context)?;
            return Ok(prefix.to_owned());
        }
    }
    bail!("{} has no libLLVM.so.*", theirs.display())
}

fn with_path(first: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(first.to_owned()).chain(std::env::split_paths(&path)))
        .context("PATH")
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("start `{name}`"))?;
    if status.success() {
        return Ok(());
    }
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    bail!("`{name} {}`: {status}", args.join(" "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        let version = "rustc 1.101.0-nightly (92b5b8c87 2026-10-29)\nhost: x86_64\nLLVM version: 23.1.4\n";
        assert_eq!(super::llvm_major(version), Some(23));
        assert_eq!(super::llvm_major("rustc 1.95.0"), None);
    }
}
