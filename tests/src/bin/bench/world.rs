// SPDX-License-Identifier: Apache-2.0
//! The two nodes under load: switches them to an arm, runs one case, reads what it cost.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use ztunnel_tests::{Mesh, Mode, Pod, PodSpec};

use crate::machine;
use crate::outcome::Outcome;
use crate::plan::{Arm, Case, Load, Place, settings};
use crate::record::{Fastpath, Method, Sample};

/// The first port of the servers.
const PORT: u16 = 7000;

/// Two nodes; client, near and far in the mesh, and the same three outside it.
pub(crate) struct World {
    mesh: Mesh,
    method: Method,
    servers: Vec<Child>,
    arm: Arm,
}

/// What the proxies had used up at a moment.
struct Reading {
    machine: f64,
    ztunnel: f64,
    redirected: u64,
    passed: BTreeMap<String, u64>,
}

impl World {
    pub(crate) fn start(method: &Method) -> Result<Self> {
        let mesh = Mesh::builder()
            .mode(Mode::Off)
            .env("RUST_LOG", "warn,access=info")
            .pod(PodSpec::mesh("client").on("n1"))
            .pod(PodSpec::mesh("near").on("n1"))
            .pod(PodSpec::mesh("far").on("n2"))
            .pod(PodSpec::plain("bare-client").on("n1"))
            .pod(PodSpec::plain("bare-near").on("n1"))
            .pod(PodSpec::plain("bare-far").on("n2"))
            .start()
            .context("bring up two nodes")?;
        let mut world = Self { mesh, method: method.clone(), servers: Vec::new(), arm: Arm::default() };
        for name in ["near", "far", "bare-near", "bare-far"] {
            let server = world.serve(name).with_context(|| format!("server in pod {name}"))?;
            world.servers.push(server);
        }
        Ok(world)
    }

    fn serve(&self, name: &str) -> Result<Child> {
        let core = self.method.cores.map(|[_, server]| server);
        let mut child = self
            .load(self.mesh.pod(name), core)?
            .args(["serve", "--port", &PORT.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("did not come up");
        }
        Ok(child)
    }

    /// The load generator, in a pod, on a core.
    fn load(&self, pod: &Pod, core: Option<usize>) -> Result<ztunnel_tests::launch::Launch> {
        let program = program()?;
        let program = program.to_str().context("the path of `load` is not text")?;
        let launch = pod.command(program).args(["--io", &self.method.io]);
        Ok(match core {
            Some(core) => launch.args(["--cpu", &core.to_string()]),
            None => launch,
        })
    }

    /// Fresh ztunnels with the settings of this arm.
    pub(crate) fn switch(&mut self, arm: &Arm) -> Result<()> {
        let (mode, full) = settings(arm.base());
        self.mesh.set_mode(mode);
        self.mesh.set_env("EBPF_FULL_WORKLOADS", full);
        for node in self.mesh.nodes() {
            self.arm.environment.iter().for_each(|(name, _)| node.unset_env(name));
            arm.environment.iter().for_each(|(name, value)| node.set_env(name, value));
            node.set_program(arm.program.clone());
        }
        self.mesh.restart().with_context(|| format!("restart ztunnel for {}", arm.id))?;
        if arm.base() == "loaded-off" {
            for node in self.mesh.nodes() {
                let answer = node.post(15000, "/accel?state=off")?;
                if answer.status != 200 {
                    bail!("POST /accel?state=off: {} {}", answer.status, answer.body);
                }
            }
        }
        self.arm = arm.clone();
        Ok(())
    }

    /// Runs a case once.
    pub(crate) fn sample(&self, case: &Case, round: usize) -> Result<Sample> {
        let bare = if self.arm.base() == "direct" { "bare-" } else { "" };
        let server = match case.place {
            Place::SameNode => "near",
            Place::CrossNode => "far",
        };
        let client = self.mesh.pod(&format!("{bare}client"));
        let to = self.mesh.pod(&format!("{bare}{server}")).addr(PORT);
        let before = self.reading();
        let rss_before = self.resident();
        let mut child = self
            .load(client, self.method.cores.map(|[client, _]| client))?
            .args(case.arguments())
            .args(["--to", &to.to_string()])
            .args(["--secs", &self.method.secs.to_string(), "--warmup", &self.method.warmup.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the load generator")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        if case.load == Load::Idle {
            // Held for a moment, so that buffers of the handshake are gone.
            std::thread::sleep(Duration::from_millis(300));
        }
        let (after, rss_after) = (self.reading(), self.resident());
        drop(child.stdin.take());
        let rest = child.wait_with_output()?;
        let outcome = serde_json::from_str(&line).unwrap_or_else(|_| Outcome {
            errors: 1,
            error_texts: vec![String::from_utf8_lossy(&rest.stderr).trim().to_owned()],
            ..Outcome::default()
        });
        let meshed = self.arm.base() != "direct";
        Ok(Sample {
            arm: self.arm.id.clone(),
            case: case.id(),
            round,
            outcome,
            cpu_node: after.machine - before.machine,
            cpu_ztunnel: after.ztunnel - before.ztunnel,
            rss_before: if meshed { rss_before } else { 0 },
            rss_after: if meshed { rss_after } else { 0 },
            fastpath: (meshed && self.arm.base() != "iptables").then(|| self.growth(&before, after)),
        })
    }

    fn growth(&self, before: &Reading, after: Reading) -> Fastpath {
        let grown = |(reason, count): (String, u64)| {
            let count = count.saturating_sub(before.passed.get(&reason).copied().unwrap_or(0));
            (reason, count)
        };
        Fastpath {
            mode: self.mode(),
            redirected: after.redirected.saturating_sub(before.redirected),
            passed: after.passed.into_iter().map(grown).filter(|(_, count)| *count > 0).collect(),
        }
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading {
            machine: machine::cpu_of_machine(),
            ztunnel: 0.0,
            redirected: 0,
            passed: BTreeMap::new(),
        };
        for node in self.mesh.nodes() {
            reading.ztunnel += node.cpu_time().map_or(0.0, |time| time.as_secs_f64());
            if matches!(self.arm.base(), "direct" | "iptables") {
                continue;
            }
            let Ok(status) = node.status() else { continue };
            let fastpath = &status["fastpath"];
            reading.redirected += fastpath["redirected_messages"].as_u64().unwrap_or(0);
            for (reason, count) in fastpath["passed"].as_object().into_iter().flatten() {
                *reading.passed.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        reading
    }

    /// KiB of both ztunnels.
    fn resident(&self) -> u64 {
        self.mesh.nodes().filter_map(|node| node.memory().ok()).map(|memory| memory.resident / 1024).sum()
    }

    /// The mode in force, and why where it differs from the setting.
    pub(crate) fn mode(&self) -> String {
        let status = self.mesh.node("n1").status().unwrap_or(Value::Null);
        let mode = &status["mode"];
        let text = |key: &str| mode[key].as_str().unwrap_or("unknown").to_owned();
        let (configured, effective) = (text("configured"), text("effective"));
        let switched = if mode["on"] == false && effective != "off" { ", switched off" } else { "" };
        if configured == effective {
            format!("{effective}{switched}")
        } else {
            format!("{effective}{switched}: {}", text("reason"))
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Gone already is as good.
            server.kill().ok();
            server.wait().ok();
        }
    }
}

/// `load`, which cargo puts beside this program.
fn program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where am I?")?.with_file_name("load");
    if !program.is_file() {
        bail!("no {}: run `cargo xtask bench`, which builds it", program.display());
    }
    Ok(program)
}
