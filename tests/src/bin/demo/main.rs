// SPDX-License-Identifier: Apache-2.0
//! `demo`: a mesh of two nodes on this machine, real programs in it, the fast path off and on; leaves nothing behind.
//!
//! [`scene`]: nodes, pods, nginx. [`story`]: a round of traffic and what became of it. [`timing`]: the latency
//! table. [`paper`]: how it looks on a terminal. Run it with `cargo xtask demo`.

#![expect(clippy::print_stdout, reason = "the demo talks to its reader")]
#![expect(clippy::print_stderr, reason = "so does a failure")]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[path = "../load/outcome.rs"]
mod outcome;
mod paper;
mod scene;
mod story;
mod timing;

use paper::{Paper, Tone};
use scene::Scene;

/// Two nodes, four pods, real traffic through HBONE mTLS, with the fast path off and on; about two minutes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Cli {
    /// Leave out the latency table
    #[arg(long)]
    no_timing: bool,
}

const PICTURE: &str = r"
     node n1                                  node n2
    +------------------------------+         +------------------------------+
    |  client          near        |         |        far          guest    |
    |  curl, load      nginx, load |         |  nginx, load          curl   |
    |     :              :         |         |         :              :     |
    |  [       ztunnel n1       ]  |         |  [       ztunnel n2       ]  |
    +--------------+---------------+         +---------------+--------------+
                   |      the wire: TLS on port 15008        |
                   +-----------------------------------------+

    :  a pod's connections to its own node's ztunnel: the hop that the fast path
       takes from socket to socket in the kernel; between nodes it is always mTLS
";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let paper = Paper::new();
    match run(&cli, paper) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            paper.end_progress();
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, paper: Paper) -> Result<()> {
    ztunnel_tests::cleanup::on_signals();
    ztunnel_tests::need_root()?;
    println!("{}", paper.tone("A mesh on this machine", Tone::Strong));
    print!("{}", paper.tone(PICTURE, Tone::Quiet));
    println!();
    let mesh = paper.step("two nodes, four pods, a ztunnel per node", Scene::mesh)?;
    let scene = paper.step("nginx and load servers in near and far", || Scene::start(mesh))?;
    let shown = show(cli, paper, &scene);
    println!();
    let stopped = paper.step("everything removed: namespaces, cgroups, programs", || scene.stop());
    shown.and(stopped)?;
    paper.say(&format!(
        "{:.0} seconds in all. Next: `cargo xtask bench` for careful numbers,",
        paper.elapsed()
    ));
    paper.say("`cargo xtask test` for every test, README.md for installing it in a cluster.");
    Ok(())
}

fn show(cli: &Cli, paper: Paper, scene: &Scene) -> Result<()> {
    let effective = scene.mesh.node("n1").status()?["mode"]["effective"].as_str().unwrap_or("off").to_owned();
    scene.switch("off")?;
    paper.section("1. Fast path off: every byte through the TCP/IP stack");
    story::round(scene, paper)?;
    if effective == "off" {
        paper.section("2. Fast path on: not on this machine");
        story::reasons(scene, paper)?;
        paper.say("Everything above works the same without it; this part and the comparison are left out.");
        return Ok(());
    }
    paper.section("2. Fast path on: the same traffic, switched at run time");
    paper.quiet("POST /accel?state=on on both nodes; no restart, no connection lost");
    scene.switch("on")?;
    story::round(scene, paper)?;
    if cli.no_timing {
        return Ok(());
    }
    paper.section("3. What it costs and what it gives");
    paper.quiet("direct: the same programs outside the mesh, no encryption, no identity. off, on: as above.");
    paper.quiet("Medians of three interleaved rounds; a difference counts only if all three agree on it.");
    let failed = timing::table(scene, paper)?;
    println!();
    paper.quiet(
        "Nodes, programs and load share this machine's cores, so read the ratios, not the microseconds.",
    );
    if failed > 0 { anyhow::bail!("{failed} runs of the load had errors") } else { Ok(()) }
}
