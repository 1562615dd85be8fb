// SPDX-License-Identifier: Apache-2.0
//! A real Prometheus in a node's namespace, and what `deploy/` gives it to do.
//!
//! * [`promql`]: the names in an expression. [`deploy`]: dashboard and rules as data.

pub mod deploy;
pub mod promql;

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::launch::Launch;
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::node::{Node, STATS};
use crate::{http, wait};

/// Where it listens, in the node's namespace.
const PORT: u16 = 9090;
/// It must be ready within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Prometheus that scrapes every node of a mesh each second. Dropping it kills it; its files go with the mesh.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    netns: Netns,
    log: PathBuf,
}

/// One series of an instant query.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: serde_json::Map<String, Value>,
    /// Its value now.
    pub value: f64,
}

impl Series {
    /// A label's value; empty if it has none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Prometheus {
    /// Starts it in the namespace and cgroup of `home`, with `rules` to evaluate each second.
    ///
    /// # Errors
    /// It is not installed, or does not become ready; the error has what it said.
    pub fn start(mesh: &Mesh, home: &Node, rules: &str) -> Result<Self> {
        let folder = mesh.dir().join("prometheus");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let rules = file("rules.yaml", rules)?;
        let config = file("prometheus.yaml", &config(mesh, &rules))?;
        let log = folder.join("log");
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = Launch::new(home.netns(), Some(home.cgroup()), "prometheus")
            .clean_env()
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start prometheus")?;
        let started = Self { child, netns: home.netns().clone(), log };
        wait::ok("Prometheus to be ready", PATIENCE, || {
            let response = started.get("/-/ready")?;
            ensure!(response.status == 200, "{} {}", response.status, response.body.trim());
            Ok(())
        })
        .with_context(|| fs::read_to_string(&started.log).unwrap_or_default())?;
        Ok(started)
    }

    /// Evaluates an expression now.
    ///
    /// # Errors
    /// Prometheus refuses it, or does not answer.
    pub fn query(&self, expression: &str) -> Result<Vec<Series>> {
        let answer = self.api(&format!("/api/v1/query?query={}", escape(expression)))?;
        let result = answer.pointer("/data/result").and_then(Value::as_array);
        let series = result.with_context(|| format!("`{expression}` is no vector: {answer}"))?;
        series.iter().map(|series| one(series).with_context(|| format!("{series}"))).collect()
    }

    /// Names of the alerts that fire now.
    ///
    /// # Errors
    /// Prometheus does not answer.
    pub fn firing(&self) -> Result<Vec<String>> {
        let answer = self.api("/api/v1/alerts")?;
        let alerts = answer.pointer("/data/alerts").and_then(Value::as_array).context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let mut names: Vec<String> = firing
            .filter_map(|alert| alert.pointer("/labels/alertname")?.as_str().map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// What it says about the health of its rules: nothing, unless one could not be evaluated.
    ///
    /// # Errors
    /// Prometheus does not answer.
    pub fn broken_rules(&self) -> Result<Vec<String>> {
        let answer = self.api("/api/v1/rules")?;
        let groups = answer.pointer("/data/groups").and_then(Value::as_array).context("no groups")?;
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let broken = rules.filter(|rule| rule["health"] == "err");
        Ok(broken.map(|rule| format!("{}: {}", rule["name"], rule["lastError"])).collect())
    }

    fn api(&self, path: &str) -> Result<Value> {
        let response = self.get(path)?;
        let answer: Value = serde_json::from_str(&response.body)
            .with_context(|| format!("{path}: {} {}", response.status, response.body))?;
        if answer["status"] != "success" {
            bail!("{path}: {}", answer["error"]);
        }
        Ok(answer)
    }

    fn get(&self, path: &str) -> Result<http::Response> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let stream = self.netns.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)));
        http::ask(stream.context("connect to Prometheus")?, "GET", path)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `promtool` and gives what it said.
///
/// # Errors
/// It is not installed, or not content; the error has what it said.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new("promtool").args(arguments).output().context("start promtool")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {}: {}\n{said}", arguments.join(" "), output.status);
    Ok(said.into_owned())
}

/// What `promtool check metrics` thinks about the style of a page, one complaint per line.
///
/// # Errors
/// It is not installed, or cannot read the page at all.
pub fn lint(page: &str) -> Result<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool")?;
    child.stdin.take().context("no input")?.write_all(page.as_bytes()).context("write to promtool")?;
    let output = child.wait_with_output().context("wait for promtool")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // 3: it was read, and there are complaints.
    ensure!(matches!(output.status.code(), Some(0 | 3)), "promtool check metrics: {}\n{said}", output.status);
    Ok(said.into_owned())
}

fn config(mesh: &Mesh, rules: &Path) -> String {
    let targets: Vec<String> = mesh.nodes().map(|node| format!("'{}:{STATS}'", node.ip4())).collect();
    format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
         rule_files: ['{}']\n\
         scrape_configs:\n- job_name: ztunnel\n  static_configs: [{{ targets: [{}] }}]\n",
        rules.display(),
        targets.join(", ")
    )
}

fn one(series: &Value) -> Option<Series> {
    let labels = series["metric"].as_object()?.clone();
    let value = series.pointer("/value/1")?.as_str()?.parse().ok()?;
    Some(Series { labels, value })
}

/// For the query part of a URL (RFC 3986, section 2.1).
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
