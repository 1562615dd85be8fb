// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Tells the contract test whether there is an object to compare with.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/ztunnel-ebpf.o");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=ebpf_object");
    }
}
