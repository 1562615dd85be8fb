// SPDX-License-Identifier: Apache-2.0
//! Prints `docs/reference.md`. Called by `cargo xtask reference`.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

fn main() {
    print!("{}", ztunnel::reference::text());
}
