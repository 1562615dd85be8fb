// SPDX-License-Identifier: Apache-2.0
//! What a DNS answer costs: ztunnel's and dnsmasq's, from what they know and forwarded to the same resolver, beside that
//! resolver itself; arms interleaved in one run. Then what 100,000 names cost in memory.
//!
//! Needs root, a release build (`cargo build --release -p ztunnel`), and dnsmasq (Debian: dnsmasq-base).

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

mod arm;

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use ztunnel_tests::{Mesh, PodSpec, wait};

use arm::{Arm, Load, Quick};

/// How much.
#[derive(Debug, Clone, Copy, Parser)]
struct Options {
    /// Rounds; every arm has its turn in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds per arm and round.
    #[arg(long, default_value_t = 1500)]
    millis: u64,
    /// Queries that are open at a time.
    #[arg(long, default_value_t = 16)]
    open: usize,
    /// Names in the mesh.
    #[arg(long, default_value_t = 100_000)]
    names: usize,
}

const KNOWN: &str = "name-77.ns1.svc.cluster.local";
const UNKNOWN: &str = "www.example.org";

fn main() -> Result<()> {
    let options = Options::parse();
    let empty = resident(0)?;
    let mesh = mesh(options.names)?;
    let full = mesh.node("n1").memory()?;
    let resolver = Quick::start(mesh.pod("resolver"))?;
    let mut dnsmasq = mesh
        .pod("beside")
        .command("dnsmasq")
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--cache-size=0",
        ])
        .args([
            "--port=5353",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--user=root",
            "--pid-file=",
        ])
        .args(["--dns-forward-max=2000", "--local-ttl=30"])
        .arg(format!("--host-record={KNOWN},10.1.2.3"))
        .arg(format!("--server={}", mesh.pod("resolver").ip4()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start dnsmasq (Debian: dnsmasq-base)")?;
    let (client, beside) = (mesh.pod("client"), mesh.pod("beside"));
    let mut arms = [
        Arm::new("ztunnel, from the mesh", client, "127.0.0.1:15053", KNOWN),
        Arm::new("dnsmasq, a name of its own", beside, "127.0.0.1:5353", KNOWN),
        Arm::new("ztunnel, forwarded", client, "127.0.0.1:15053", UNKNOWN),
        Arm::new("dnsmasq, forwarded", beside, "127.0.0.1:5353", UNKNOWN),
        Arm::new("the resolver itself", beside, &format!("{}:53", mesh.pod("resolver").ip4()), UNKNOWN),
    ];
    let measured = wait::ok("dnsmasq", Duration::from_secs(10), || arms[1].probe()).and_then(|()| {
        let load = Load { open: options.open, time: Duration::from_millis(options.millis) };
        for _ in 0..options.rounds {
            for arm in &mut arms {
                arm.run(load)?;
            }
        }
        Ok(())
    });
    drop(dnsmasq.kill());
    drop(dnsmasq.wait());
    drop(resolver);
    measured?;
    println!("| arm | answers/s, median (least to most) | p50 | p99 | lost |\n|--|--|--|--|--|");
    for arm in &arms {
        println!("{arm}");
    }
    println!(
        "\n{} queries open, {} rounds of {} ms, {} names in the mesh. Resident: {} KiB without names, {} KiB with them (at most {}).",
        options.open,
        options.rounds,
        options.millis,
        options.names,
        empty >> 10,
        full.resident >> 10,
        full.peak >> 10,
    );
    mesh.stop()
}

/// Memory of a ztunnel with so many names.
fn resident(names: usize) -> Result<u64> {
    let mesh = mesh(names)?;
    let memory = mesh.node("n1").memory()?.resident;
    mesh.stop()?;
    Ok(memory)
}

fn mesh(names: usize) -> Result<Mesh> {
    let mut services = String::new();
    for number in 0..names {
        let [_, a, b, c] = u32::try_from(number)?.to_be_bytes();
        writeln!(
            services,
            "- {{name: name-{number}, namespace: ns1, hostname: name-{number}.ns1.svc.cluster.local, vips: [/10.{a}.{b}.{c}], \
             ports: {{80: 8080}}}}"
        )?;
    }
    let mesh = Mesh::builder()
        .pod(PodSpec::mesh("client").namespace("ns1").on("n1"))
        .pod(PodSpec::unknown("beside").on("n1"))
        .pod(PodSpec::unknown("resolver").on("n2"))
        .dns(&["resolver"]);
    if names == 0 { mesh } else { mesh.services(&services) }.start()
}
