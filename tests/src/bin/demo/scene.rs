// SPDX-License-Identifier: Apache-2.0
//! The scene: two nodes, their pods, and the real programs that run in them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ztunnel_tests::{Mesh, Mode, PodSpec};

use crate::outcome::Outcome;

/// Where `load serve` listens.
const LOAD_PORT: u16 = 7000;
/// Words that nobody may read on the wire.
pub(crate) const SECRET: &str = "the quick brown fox stays inside the tunnel";
/// Length of the larger file, in bytes.
pub(crate) const FILE: usize = 4 << 20;

const POLICY: &str = "\
name: no-guests
namespace: demo
scope: Namespace
action: Deny
dryRun: false
rules:
- - - principals: [!Exact cluster.local/ns/demo/sa/guest]
";

/// Everything that runs; dropping it ends and removes all of it.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    programs: Vec<Child>,
}

impl Scene {
    /// Two nodes: `client` and `near` here, `far` and `guest` there; and the same load outside the mesh.
    pub(crate) fn mesh() -> Result<Mesh> {
        Mesh::builder()
            .mode(Mode::Full)
            .env("RUST_LOG", "warn,access=info")
            .pod(PodSpec::mesh("client").on("n1"))
            .pod(PodSpec::mesh("near").on("n1"))
            .pod(PodSpec::mesh("far").on("n2"))
            .pod(PodSpec::mesh("guest").on("n2"))
            .pod(PodSpec::plain("bare-client").on("n1"))
            .pod(PodSpec::plain("bare-near").on("n1"))
            .pod(PodSpec::plain("bare-far").on("n2"))
            .policy(POLICY)
            .start()
    }

    /// Starts nginx and the load servers.
    pub(crate) fn start(mesh: Mesh) -> Result<Self> {
        let mut scene = Self { mesh, programs: Vec::new() };
        for name in ["near", "far"] {
            let nginx = scene.nginx(name).with_context(|| format!("nginx in pod {name}"))?;
            scene.programs.push(nginx);
        }
        for name in ["near", "far", "bare-near", "bare-far"] {
            let server = scene.serve(name).with_context(|| format!("load server in pod {name}"))?;
            scene.programs.push(server);
        }
        for name in ["near", "far"] {
            let pod = scene.mesh.pod(name);
            ztunnel_tests::wait::until(&format!("nginx in pod {name}"), Duration::from_secs(10), || {
                pod.connect_timeout(pod.addr(80), Duration::from_secs(1)).is_ok()
            })?;
        }
        Ok(scene)
    }

    fn nginx(&self, name: &str) -> Result<Child> {
        let folder = self.mesh.dir().join(format!("nginx-{name}"));
        fs::create_dir_all(folder.join("www")).context("make its folder")?;
        fs::write(folder.join("www/index.html"), format!("hello from {name}: {SECRET}\n"))?;
        fs::write(folder.join("www/file"), SECRET.bytes().cycle().take(FILE).collect::<Vec<u8>>())?;
        let path = folder.to_str().context("the path is not text")?;
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  access_log off; sendfile on; default_type text/plain;\n\
             client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c;\n\
             uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;\n\
             server {{ listen 80; listen [::]:80; root {path}/www; }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), config)?;
        let child = self
            .mesh
            .pod(name)
            .command("nginx")
            .args(["-c", &format!("{path}/nginx.conf"), "-p", path])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(child)
    }

    fn serve(&self, name: &str) -> Result<Child> {
        let program = load_program()?;
        let mut child = self
            .mesh
            .pod(name)
            .command(&program)
            .args(on_core("1"))
            .args(["--io", "nonblocking", "serve", "--port", &LOAD_PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("did not come up");
        }
        Ok(child)
    }

    /// Runs curl in a pod; gives the HTTP status, the bytes received, the seconds, and its complaint.
    pub(crate) fn curl(&self, from: &str, to: &str, path: &str) -> Result<Fetched> {
        let url = format!("http://{}{path}", self.mesh.pod(to).addr(80));
        let output = self
            .mesh
            .pod(from)
            .command("curl")
            .args(["-sS", "--max-time", "20", "-o", "/dev/null"])
            .args(["-w", "%{http_code} %{size_download} %{time_total}", &url])
            .output()
            .context("curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split(' ');
        let mut next = || words.next().unwrap_or_default();
        Ok(Fetched {
            status: next().parse().unwrap_or(0),
            bytes: next().parse().unwrap_or(0),
            seconds: next().parse().unwrap_or(0.0),
            complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Runs the load generator from a client pod against a server pod.
    pub(crate) fn load(&self, from: &str, to: &str, words: &[&str], secs: f64) -> Result<Outcome> {
        let to = self.mesh.pod(to).addr(LOAD_PORT).to_string();
        let output = self
            .mesh
            .pod(from)
            .command(&load_program()?)
            .args(on_core("0"))
            .args(["--io", "nonblocking"])
            .args(words)
            .args(["--to", &to, "--secs", &secs.to_string(), "--warmup", "0.2"])
            .output()
            .context("load")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("load: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Switches the fast path of both nodes, at run time.
    pub(crate) fn switch(&self, state: &str) -> Result<()> {
        for node in self.mesh.nodes() {
            let answer = node.post(15000, &format!("/accel?state={state}"))?;
            if answer.status != 200 {
                bail!(
                    "POST /accel?state={state} on {}: {} {}",
                    node.name(),
                    answer.status,
                    answer.body.trim()
                );
            }
        }
        Ok(())
    }

    /// Ends the programs and removes everything; fails if anything is left.
    pub(crate) fn stop(mut self) -> Result<()> {
        end(&mut self.programs);
        self.mesh.stop()
    }
}

/// What curl got.
pub(crate) struct Fetched {
    pub(crate) status: u16,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
    pub(crate) complaint: String,
}

fn end(programs: &mut Vec<Child>) {
    for mut program in programs.drain(..) {
        // Gone already is as good.
        program.kill().ok();
        program.wait().ok();
    }
}

/// Client and server on a core each: left alone they share one or do not, and the figures flip with it.
fn on_core(core: &str) -> Vec<&str> {
    let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    if several { vec!["--cpu", core] } else { Vec::new() }
}

/// `load`, which cargo puts beside this program.
fn load_program() -> Result<String> {
    let program: PathBuf = std::env::current_exe().context("where am I?")?.with_file_name("load");
    if !program.is_file() {
        bail!("no {}: run `cargo xtask demo`, which builds it", program.display());
    }
    Ok(program.to_str().context("the path of `load` is not text")?.to_owned())
}
