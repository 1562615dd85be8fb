// SPDX-License-Identifier: Apache-2.0
//! Embeds the eBPF object that `cargo xtask build-ebpf` left under `target/bpf`, if it is there.
//!
//! The build never makes the object itself: it needs another toolchain. Without the object the
//! binary builds, runs in userspace only and says so.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    describe();
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/ztunnel-ebpf.o");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=ebpf_object");
        println!("cargo::rustc-env=ZTUNNEL_EBPF_OBJECT={}", object.display());
    }
}

/// What `config_dump` says about the binary. The revision is looked up for release builds only: looking for it again
/// after every commit would build everything again.
fn describe() {
    let say = |name: &str, value: &str| println!("cargo::rustc-env=ZTUNNEL_{name}={value}");
    let output = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    #[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts in no other way")]
    let set = |name: &str| env::var(name).ok();
    let profile = set("PROFILE").unwrap_or_default();
    say("BUILD_PROFILE", &profile);
    let rustc = set("RUSTC").and_then(|rustc| output(&rustc, &["--version"]));
    // `rustc 1.95.0 (…)`: the number.
    say("RUST_VERSION", rustc.as_deref().and_then(|text| text.split(' ').nth(1)).unwrap_or("unknown"));
    println!("cargo::rerun-if-env-changed=ZTUNNEL_GIT_REVISION");
    let release = profile == "release";
    if release && let Some(head) = output("git", &["rev-parse", "--git-path", "HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    let revision =
        set("ZTUNNEL_GIT_REVISION").or_else(|| output("git", &["rev-parse", "HEAD"]).filter(|_| release));
    say("REVISION", revision.as_deref().unwrap_or("unknown"));
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]).filter(|_| release);
    let status = changed.map_or("unknown", |changed| if changed.is_empty() { "Clean" } else { "Modified" });
    say("BUILD_STATUS", status);
}
