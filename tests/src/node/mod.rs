// SPDX-License-Identifier: Apache-2.0
//! A node: a network namespace on the wire, a node agent, and a ztunnel that can be started, asked, and killed.

mod process;
mod successor;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::http::{self, Response};
use crate::launch::Launch;
use crate::modes::Mode;
use crate::netns::Netns;
use crate::observe::{AccessEntry, Metrics};
use process::Process;
pub use successor::Successor;

/// Ports of ztunnel in its own namespace.
pub const ADMIN: u16 = 15000;
/// Metrics.
pub const STATS: u16 = 15020;
/// Readiness.
pub const READINESS: u16 = 15021;

/// A ztunnel must be ready, and stop, within this time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A node of the mesh.
#[derive(Debug)]
pub struct Node {
    name: String,
    netns: Netns,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    cgroup: Cgroup,
    agent: Agent,
    folder: PathBuf,
    settings: Mutex<Settings>,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Settings {
    mode: Mode,
    environment: BTreeMap<String, String>,
    program: Option<PathBuf>,
    starts: u32,
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In use now.
    pub resident: u64,
    /// Most that ever was in use.
    pub peak: u64,
}

/// Asks a port of the ztunnel whose own namespace is `netns`.
fn ask_in(netns: &Netns, port: u16, method: &str, path: &str) -> Result<Response> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = netns.run(|| TcpStream::connect_timeout(&local, Duration::from_secs(5)));
    http::ask(stream.with_context(|| format!("connect to {local}"))?, method, path)
}

impl Node {
    /// Makes the node as number `number`, on the wire; `environment` is for its ztunnel.
    pub(crate) fn create(
        prefix: &str,
        name: &str,
        number: u8,
        wire: &Netns,
        environment: BTreeMap<String, String>,
    ) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}-{name}"))?;
        let cgroup = Cgroup::create(&format!("{prefix}/{name}"))?;
        wire.ip(&format!(
            "link add to-{name} type veth peer name eth0 netns {}\n\
             link set to-{name} master wire up\n",
            netns.name()
        ))?;
        let ip4 = Ipv4Addr::new(10, 71, 0, number);
        netns.ip(&format!(
            "addr add {ip4}/24 dev eth0\n\
             addr add fd71::{number:x}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ))?;
        let ip6 = Ipv6Addr::new(0xfd71, 0, 0, 0, 0, 0, 0, number.into());
        let folder = crate::cleanup::folder(prefix);
        let agent = Agent::start(&folder.join(format!("{name}.zds")))?;
        let settings = Mutex::new(Settings { mode: Mode::Off, environment, program: None, starts: 0 });
        Ok(Self {
            name: name.to_owned(),
            netns,
            ip4,
            ip6,
            cgroup,
            agent,
            folder,
            settings,
            process: Mutex::default(),
        })
    }

    /// Its name, which its ztunnel gets as `NODE_NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup of its ztunnel.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its node agent.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its address on the wire.
    #[must_use]
    pub fn ip4(&self) -> IpAddr {
        self.ip4.into()
    }

    /// Its IPv6 address on the wire.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.ip6.into()
    }

    /// The pod name of its ztunnel, where that is a workload itself.
    #[must_use]
    pub fn own_name(&self) -> String {
        format!("ztunnel-{}", self.name)
    }

    /// Has its ztunnel serve tunnels to itself from the next start on.
    pub(crate) fn names_itself(&self) {
        self.set_env("POD_NAME", &self.own_name());
        self.set_env("POD_NAMESPACE", "istio-system");
        self.set_env("SERVICE_ACCOUNT", "ztunnel");
    }

    /// The mode that the next start will use.
    pub fn set_mode(&self, mode: Mode) {
        self.settings.lock().mode = mode;
    }

    /// A variable of the environment from the next start on.
    pub fn set_env(&self, name: &str, value: &str) {
        self.settings.lock().environment.insert(name.to_owned(), value.to_owned());
    }

    /// Another ztunnel than [`crate::ztunnel_binary`] from the next start on.
    pub fn set_program(&self, program: Option<PathBuf>) {
        self.settings.lock().program = program;
    }

    /// Takes a variable out of the environment from the next start on.
    pub fn unset_env(&self, name: &str) {
        self.settings.lock().environment.remove(name);
    }

    /// A program that will run in its namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Launch {
        self.netns.command(program)
    }

    /// Starts its ztunnel and waits until it is ready.
    ///
    /// # Errors
    /// There is no binary, it ends, or it does not become ready; the error has what it said.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready(PATIENCE)
    }

    /// Starts its ztunnel without waiting.
    ///
    /// # Errors
    /// There is no binary, or one runs already.
    pub fn launch(&self) -> Result<()> {
        let mut process = self.process.lock();
        if process.as_mut().is_some_and(Process::is_running) {
            bail!("ztunnel of {} is running already", self.name);
        }
        *process = Some(self.process_in(&self.netns)?);
        Ok(())
    }

    /// Starts another ztunnel for the same node agent, as a rolling update does; its own ports are in `netns`.
    ///
    /// # Errors
    /// There is no binary, or it does not become ready.
    pub fn successor(&self, netns: &Netns) -> Result<Successor> {
        let successor = Successor { process: self.process_in(netns)?, netns: netns.clone() };
        successor.wait_ready(PATIENCE)?;
        Ok(successor)
    }

    /// The ztunnel program in the node's namespace, cgroup and settings, with other arguments than a proxy's.
    ///
    /// # Errors
    /// There is no binary.
    pub fn ztunnel<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Launch> {
        self.program(&self.netns).map(|launch| launch.args(args))
    }

    fn process_in(&self, netns: &Netns) -> Result<Process> {
        let launch = self.program(netns)?.args(["proxy", "ztunnel"]);
        let mut settings = self.settings.lock();
        settings.starts += 1;
        let files = self.folder.join(format!("{}.{}", self.name, settings.starts));
        drop(settings);
        Process::start(launch, &files)
    }

    fn program(&self, netns: &Netns) -> Result<Launch> {
        let settings = self.settings.lock();
        let program = settings.program.clone().map_or_else(crate::ztunnel_binary, Ok)?;
        let mut launch = Launch::new(netns, Some(&self.cgroup), &program.to_string_lossy())
            .clean_env()
            .current_dir(&self.folder)
            .env("NODE_NAME", &self.name)
            .env("INPOD_UDS", self.agent.path())
            .env("EBPF_FASTPATH", settings.mode.to_string())
            .env("EBPF_PIN_PATH", self.folder.join("bpf").join(&self.name));
        for (name, value) in &settings.environment {
            launch = launch.env(name, value);
        }
        Ok(launch)
    }

    /// Waits until ztunnel says that it is ready.
    ///
    /// # Errors
    /// It ended, or the deadline passed; the error has what it said.
    pub fn wait_ready(&self, within: Duration) -> Result<()> {
        let ready = crate::wait::ok("readiness", within, || {
            if let Some(status) = self.exit_status() {
                return Ok(Err(status));
            }
            let response = self.get(READINESS, "/healthz/ready")?;
            if response.status != 200 {
                bail!("{} {}", response.status, response.body.trim());
            }
            Ok(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("ztunnel of {} ended: {status}\n{}", self.name, self.last_words()),
            Err(error) => Err(error.context(format!("ztunnel of {}\n{}", self.name, self.last_words()))),
        }
    }

    /// True if its ztunnel says that it is ready now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.get(READINESS, "/healthz/ready").is_ok_and(|response| response.status == 200)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// None runs, or it does not end.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(PATIENCE)
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// None runs.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_exit(PATIENCE).map(drop)
    }

    /// Sends a signal to its ztunnel.
    ///
    /// # Errors
    /// None runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.lock().as_ref().with_context(|| format!("no ztunnel on {}", self.name))?.signal(signal)
    }

    /// Waits for the end of its ztunnel.
    ///
    /// # Errors
    /// None was started, or it does not end.
    pub fn wait_exit(&self, within: Duration) -> Result<ExitStatus> {
        crate::wait::some("the end of ztunnel", within, || self.exit_status())
            .with_context(|| format!("on {}\n{}", self.name, self.last_words()))
    }

    /// How its ztunnel ended, if it has.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.process.lock().as_mut().and_then(Process::exit_status)
    }

    /// Process id of its ztunnel, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut process = self.process.lock();
        let process = process.as_mut()?;
        process.is_running().then(|| process.pid())
    }

    /// Asks a port of its ztunnel with GET.
    ///
    /// # Errors
    /// Nobody listens, or the answer is not HTTP.
    pub fn get(&self, port: u16, path: &str) -> Result<Response> {
        self.ask(port, "GET", path)
    }

    /// Asks a port of its ztunnel with POST.
    ///
    /// # Errors
    /// Nobody listens, or the answer is not HTTP.
    pub fn post(&self, port: u16, path: &str) -> Result<Response> {
        self.ask(port, "POST", path)
    }

    fn ask(&self, port: u16, method: &str, path: &str) -> Result<Response> {
        ask_in(&self.netns, port, method, path).with_context(|| format!("on {}", self.name))
    }

    /// Its metrics.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn metrics(&self) -> Result<Metrics> {
        let response = self.get(STATS, "/metrics")?;
        if response.status != 200 {
            bail!("/metrics of {}: {}", self.name, response.status);
        }
        Ok(Metrics::parse(&response.body))
    }

    /// Its `/status`.
    ///
    /// # Errors
    /// Nobody answers, or it is not JSON.
    pub fn status(&self) -> Result<serde_json::Value> {
        let response = self.get(ADMIN, "/status")?;
        serde_json::from_str(&response.body)
            .with_context(|| format!("/status: {} {}", response.status, response.body))
    }

    /// A counter of the fast path in its status, such as `redirected_messages` or `passed/credit`.
    ///
    /// # Errors
    /// It does not answer, or has no such counter.
    pub fn fastpath_counter(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        let value = status.pointer(&format!("/fastpath/{name}")).and_then(serde_json::Value::as_u64);
        value.with_context(|| format!("no counter {name} in {status}"))
    }

    /// The access log of this start of its ztunnel.
    #[must_use]
    pub fn access_log(&self) -> Vec<AccessEntry> {
        self.stdout().lines().filter_map(AccessEntry::parse).collect()
    }

    /// What its ztunnel printed since this start.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.process.lock().as_ref().map(Process::stdout).unwrap_or_default()
    }

    /// What its ztunnel complained about since this start.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.process.lock().as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// CPU time of its ztunnel so far.
    ///
    /// # Errors
    /// It does not run.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.proc("stat")?)?;
        // After the name in parentheses, utime and stime are fields 12 and 13, in ticks of 10 ms.
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
        let mut ticks =
            || rest.next().and_then(|field| field.parse::<u64>().ok()).context("odd /proc/<pid>/stat");
        Ok(Duration::from_millis((ticks()? + ticks()?) * 10))
    }

    /// Memory of its ztunnel.
    ///
    /// # Errors
    /// It does not run.
    pub fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(self.proc("status")?)?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("no {name} in /proc/<pid>/status"))
        };
        Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// Open file descriptors of its ztunnel.
    ///
    /// # Errors
    /// It does not run.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(self.proc("fd")?)?.count())
    }

    fn proc(&self, file: &str) -> Result<PathBuf> {
        let pid = self.pid().with_context(|| format!("no ztunnel on {}", self.name))?;
        Ok(Path::new("/proc").join(pid.to_string()).join(file))
    }

    /// The end of what ztunnel printed, for an error message.
    #[must_use]
    pub fn last_words(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
        };
        format!("-- stdout:\n{}\n-- stderr:\n{}", tail(self.stdout()), tail(self.stderr()))
    }

    /// Ends its ztunnel without asking.
    pub(crate) fn abandon(&self) {
        drop(self.process.lock().take());
    }
}
