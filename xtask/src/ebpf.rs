// SPDX-License-Identifier: Apache-2.0
//! Builds the eBPF object, `target/bpf/ztunnel-ebpf.o`, with whichever toolchain this machine can have.
//!
//! Two worlds: rustup's nightly with `rust-src` (the usual one), or Debian's rustc with its source package
//! and LLVM, where rustup cannot add a component. Either needs `bpf-linker`, which is built once and kept
//! under `target/tools`. What is missing is installed, after saying so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host;

const OBJECT: &str = "target/bpf/ztunnel-ebpf.o";
const TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that Debian's rustc is built with, and that the linker has to match.
const DEBIAN_LLVM: &str = "22";
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
    /// rustup's nightly; the linker brings a matching LLVM of its own.
    Nightly,
    /// `/usr/bin/rustc`, allowed to use unstable features.
    Debian,
}

/// Builds the object; the next `cargo build` embeds it.
///
/// # Errors
/// If no toolchain can be had; the error names what to install.
pub(crate) fn build() -> Result<()> {
    let toolchain = toolchain()?;
    let tools = linker(&toolchain)?;
    println!("eBPF: building the programs ({})", toolchain.name());
    let out = host::root().join("target/bpf/build");
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--release", "--quiet", "--target", TARGET, "-Zbuild-std=core"])
        .current_dir(host::root().join("ztunnel-ebpf"))
        .env("CARGO_TARGET_DIR", &out)
        .env("PATH", with_path(&tools)?);
    run(&mut cargo)?;
    let built = out.join(TARGET).join("release/ztunnel-ebpf");
    let object = host::root().join(OBJECT);
    // An unchanged object keeps its time, or every `cargo build` would embed it anew.
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(&object).ok().as_deref() != Some(bytes.as_slice()) {
        fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    }
    println!("eBPF: {OBJECT} ({} KiB); the next `cargo build` embeds it", bytes.len() >> 10);
    Ok(())
}

impl Toolchain {
    fn name(&self) -> &'static str {
        match self {
            Self::Nightly => "rustup nightly",
            Self::Debian => "Debian's rustc",
        }
    }

    /// A cargo of this toolchain, free of what the calling cargo put into the environment.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
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
        if matches!(self, Self::Nightly) {
            command.env_remove("RUSTC");
        }
        command
    }
}

/// What is there comes before what could be installed.
fn toolchain() -> Result<Toolchain> {
    if nightly_has_source() {
        return Ok(Toolchain::Nightly);
    }
    if debian_is_complete() {
        return Ok(Toolchain::Debian);
    }
    if host::on_path("rustup") {
        println!("eBPF: adding rustup's nightly with rust-src");
        let mut add = Command::new("rustup");
        add.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        if succeeds(&mut add) && nightly_has_source() {
            return Ok(Toolchain::Nightly);
        }
        println!("eBPF: rustup could not add it here; trying Debian's packages");
    }
    install_debian()?;
    Ok(Toolchain::Debian)
}

fn nightly_has_source() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .stderr(Stdio::null())
        .output();
    let Ok(sysroot) = sysroot else { return false };
    sysroot.status.success() && has_core_source(Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()))
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
    version.is_ok_and(|version| {
        String::from_utf8_lossy(&version.stdout).contains(&format!("LLVM version: {DEBIAN_LLVM}."))
    })
}

fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{DEBIAN_LLVM}"))
}

fn install_debian() -> Result<()> {
    let packages = DEBIAN_PACKAGES.join(" ");
    let advice = format!(
        "run `rustup toolchain install nightly --component rust-src`, or as root `apt-get install {packages}`"
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
    let root = match toolchain {
        Toolchain::Nightly => host::root().join("target/tools/nightly"),
        Toolchain::Debian => host::root().join("target/tools/debian"),
    };
    let bin = root.join("bin");
    if bin.join("bpf-linker").exists() {
        return Ok(bin);
    }
    println!("eBPF: building bpf-linker {BPF_LINKER} into target/tools (once, about two minutes)");
    let mut install = host::cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--quiet", "--root"])
        .arg(&root)
        .env("CARGO_TARGET_DIR", host::root().join("target/tools/build"));
    if matches!(toolchain, Toolchain::Debian) {
        install
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{DEBIAN_LLVM}"))
            .env("LLVM_PREFIX", llvm_prefix());
    }
    run(&mut install)?;
    Ok(bin)
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
