// SPDX-License-Identifier: Apache-2.0
//! Compiles our own `.proto` files, without a `protoc` on the machine.

use std::error::Error;

const FOLDER: &str = "../proto";
const FILES: [&str; 6] =
    ["zds.proto", "ca.proto", "discovery.proto", "workload.proto", "authorization.proto", "profile.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={FOLDER}/{file}");
    }
    let descriptors = protox::compile(FILES, [FOLDER])?;
    // `Bytes`: what was received is not copied before it is understood.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
