// SPDX-License-Identifier: Apache-2.0
//! One pod's proxy on one worker: accepts, decides, relays. In reading order:
//!
//! * [`accept`]: ① who called, and where did they want to go?
//! * [`decide`]: asks the core where to go (② is [`ztunnel_core::route::outbound`]). * [`outbound`]: ③ opens the next hop.
//! * [`socks5`]: who says where to go, instead of being redirected.
//! * [`inbound`]: serves one CONNECT of a tunnel. * [`passthrough`]: serves one plaintext connection.
//! * [`balance`]: which worker serves a new tunnel.
//! * [`permission`]: what admitted a connection must go on to admit it. * [`unknown`]: policies that have not arrived.
//! * [`relay`]: ⑥ how bytes flow and how a connection ends. * [`splice`]: bulk between two TCP sockets.
//! * [`socket`]: the sockets themselves. * [`time_wait`]: what they leave behind. * [`phase`]: the end of a pod.

pub mod accept;
pub mod balance;
mod decide;
pub mod inbound;
mod leftover;
pub mod outbound;
pub mod passthrough;
mod permission;
pub mod phase;
pub mod relay;
pub mod socket;
mod socks5;
mod splice;
pub mod time_wait;
pub mod unknown;

use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use tokio::net::TcpStream;
use ztunnel_core::Name;
use ztunnel_core::hbone::{Baggage, baggage};
use ztunnel_core::mesh::Workload;

use crate::certs::{CertStore, PodCerts};
use crate::config::Config;
use crate::dns::{self, PodDns};
use crate::fastpath::FastPath;
use crate::hbone::pool::TunnelPool;
use crate::mesh::{LocalPod, SharedMesh};
use crate::resolve::Resolver;
use crate::telemetry::connection::Connection;
use crate::telemetry::live::{Registry, Shard};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::refusals::Refusals;
use crate::telemetry::standing::Standings;
use crate::worker::PodListeners;
use balance::{Balance, Busy, Inbox};
use permission::Permissions;
use phase::PhaseWatch;
use relay::{Reads, Side};
use socket::PodSockets;
use time_wait::TimeWaits;
use unknown::UnknownPolicies;

/// What every pod of the node shares.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The mesh.
    pub mesh: SharedMesh,
    /// All certificates. A pod gets at its own only, through [`PodCerts`].
    pub certs: CertStore,
    /// All counters.
    pub metrics: Metrics,
    /// Policies that pods name and that have not arrived.
    pub unknown_policies: UnknownPolicies,
    /// The fast path.
    pub fastpath: FastPath,
    /// Who was turned away lately.
    pub refusals: Refusals,
    /// How the sessions stand that tell us what to do.
    pub standings: Standings,
    /// Finds workloads that are known by host name.
    pub resolver: Resolver,
}

/// One pod, shared by the workers.
#[derive(Debug)]
pub struct PodContext {
    /// The node agent's id.
    pub uid: Arc<str>,
    /// Who it is.
    pub pod: LocalPod,
    /// Kernel id of its network namespace.
    pub netns_cookie: u64,
    /// Its certificates.
    pub certs: Arc<PodCerts>,
    /// Makes its sockets.
    pub sockets: PodSockets,
    /// Its DNS proxy, if queries come to us.
    pub dns: Option<PodDns>,
    /// Applications see the client's own address.
    pub keep_source: bool,
    /// The node.
    pub shared: Arc<Shared>,
    /// Open connections, those too that are still being opened.
    pub connections: AtomicUsize,
    /// The open connections themselves.
    pub live: Registry,
}

impl PodContext {
    /// Policies that the pod names and that have not arrived.
    pub fn unknown_policies(&self) -> Vec<Name> {
        self.shared.mesh.read(|mesh| {
            let workload = self.pod.find(mesh);
            workload.map(|workload| mesh.policies_for(workload).missing).unwrap_or_default()
        })
    }
}

/// One pod on one worker.
#[derive(Debug)]
pub struct PodProxy {
    /// The pod.
    pub context: Arc<PodContext>,
    /// Its tunnels.
    pub pool: Rc<TunnelPool>,
    /// Its open connections.
    pub live: Arc<Shard>,
    time_waits: TimeWaits,
    balance: Balance,
    /// What its open inbound connections depend on.
    permissions: Rc<Permissions>,
    /// The pod's baggage header, made once per description of the workload.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
}

impl PodProxy {
    fn new(context: Arc<PodContext>, balance: Balance) -> Rc<Self> {
        let shared = &context.shared;
        let pool =
            TunnelPool::new(context.sockets.clone(), Arc::clone(&context.certs), shared.config.tunnels);
        let time_waits = TimeWaits::default();
        let permissions = Rc::default();
        let live = context.live.shard();
        Rc::new(Self { pool, live, time_waits, balance, permissions, baggage: RefCell::new(None), context })
    }

    /// The `baggage` header that describes `workload`, which is this pod's own.
    fn baggage(&self, workload: &Arc<Workload>) -> HeaderValue {
        if let Some((known, header)) = &*self.baggage.borrow()
            && Arc::ptr_eq(known, workload)
        {
            return header.clone();
        }
        let header = baggage::header(&Baggage::of(workload));
        self.baggage.replace(Some((Arc::clone(workload), header.clone())));
        header
    }
}

/// Asks the kernel what became of our socket towards an application, for the log.
fn observe(shared: &Shared, connection: &Connection, socket: &TcpStream) {
    connection.set_path(shared.fastpath.connection(socket.as_fd()));
}

/// How to relay from and to an application.
fn application_side<'a>(shared: &Shared, connection: &Connection, socket: &'a mut TcpStream) -> Side<'a> {
    let (path, place) = shared.fastpath.locate(socket.as_fd());
    connection.begin_hop(path, place);
    let reads = if path.two_queues { Reads::UntilEmpty } else { Reads::ShortIsAll };
    let valve = place.filter(|_| path.two_queues).map(|place| shared.fastpath.valve(place));
    Side::application(socket, reads, valve)
}

/// Counts a connection of a pod for as long as it lives.
#[derive(Debug)]
struct Counted {
    proxy: Rc<PodProxy>,
    _busy: Busy,
}

impl Counted {
    fn new(proxy: &Rc<PodProxy>) -> Self {
        proxy.context.connections.fetch_add(1, Ordering::Relaxed);
        Self { proxy: Rc::clone(proxy), _busy: proxy.balance.busy() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.proxy.context.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one pod on this worker until it is drained or cut.
pub async fn serve_pod(
    context: Arc<PodContext>,
    listeners: PodListeners,
    (balance, inbox): (Balance, Inbox),
    phase: PhaseWatch,
) {
    let proxy = PodProxy::new(context, balance);
    let PodListeners { outbound, plaintext, hbone, socks5, dns } = listeners;
    let serve = async {
        tokio::join!(
            async {
                if let Some(outbound) = outbound {
                    accept::serve(&proxy, outbound, None, &phase, outbound::serve).await;
                }
            },
            async {
                if let Some(plaintext) = plaintext {
                    accept::serve(&proxy, plaintext, None, &phase, passthrough::serve).await;
                }
            },
            async {
                if let Some(hbone) = hbone {
                    accept::serve(&proxy, hbone, Some(inbox), &phase, inbound::serve).await;
                }
            },
            async {
                if let Some(socks5) = socks5 {
                    accept::serve(&proxy, socks5, None, &phase, socks5::serve).await;
                }
            },
            dns::run(&proxy.context, dns, &phase),
        )
    };
    tokio::select! {
        _ = serve => {}
        () = proxy.permissions.keep_current(&proxy.context) => {}
    }
}
