// SPDX-License-Identifier: Apache-2.0
//! A mesh on one machine: nodes on a wire, pods on the nodes, and the file that describes it all.

mod file;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::cleanup;
use crate::modes::Mode;
use crate::netns::Netns;
use crate::node::Node;
use crate::pod::{Place, Pod, PodSpec, Standing};
use crate::redirect::Dns;

/// The resolvers of every ztunnel, in the folder of the mesh.
const RESOLV_CONF: &str = "resolv.conf";

/// What a mesh will be.
#[derive(Debug, Clone)]
pub struct MeshBuilder {
    mode: Mode,
    environment: BTreeMap<String, String>,
    pods: Vec<PodSpec>,
    policies: Vec<String>,
    services: Vec<String>,
    resolvers: Option<Vec<String>>,
    details: file::Details,
    /// Node, name, value.
    of_nodes: Vec<(String, String, String)>,
    /// Policies that select the ztunnels, if these are workloads.
    ztunnels: Option<Vec<String>>,
}

/// A mesh that exists. Dropping it removes everything.
#[derive(Debug)]
pub struct Mesh {
    prefix: String,
    folder: PathBuf,
    mode: Mode,
    wire: Netns,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    details: file::Details,
}

impl MeshBuilder {
    /// `EBPF_FASTPATH` of every ztunnel.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// One more variable in the environment of every ztunnel.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// One more variable in the environment of one node's ztunnel.
    #[must_use]
    pub fn node_env(mut self, node: &str, name: &str, value: &str) -> Self {
        self.of_nodes.push((node.to_owned(), name.to_owned(), value.to_owned()));
        self
    }

    /// One more line of the description of the service `hostname`, such as `canonical: true`; see [`PodSpec::with`].
    #[must_use]
    pub fn service_with(mut self, hostname: &str, yaml: &str) -> Self {
        self.details.entry(hostname.to_owned()).or_default().push(yaml.to_owned());
        self
    }

    /// One more pod; nodes come from the pods that name them.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// One more policy, as the YAML of one item of `policies`.
    #[must_use]
    pub fn policy(mut self, yaml: &str) -> Self {
        self.policies.push(yaml.to_owned());
        self
    }

    /// More services, as YAML items of `services`.
    #[must_use]
    pub fn services(mut self, yaml: &str) -> Self {
        self.services.push(yaml.to_owned());
        self
    }

    /// Captures DNS queries; what the mesh does not answer is for these pods, in this order.
    #[must_use]
    pub fn dns(mut self, resolvers: &[&str]) -> Self {
        self.resolvers = Some(resolvers.iter().map(|&name| name.to_owned()).collect());
        self
    }

    /// Makes every ztunnel a workload of the mesh, `ztunnel-<node>` in `istio-system`, with tunnels to it; the policies
    /// (`namespace/name`) select them all.
    #[must_use]
    pub fn ztunnels_in_the_mesh(mut self, policies: &[&str]) -> Self {
        self.ztunnels = Some(policies.iter().map(|&policy| policy.to_owned()).collect());
        self
    }

    /// Makes namespaces and pods, starts a ztunnel on every node, and waits until all are ready.
    ///
    /// # Errors
    /// The machine lacks something, or a ztunnel does not become ready.
    pub fn start(self) -> Result<Mesh> {
        // Before a namespace is made: without a binary there is nothing to do.
        crate::ztunnel_binary()?;
        let mesh = self.build()?;
        mesh.launch()?;
        Ok(mesh)
    }

    /// Makes namespaces and pods, and starts nothing but the node agents.
    ///
    /// # Errors
    /// The machine lacks something.
    pub fn build(self) -> Result<Mesh> {
        crate::need_root()?;
        cleanup::on_signals();
        let prefix = cleanup::new_prefix();
        match self.build_as(&prefix) {
            Ok(mesh) => Ok(mesh),
            Err(error) => {
                drop(cleanup::remove(&prefix));
                Err(error)
            }
        }
    }

    fn build_as(self, prefix: &str) -> Result<Mesh> {
        let folder = cleanup::folder(prefix);
        let pins = cleanup::pins(prefix);
        fs::create_dir_all(&pins).with_context(|| format!("make {}", pins.display()))?;
        let none: Option<&str> = None;
        mount(Some("bpf"), &pins, Some("bpf"), MsFlags::empty(), none)
            .context("mount a bpffs for the pins")?;
        let wire = Netns::create(&format!("{prefix}-wire"))?;
        wire.ip(
            "link add wire type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set wire up\n",
        )?;
        let mesh_file = folder.join("mesh.yaml");
        let environment = self.environment(&mesh_file, &folder);
        let dns = if self.resolvers.is_some() { Dns::Captured } else { Dns::Direct };
        let mut nodes: Vec<Node> = Vec::new();
        let mut pods: Vec<Pod> = Vec::new();
        for spec in self.pods {
            if pods.iter().any(|pod| pod.name() == spec.name) {
                bail!("two pods are called {}", spec.name);
            }
            let number = match nodes.iter().position(|node| node.name() == spec.node) {
                Some(number) => number,
                None => {
                    let number = u8::try_from(nodes.len() + 1).context("too many nodes")?;
                    nodes.push(Node::create(prefix, &spec.node, number, &wire, environment.clone())?);
                    nodes.len() - 1
                }
            };
            let node = nodes.get(number).context("the node was made a moment ago")?;
            let neighbors = pods.iter().filter(|pod| pod.node_name() == spec.node).count();
            let place = Place {
                node: u8::try_from(number + 1).context("too many nodes")?,
                pod: u8::try_from(neighbors + 2).context("too many pods on a node")?,
            };
            let pod = Pod::create(prefix, spec, node.netns(), place, dns)?;
            if pod.spec.enrolled {
                node.agent().add(pod.enrolled())?;
            }
            pods.push(pod);
        }
        routes_between(&nodes)?;
        if let Some(resolvers) = &self.resolvers {
            fs::write(folder.join(RESOLV_CONF), resolv_conf(resolvers, &pods))
                .context("write resolv.conf")?;
        }
        for node in &nodes {
            node.set_mode(self.mode);
            for (_, name, value) in self.of_nodes.iter().filter(|(name, ..)| name == node.name()) {
                node.set_env(name, value);
            }
        }
        let mut text = file::text(&pods, &self.details, &self.policies, &self.services);
        if let Some(policies) = &self.ztunnels {
            nodes.iter().for_each(Node::names_itself);
            let ztunnels: String = nodes.iter().map(|node| file::ztunnel(node, policies)).collect();
            text = text.replacen("workloads:\n", &format!("workloads:\n{ztunnels}"), 1);
        }
        fs::write(&mesh_file, text).context("write the mesh file")?;
        Ok(Mesh {
            prefix: prefix.to_owned(),
            folder,
            mode: self.mode,
            wire,
            nodes,
            pods,
            details: self.details,
        })
    }

    fn environment(&self, mesh_file: &Path, folder: &Path) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<String, String> = [
            ("LOCAL_XDS_PATH", mesh_file.display().to_string()),
            ("XDS_ADDRESS", String::new()),
            ("FAKE_CA", "true".to_owned()),
            ("FAKE_CA_DIR", folder.join("ca").display().to_string()),
            ("EBPF_FULL_WORKLOADS", "*/*".to_owned()),
            ("CONNECTION_TERMINATION_DEADLINE", "2s".to_owned()),
            ("ISTIO_META_DNS_CAPTURE", "false".to_owned()),
            ("RUST_LOG", "info".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if self.resolvers.is_some() {
            environment.insert("ISTIO_META_DNS_CAPTURE".to_owned(), "true".to_owned());
            environment.insert("DNS_RESOLV_CONF".to_owned(), folder.join(RESOLV_CONF).display().to_string());
        }
        environment.extend(self.environment.clone());
        environment
    }
}

/// What ztunnel reads to know the resolvers.
fn resolv_conf(resolvers: &[String], pods: &[Pod]) -> String {
    let address = |name: &String| pods.iter().find(|pod| pod.name() == name).map(Pod::ip4);
    let servers = resolvers.iter().filter_map(address).map(|ip| format!("nameserver {ip}\n"));
    servers.collect::<String>() + "search nowhere.example\noptions ndots:5\n"
}

/// Every node knows the way to the pods of the others.
fn routes_between(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let mut batch = String::new();
        for (other, number) in nodes.iter().zip(1_u8..).filter(|(other, _)| other.name() != node.name()) {
            batch.push_str(&format!(
                "route add 10.70.{number}.0/24 via {via}\nroute add fd70:0:0:{number:x}::/64 via fd71::{number:x}\n",
                via = other.ip4()
            ));
        }
        node.netns().ip(&batch)?;
    }
    Ok(())
}

impl Mesh {
    /// An empty mesh, to be filled.
    #[must_use]
    pub fn builder() -> MeshBuilder {
        MeshBuilder {
            mode: Mode::Off,
            environment: BTreeMap::new(),
            pods: Vec::new(),
            policies: Vec::new(),
            services: Vec::new(),
            resolvers: None,
            details: BTreeMap::new(),
            of_nodes: Vec::new(),
            ztunnels: None,
        }
    }

    /// Starts a ztunnel on every node, and waits until all are ready.
    ///
    /// # Errors
    /// A ztunnel does not become ready.
    pub fn launch(&self) -> Result<()> {
        self.nodes().try_for_each(Node::launch)?;
        self.nodes().try_for_each(|node| node.wait_ready(crate::node::PATIENCE))
    }

    /// What everything of this mesh is called on this machine.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.folder
    }

    /// Where the nodes share their certificate authority.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.folder.join("ca")
    }

    /// The file that describes the mesh.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("mesh.yaml")
    }

    /// `EBPF_FASTPATH` of every ztunnel.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes `EBPF_FASTPATH` from the next start on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.nodes.iter().for_each(|node| node.set_mode(mode));
    }

    /// Changes the environment of every ztunnel from the next start on.
    pub fn set_env(&self, name: &str, value: &str) {
        self.nodes.iter().for_each(|node| node.set_env(name, value));
    }

    /// Stops every ztunnel with SIGTERM and starts it again with the current settings.
    ///
    /// # Errors
    /// One does not stop, or does not become ready.
    pub fn restart(&self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            node.terminate()?;
        }
        for node in &self.nodes {
            node.launch()?;
        }
        self.nodes.iter().try_for_each(|node| node.wait_ready(crate::node::PATIENCE))
    }

    /// A pod by name.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let found = self.pods.iter().find(|pod| pod.name() == name);
        found.unwrap_or_else(|| unreachable!("the test asks for the pod {name}, which it did not declare"))
    }

    /// A node by name.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| unreachable!("the test asks for the node {name}, which no pod names"))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter()
    }

    /// The namespace between the nodes: all that they say to each other crosses its bridge.
    #[must_use]
    pub fn wire(&self) -> &Netns {
        &self.wire
    }

    /// The virtual address of the service `hostname`.
    ///
    /// # Panics
    /// No pod is in it.
    #[must_use]
    pub fn vip(&self, hostname: &str) -> std::net::IpAddr {
        let place = file::hostnames(&self.pods, &self.details).iter().position(|name| name == hostname);
        let place = place.unwrap_or_else(|| unreachable!("no pod declares the service {hostname}"));
        file::vip(place).into()
    }

    /// Prints the end of every ztunnel's output, for a test that failed.
    #[expect(clippy::print_stderr, reason = "shown beside the failed test")]
    pub fn print_logs(&self) {
        for node in &self.nodes {
            eprintln!("== ztunnel of {}\n{}", node.name(), node.last_words());
        }
    }

    /// Removes everything, and fails if something is left.
    ///
    /// # Errors
    /// Something is left; the error names it.
    pub fn stop(self) -> Result<()> {
        let prefix = self.prefix.clone();
        drop(self);
        let leaks = cleanup::leaks(&prefix);
        if leaks.is_empty() { Ok(()) } else { bail!("left behind: {}", leaks.join(", ")) }
    }
}

impl Drop for Mesh {
    #[expect(clippy::print_stderr, reason = "a destructor has no other way to complain")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for node in &self.nodes {
            node.agent().pause();
            node.abandon();
        }
        if let Err(error) = cleanup::remove(&self.prefix) {
            eprintln!("cleaning up {}: {error:#}", self.prefix);
        }
    }
}

/// True if the mesh file lists the pod.
fn is_listed(pod: &Pod) -> bool {
    pod.standing() != Standing::Unknown
}
