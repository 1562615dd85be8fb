// SPDX-License-Identifier: Apache-2.0
//! A pod: a network namespace, a cgroup, addresses, and what the mesh and the node agent know about it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::Enrolled;
use crate::cgroup::Cgroup;
use crate::launch::Launch;
use crate::netns::Netns;
use crate::redirect::{self, Dns};
use crate::traffic::Conn;

/// Kubernetes namespace of every pod that does not say otherwise.
pub const NAMESPACE: &str = "demo";

/// No connection of a test may take longer to open.
const CONNECT: Duration = Duration::from_secs(15);

/// What the mesh knows about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// HBONE, captured, known to the node agent.
    Mesh,
    /// In the mesh as plain TCP; not captured.
    Plain,
    /// Not in the mesh at all.
    Unknown,
}

/// A name for a set of pods, with a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its hostname.
    pub hostname: String,
    /// The port of its virtual address.
    pub port: u16,
    /// The port of the pods.
    pub target: u16,
    /// The service does not say the port of the pods: each pod does.
    pub named: bool,
}

/// A pod to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) trust_domain: String,
    pub(crate) standing: Standing,
    pub(crate) services: Vec<ServicePort>,
    pub(crate) policies: Vec<String>,
    pub(crate) redirected: bool,
    pub(crate) enrolled: bool,
    /// Where it is found instead of its addresses.
    pub(crate) hostname: Option<String>,
    /// More of its description, as YAML.
    pub(crate) details: Vec<String>,
}

impl PodSpec {
    fn new(name: &str, standing: Standing) -> Self {
        Self {
            name: name.to_owned(),
            node: "n1".to_owned(),
            namespace: NAMESPACE.to_owned(),
            service_account: name.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            standing,
            services: Vec::new(),
            policies: Vec::new(),
            redirected: standing == Standing::Mesh,
            enrolled: standing == Standing::Mesh,
            hostname: None,
            details: Vec::new(),
        }
    }

    /// A pod of the mesh: HBONE, captured, enrolled.
    #[must_use]
    pub fn mesh(name: &str) -> Self {
        Self::new(name, Standing::Mesh)
    }

    /// A pod that the mesh knows as plain TCP, and that is not captured.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        Self::new(name, Standing::Plain)
    }

    /// A pod that the mesh does not know.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        Self::new(name, Standing::Unknown)
    }

    /// Its node; `n1` if not said.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// Its Kubernetes namespace; [`NAMESPACE`] if not said.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Its service account; its name if not said.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Its trust domain; `cluster.local` if not said.
    #[must_use]
    pub fn trust_domain(mut self, name: &str) -> Self {
        name.clone_into(&mut self.trust_domain);
        self
    }

    /// Makes it an endpoint of the service `hostname`, whose `port` leads to the pod's `target`.
    #[must_use]
    pub fn service(mut self, hostname: &str, port: u16, target: u16) -> Self {
        self.services.push(ServicePort { hostname: hostname.to_owned(), port, target, named: false });
        self
    }

    /// The same for a port that the service knows by name alone, so that the pod itself has to say which it is.
    #[must_use]
    pub fn named_port(mut self, hostname: &str, port: u16, target: u16) -> Self {
        self.services.push(ServicePort { hostname: hostname.to_owned(), port, target, named: true });
        self
    }

    /// The mesh knows it by a host name and not by its addresses.
    #[must_use]
    pub fn known_as(mut self, hostname: &str) -> Self {
        self.hostname = Some(hostname.to_owned());
        self
    }

    /// One more line of its description in the mesh file, such as `network: net2`. `$ip(pod)` stands for the address of a pod,
    /// `$vip(hostname)` for that of a service.
    #[must_use]
    pub fn with(mut self, yaml: &str) -> Self {
        self.details.push(yaml.to_owned());
        self
    }

    /// Names a policy (`namespace/name`) that selects this pod.
    #[must_use]
    pub fn selected_by(mut self, policy: &str) -> Self {
        self.policies.push(policy.to_owned());
        self
    }

    /// Leaves it out of what the node agent knows at first; the rules are there.
    #[must_use]
    pub fn not_enrolled(mut self) -> Self {
        self.enrolled = false;
        self
    }

    /// Leaves the redirection rules out.
    #[must_use]
    pub fn not_redirected(mut self) -> Self {
        self.redirected = false;
        self
    }
}

/// A pod that exists.
#[derive(Debug)]
pub struct Pod {
    pub(crate) spec: PodSpec,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    netns: Netns,
    cgroup: Cgroup,
}

impl Pod {
    /// Makes the pod as number `place` of node number `node`, and routes to it from the node.
    pub(crate) fn create(prefix: &str, spec: PodSpec, node: &Netns, place: Place, dns: Dns) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}-{}", spec.name))?;
        let cgroup = Cgroup::create(&format!("{prefix}/pod-{}", spec.name))?;
        let (ip4, ip6) = (place.ip4(), place.ip6());
        let (gate4, gate6) = (Place { pod: 1, ..place }.ip4(), Place { pod: 1, ..place }.ip6());
        let link = format!("pod{}", place.pod);
        node.ip(&format!(
            "link add {link} type veth peer name eth0 netns {peer}\n\
             addr add {gate4}/32 dev {link}\n\
             addr add {gate6}/128 dev {link} nodad\n\
             link set {link} up\n\
             route add {ip4}/32 dev {link} src {gate4}\n\
             route add {ip6}/128 dev {link} src {gate6}\n",
            peer = netns.name()
        ))?;
        netns.ip(&format!(
            "addr add {ip4}/32 dev eth0\n\
             addr add {ip6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {gate4}/32 dev eth0 scope link\n\
             route add default via {gate4} dev eth0 src {ip4}\n\
             route add {gate6}/128 dev eth0\n\
             route add ::/0 via {gate6} dev eth0 src {ip6}\n"
        ))?;
        if spec.redirected {
            redirect::install(&netns, dns)?;
        }
        Ok(Self { spec, ip4, ip6, netns, cgroup })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// Its service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.spec.service_account
    }

    /// The node it is on.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.spec.node
    }

    /// What the mesh knows about it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.spec.standing
    }

    /// Its UID towards the node agent.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("uid-{}", self.spec.name)
    }

    /// Its SPIFFE ID.
    #[must_use]
    pub fn spiffe(&self) -> String {
        let PodSpec { trust_domain, namespace, service_account, .. } = &self.spec;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip4(&self) -> IpAddr {
        self.ip4.into()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.ip6.into()
    }

    /// A port at its IPv4 address.
    #[must_use]
    pub fn addr(&self, port: u16) -> SocketAddr {
        (self.ip4, port).into()
    }

    /// A port at its IPv6 address.
    #[must_use]
    pub fn addr6(&self, port: u16) -> SocketAddr {
        (self.ip6, port).into()
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup of programs started in it.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The pod as the node agent knows it.
    #[must_use]
    pub fn enrolled(&self) -> Enrolled {
        Enrolled {
            uid: self.uid(),
            name: self.spec.name.clone(),
            namespace: self.spec.namespace.clone(),
            service_account: self.spec.service_account.clone(),
            netns: Some(self.netns.clone()),
        }
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    /// Runs `work` inside on a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.netns.spawn(work)
    }

    /// A program that will run inside, in the pod's cgroup.
    #[must_use]
    pub fn command(&self, program: &str) -> Launch {
        Launch::new(&self.netns, Some(&self.cgroup), program)
    }

    /// Connects from inside. The stream may be used from any thread.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`].
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect_timeout(to, CONNECT)
    }

    /// Connects from inside, for an exchange.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`].
    pub fn dial(&self, to: SocketAddr) -> io::Result<Conn> {
        self.connect(to).and_then(Conn::new)
    }

    /// Connects from inside within `limit`.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`].
    pub fn connect_timeout(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.run(|| {
            let stream = TcpStream::connect_timeout(&to, limit)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Connects from a chosen local address and port inside.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`], or the address is in use.
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), CONNECT)?;
            socket.set_tcp_nodelay(true)?;
            Ok(socket.into())
        })
    }

    /// Listens inside on every address of both families.
    ///
    /// # Errors
    /// The port is in use.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.listen_at((Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// Listens inside at one address.
    ///
    /// # Errors
    /// The port is in use.
    pub fn listen_at(&self, at: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if at.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.bind(&at.into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }
}

/// Number of a node and of a pod on it; addresses follow from them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) node: u8,
    pub(crate) pod: u8,
}

impl Place {
    pub(crate) fn ip4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 70, self.node, self.pod)
    }

    pub(crate) fn ip6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd70, 0, 0, self.node.into(), 0, 0, 0, self.pod.into())
    }
}
