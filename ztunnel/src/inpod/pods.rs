// SPDX-License-Identifier: Apache-2.0
//! The pods of this node: binds their listeners, hands them to the workers, ends them.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use ztunnel_core::addr::{INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use ztunnel_core::fastpath::Eligibility;
use ztunnel_core::socks5;
use ztunnel_core::zds::{PodInfo, StartError, Uid};

use crate::config::mode::WorkloadInfo;
use crate::config::{Config, SocketConfig};
use crate::dns::{self, PodDns};
use crate::mesh::LocalPod;
use crate::proxy::phase::{Phase, PhaseWatch};
use crate::proxy::socket::{ListenerKind, PodSockets};
use crate::proxy::{PodContext, Shared};
use crate::sys::netns::Netns;
use crate::telemetry::live::Registry;
use crate::telemetry::metrics::PodGauges;
use crate::worker::{PodListeners, Workers};

/// How long cut connections may take to be gone.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Every pod that is served, shared with the admin server.
#[derive(Debug, Clone)]
pub struct Pods(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    workers: Workers,
    gauges: PodGauges,
    served: Mutex<BTreeMap<Uid, Served>>,
    pending: Mutex<BTreeMap<Uid, PodInfo>>,
    /// Our own listener: no pod of the node agent's, and none that anybody counts.
    own: Mutex<Option<watch::Sender<Phase>>>,
    /// The sender is cloned into every worker's task of every pod: when all clones are gone, everything has ended.
    /// Empty once a drain has begun: no pod is started any more.
    alive: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

#[derive(Debug)]
struct Served {
    context: Arc<PodContext>,
    phase: watch::Sender<Phase>,
    eligibility: Eligibility,
}

impl Pods {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>, workers: Workers, gauges: PodGauges) -> Self {
        let alive = Mutex::new(Some(mpsc::channel(1)));
        let (served, pending, own) = Default::default();
        Self(Arc::new(Inner { shared, workers, gauges, served, pending, own, alive }))
    }

    /// Starts the proxy of one pod: its listeners are bound when this returns.
    ///
    /// # Errors
    /// The namespace is gone, or a listener cannot be bound.
    pub fn start(&self, uid: &Uid, info: &PodInfo, netns: Arc<OwnedFd>) -> Result<(), StartError> {
        self.start_in(uid, info, Netns::new(netns).map_err(|error| start_error(&error))?)
    }

    /// Starts the proxy of one workload in the namespace of this process.
    ///
    /// # Errors
    /// A listener cannot be bound.
    pub fn start_here(&self, workload: &WorkloadInfo) -> Result<(), StartError> {
        let WorkloadInfo { namespace, name, service_account } = workload.clone();
        let info = PodInfo { name, namespace, service_account };
        let netns = Netns::own().map_err(|error| start_error(&error))?;
        self.start_in(&Uid::from("dedicated"), &info, netns)
    }

    fn start_in(&self, uid: &Uid, info: &PodInfo, netns: Netns) -> Result<(), StartError> {
        let inner = &self.0;
        let alive = inner.alive.lock().as_ref().map(|(sender, _)| sender.clone());
        let alive = alive.ok_or_else(|| StartError::Failed("shutting down".into()))?;
        let netns = Arc::new(netns);
        let cookie = netns.cookie();
        let eligibility = inner.shared.fastpath.enroll(cookie, &info.namespace, &info.service_account);
        let sockets =
            PodSockets::new(Arc::clone(&netns), inner.shared.config.sockets, inner.shared.fastpath.clone());
        let bound = bind(&sockets, &inner.shared.config, inner.workers.count());
        let listeners = bound.map_err(|error| {
            inner.shared.fastpath.withdraw(cookie);
            start_error(&error)
        })?;
        let (phase, watch) = PhaseWatch::new();
        let pod = self.local_pod(info.clone());
        let live = self.registry(&pod);
        let context = Arc::new(PodContext {
            uid: Arc::clone(uid),
            certs: inner.shared.certs.pod(inner.shared.mesh.clone(), pod.clone()),
            pod,
            netns_cookie: cookie,
            sockets,
            dns: inner.shared.config.dns.as_ref().map(|dns| PodDns::new(dns, &info.namespace)),
            keep_source: listeners
                .iter()
                .flat_map(|listeners| &listeners.hbone)
                .all(|hbone| hbone.transparent),
            shared: Arc::clone(&inner.shared),
            connections: AtomicUsize::new(0),
            live,
        });
        inner.workers.start(&context, listeners, &watch, &alive);
        info!(pod = %context.pod, level = %eligibility.level, reason = %eligibility.reason, "pod is served");
        inner.gauges.started();
        let served = Served { context, phase, eligibility };
        // The session stops a pod before it starts it anew; should that ever fail, the old one must not live on.
        let old = inner.served.lock().insert(Arc::clone(uid), served);
        if let Some(old) = old {
            self.end(&old);
        }
        inner.gauges.active(inner.served.lock().len());
        Ok(())
    }

    /// Lets peers reach this process itself over HBONE, in its own namespace and with ordinary sockets.
    ///
    /// # Errors
    /// The listener cannot be bound.
    pub fn start_self(&self, own: &WorkloadInfo) -> Result<(), StartError> {
        let inner = &self.0;
        let alive = inner.alive.lock().as_ref().map(|(sender, _)| sender.clone());
        let alive = alive.ok_or_else(|| StartError::Failed("shutting down".into()))?;
        let netns = Arc::new(Netns::own().map_err(|error| start_error(&error))?);
        let netns_cookie = netns.cookie();
        let config = SocketConfig {
            mark: 0,
            mark_listeners: false,
            port_reuse: false,
            original_source: Some(false),
            ..inner.shared.config.sockets
        };
        let sockets = PodSockets::new(netns, config, inner.shared.fastpath.clone());
        let hbone = sockets.listen(INBOUND_HBONE_PORT, ListenerKind::Inbound);
        let hbone = hbone.map_err(|error| start_error(&error))?;
        let WorkloadInfo { namespace, name, service_account } = own.clone();
        let pod = self.local_pod(PodInfo { name, namespace, service_account });
        let live = self.registry(&pod);
        let context = Arc::new(PodContext {
            uid: Uid::from("ztunnel"),
            certs: inner.shared.certs.pod(inner.shared.mesh.clone(), pod.clone()),
            pod,
            netns_cookie,
            sockets,
            dns: None,
            keep_source: false,
            shared: Arc::clone(&inner.shared),
            connections: AtomicUsize::new(0),
            live,
        });
        let (phase, watch) = PhaseWatch::new();
        let listeners = PodListeners { hbone: Some(hbone), ..PodListeners::default() };
        inner.workers.start_alone(&context, listeners, &watch, &alive);
        info!(pod = %context.pod, "ztunnel itself is reached over HBONE");
        *inner.own.lock() = Some(phase);
        Ok(())
    }

    fn registry(&self, pod: &LocalPod) -> Registry {
        let shared = &self.0.shared;
        Registry::new(pod.to_string().into(), shared.metrics.clone(), shared.refusals.clone())
    }

    fn local_pod(&self, info: PodInfo) -> LocalPod {
        let PodInfo { name, namespace, service_account } = info;
        let node = self.0.shared.config.node.name.as_deref().map(Arc::from);
        LocalPod { name, namespace, service_account, node }
    }

    /// Stops the proxy of one pod and cuts its connections at once.
    pub fn stop(&self, uid: &Uid) {
        let stopped = self.0.served.lock().remove(uid);
        if let Some(served) = stopped {
            self.end(&served);
            info!(pod = %served.context.pod, "pod is no longer served");
        }
        self.0.gauges.active(self.0.served.lock().len());
    }

    /// Cuts everything of a pod.
    fn end(&self, served: &Served) {
        served.phase.send_replace(Phase::Cut);
        self.0.shared.fastpath.withdraw(served.context.netns_cookie);
        self.0.gauges.stopped();
    }

    /// The pods that could not be started yet.
    pub fn pending(&self, pods: BTreeMap<Uid, PodInfo>) {
        self.0.gauges.pending(pods.len());
        *self.0.pending.lock() = pods;
    }

    /// The same, as last told.
    pub fn all_pending(&self) -> BTreeMap<Uid, PodInfo> {
        self.0.pending.lock().clone()
    }

    /// Stops accepting everywhere, and lets open connections finish. Returns when all have, or were cut at `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        let Some(alive) = self.0.alive.lock().take() else { return };
        for served in self.0.served.lock().values() {
            served.phase.send_replace(Phase::Draining);
        }
        let own = self.0.own.lock().take();
        if let Some(phase) = &own {
            phase.send_replace(Phase::Draining);
        }
        let (ours, mut ended) = alive;
        drop(ours);
        // Nobody sends: the channel closes when the last task has ended.
        if tokio::time::timeout(deadline, ended.recv()).await.is_err() {
            warn!("drain duration expired with pending connections, forcefully shutting down");
        }
        let served = std::mem::take(&mut *self.0.served.lock());
        // All before anything else is done: a pod must not take the end of its neighbor's connections for a failure.
        for phase in served.values().map(|served| &served.phase).chain(&own) {
            phase.send_replace(Phase::Cut);
        }
        for served in served.values() {
            self.end(served);
        }
        // The cut takes no longer than dropping sockets does.
        drop(tokio::time::timeout(CUT_TIMEOUT, ended.recv()).await);
    }

    /// The runtimes that carry their traffic.
    pub fn runtimes(&self) -> &[Handle] {
        self.0.workers.runtimes()
    }

    /// Connections, streams and tunnels that are open.
    pub fn busy(&self) -> usize {
        self.0.workers.busy()
    }

    /// The pods, by the node agent's id.
    pub fn contexts(&self) -> Vec<Arc<PodContext>> {
        self.0.served.lock().values().map(|served| Arc::clone(&served.context)).collect()
    }

    /// The same, and how far the kernel carries their bytes.
    pub fn served(&self) -> Vec<(Arc<PodContext>, Eligibility)> {
        let served = self.0.served.lock();
        served.values().map(|served| (Arc::clone(&served.context), served.eligibility)).collect()
    }

    /// Switches the fast path of one pod, named `namespace/name`. `false`: no such pod is served.
    pub fn accelerate(&self, pod: &str, switch: Switch) -> bool {
        let served = self.0.served.lock();
        let found = served.values().find(|served| served.context.pod.to_string() == pod);
        found.is_some_and(|served| {
            self.0.shared.fastpath.set_pod(served.context.netns_cookie, switch == Switch::On)
        })
    }
}

/// A switch of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// As configured.
    On,
    /// Everything takes TCP.
    Off,
}

/// The listeners of every worker. The kernel spreads connections over them; where they may not share their ports, they
/// are the same sockets, and the first worker to look takes a connection.
fn bind(sockets: &PodSockets, config: &Config, workers: usize) -> io::Result<Vec<PodListeners>> {
    if sockets.share_ports() {
        return (0..workers).map(|_| bind_all(sockets, config)).collect();
    }
    let first = bind_all(sockets, config)?;
    let others: io::Result<Vec<_>> = (1..workers).map(|_| first.try_clone()).collect();
    Ok(std::iter::once(first).chain(others?).collect())
}

fn bind_all(sockets: &PodSockets, config: &Config) -> io::Result<PodListeners> {
    let mut all = PodListeners::default();
    if config.proxy {
        all.outbound = Some(sockets.listen(OUTBOUND_PORT, ListenerKind::Outbound)?);
        all.plaintext = Some(sockets.listen(INBOUND_PLAINTEXT_PORT, ListenerKind::Inbound)?);
        all.hbone = Some(sockets.listen(INBOUND_HBONE_PORT, ListenerKind::Inbound)?);
        if config.socks5 {
            let address = (Ipv4Addr::LOCALHOST, socks5::PORT).into();
            all.socks5 = Some(sockets.listen_at(address, ListenerKind::Local)?);
        }
    }
    if let Some(config) = &config.dns {
        all.dns = dns::bind(sockets, config.listen)?;
    }
    Ok(all)
}

/// Kept as pending and tried again: a descriptor keeps its namespace alive, so whatever it is may go away.
fn start_error(error: &io::Error) -> StartError {
    StartError::Failed(error.to_string())
}
