// SPDX-License-Identifier: Apache-2.0
//! The `ztunnel` command: `proxy` runs the node proxy, everything else looks at one.

use std::process::ExitCode;

use ztunnel::cli;

fn main() -> ExitCode {
    cli::main()
}
