// SPDX-License-Identifier: Apache-2.0
//! A real Envoy in a pod: the peer of most ztunnels of this world, as a sidecar, a waypoint or a gateway.
//!
//! [`config`] has the pieces that Istio's proxies are made of. The program is the one that `cargo xtask test` installs
//! under `target/envoy`, or `ENVOY_BIN`.

pub mod config;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::mesh::Mesh;
use crate::peer::Authority;
use crate::pod::Pod;
use crate::{http, wait};

/// Where it is asked whether it is ready.
const ADMIN: u16 = 19000;
/// Reading a hundred megabytes of program takes its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one Envoy may use and has to write.
#[derive(Debug, Clone)]
pub struct Files {
    /// Its certificate.
    pub chain: PathBuf,
    /// The key of it.
    pub key: PathBuf,
    /// Whom it believes.
    pub roots: PathBuf,
    /// One line per request that it served: [`Served`].
    pub served: PathBuf,
}

/// A running Envoy. Dropping it kills it.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    files: Files,
    log: PathBuf,
}

/// A request that an Envoy has served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The identity in the client's certificate; `-` if there was none.
    pub client: String,
    /// `:authority`.
    pub authority: String,
    /// The status of the answer.
    pub status: String,
    /// `baggage`.
    pub baggage: String,
    /// `forwarded`.
    pub forwarded: String,
    /// `traceparent`.
    pub traceparent: String,
}

impl Envoy {
    /// Starts one in `pod`, with a certificate of the pod's identity; `configure` makes its listeners and clusters.
    ///
    /// # Errors
    /// There is no Envoy, it does not like its configuration, or it does not become ready; the error has what it said.
    pub fn start(
        mesh: &Mesh,
        pod: &Pod,
        configure: impl FnOnce(&Files) -> (Vec<Value>, Vec<Value>),
    ) -> Result<Self> {
        let program = binary()?;
        let (folder, name) = (mesh.dir(), format!("envoy-{}", pod.name()));
        let (chain, key) = Authority::open(&mesh.ca_dir())?.issue(&pod.spiffe())?.write(folder, &name)?;
        let roots = mesh.ca_dir().join("root-cert.pem");
        let files = Files { chain, key, roots, served: folder.join(format!("{name}.served")) };
        let (listeners, clusters) = configure(&files);
        let bootstrap = config::bootstrap(pod.name(), ADMIN, &listeners, &clusters);
        let path = folder.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_vec_pretty(&bootstrap)?).context("write Envoy's configuration")?;
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).context("make Envoy's log")?;
        let child = pod
            .command(&program.to_string_lossy())
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start Envoy")?;
        let mut envoy = Self { child, files, log };
        envoy.ready(pod)?;
        Ok(envoy)
    }

    fn ready(&mut self, pod: &Pod) -> Result<()> {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        let ready = wait::ok("Envoy to be ready", PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Err(status));
            }
            let answer = http::ask(pod.connect(admin)?, "GET", "/ready")?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body.trim());
            Ok(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("Envoy ended: {status}\n{}", self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// What it said.
    #[must_use]
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// What it has served so far.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        read(&self.files.served).lines().filter_map(Served::parse).collect()
    }

    /// Waits until it has served so many requests.
    ///
    /// # Errors
    /// It does not.
    pub fn expect_served(&self, count: usize) -> Result<Vec<Served>> {
        let what = format!("{count} requests served by Envoy");
        wait::until(&what, Duration::from_secs(15), || self.served().len() >= count)
            .with_context(|| format!("{:?}\n{}", self.served(), self.log()))?;
        Ok(self.served())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Served {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut field = || fields.next();
        Some(Self {
            client: field()?,
            authority: field()?,
            status: field()?,
            baggage: field()?,
            forwarded: field()?,
            traceparent: field()?,
        })
    }
}

/// The program.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Ok(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let versions = fs::read_dir(workspace.join(target).join("envoy/lib")).into_iter().flatten();
    let found = versions
        .filter_map(|version| Some(version.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file());
    found.context("no Envoy under target/envoy: `cargo xtask test` installs it, or set ENVOY_BIN")
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
