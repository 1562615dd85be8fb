// SPDX-License-Identifier: Apache-2.0
//! Embeds the eBPF object that `cargo xtask build-ebpf` left under `target/bpf`, if it is there.
//!
//! The build never makes the object itself: it needs another toolchain. Without the object the
//! binary builds, runs in userspace only and says so.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/ztunnel-ebpf.o");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=ebpf_object");
        println!("cargo::rustc-env=ZTUNNEL_EBPF_OBJECT={}", object.display());
    }
}
