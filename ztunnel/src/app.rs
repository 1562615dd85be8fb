// SPDX-License-Identifier: Apache-2.0
//! Builds every part once, in order, and owns the end. Source: data-plane contract, sections 7.5 and 7.6.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tracing::{info, warn};
use ztunnel_core::mesh::{Mesh, local};
use ztunnel_core::xds::Mode;

use crate::admin::http::{self, Reach};
use crate::admin::readiness::Readiness;
use crate::admin::{Doors, READINESS_PORT, unix};
use crate::certs::local_ca::LocalCa;
use crate::certs::remote_ca::{Caller, RemoteCa};
use crate::certs::{CertStore, Source, keeper};
use crate::config::env::Env;
use crate::config::{CaConfig, Config, MeshSource, ProxyMode};
use crate::fastpath::FastPath;
use crate::inpod::Agent;
use crate::inpod::pods::Pods;
use crate::mesh::SharedMesh;
use crate::proxy::Shared;
use crate::proxy::unknown::UnknownPolicies;
use crate::resolve::Resolver;
use crate::sys::memory::{self, Ebb};
use crate::sys::netns;
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::refusals::Refusals;
use crate::telemetry::standing::Standings;
use crate::tls::Tls;
use crate::tls::revocation::Revocations;
use crate::version;
use crate::worker::Workers;
use crate::xds;
use crate::xds::demand::{Demand, Demands};

/// The readiness tasks of the contract.
const STATE_MANAGER: &str = "state manager";
const PROXY: &str = "proxy";
const WORKLOAD_MANAGER: &str = "workload proxy manager";

/// How often we look whether a peak of connections is over.
const EBB_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// A setting, the mesh file or the kernel does not allow it to start, or the node agent broke the protocol.
pub fn run(env: &impl Env) -> anyhow::Result<()> {
    info!("{}", version::describe());
    let config = Config::from_env(env)?;
    if config.telemetry.log_opened {
        log::log_opened();
    }
    raise_file_limit();
    if config.mode == ProxyMode::Shared {
        netns::remember_home()
            .context("cannot enter network namespaces: CAP_SYS_ADMIN is missing; run `ztunnel doctor`")?;
    }
    let mesh = load_mesh(&config.mesh)?;
    if config.xds.is_none() && config.mesh == MeshSource::Empty {
        warn!("XDS_ADDRESS is empty and neither LOCAL_XDS_PATH nor LOCAL_XDS is set: the mesh is empty");
    }
    let (demands, receiver) = Demands::channel();
    let mesh = SharedMesh::new(mesh).on_node(config.node.name.as_deref());
    let mesh = match &config.xds {
        Some(xds) if xds.mode == Mode::OnDemand => mesh.on_demand(demands),
        Some(_) | None => mesh,
    };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tag = env.get("ISTIO_META_ISTIO_VERSION").unwrap_or_else(|| "unknown".into());
    let source = certificates(&config)?;
    let (revocations, follower) = match &config.crl {
        Some(path) => Revocations::open(path).map(|(lists, follower)| (Some(lists), Some(follower)))?,
        None => (None, None),
    };
    let (resolver, resolving) = Resolver::new(Arc::clone(&config.resolvers), config.sockets.ipv6);
    let shared = Arc::new(Shared {
        resolver,
        mesh,
        certs: CertStore::new(Tls { config: config.tunnels.tls, revocations }),
        metrics: Metrics::new(config.telemetry.series),
        unknown_policies: UnknownPolicies::default(),
        fastpath: FastPath::start(config.fastpath.clone()),
        refusals: Refusals::default(),
        standings: Standings::default(),
        config,
    });
    let tasks = LocalSet::new();
    // These end with the runtime: certificates are renewed and lists followed while connections drain.
    tasks.spawn_local(keeper::keep(shared.certs.clone(), shared.mesh.clone(), source));
    tasks.spawn_local(resolving.run());
    if let Some(follower) = follower {
        tasks.spawn_local(follower.follow());
    }
    tasks.block_on(&runtime, serve(shared, tag, receiver))
}

/// Where certificates come from.
fn certificates(config: &Config) -> anyhow::Result<Source> {
    match &config.ca {
        CaConfig::Local(directory) => {
            warn!(directory = %directory.display(), "certificates come from the local authority: NOT FOR PRODUCTION");
            let authority = LocalCa::open(directory);
            Ok(Source::Local(authority.with_context(|| format!("FAKE_CA_DIR={}", directory.display()))?))
        }
        CaConfig::Remote(remote) => {
            info!(address = %remote.server.address, "certificates come from the control plane");
            let caller = match config.mode {
                ProxyMode::Shared => Caller::Node,
                ProxyMode::Dedicated(_) => Caller::Workload,
            };
            Ok(Source::Remote(RemoteCa::new((**remote).clone(), config.tunnels.tls, caller)))
        }
    }
}

async fn serve(shared: Arc<Shared>, tag: String, demands: mpsc::Receiver<Demand>) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    for task in [STATE_MANAGER, PROXY, WORKLOAD_MANAGER] {
        readiness.hold(task);
    }
    let workers = Workers::start_threads(shared.config.workers).context("worker threads")?;
    let pods = Pods::new(Arc::clone(&shared), workers, shared.metrics.pods());
    let (quit, mut asked_to_quit) = mpsc::channel(1);
    let doors =
        Doors { shared: Arc::clone(&shared), pods: pods.clone(), readiness: readiness.clone(), quit, tag };
    let servers = open_doors(&doors)?;
    readiness.done(PROXY);
    let (control_plane, mut synced) = control_plane(&shared, demands);

    // A dedicated proxy has no node agent to wait for.
    let (ready, mut is_ready) = watch::channel(shared.config.mode != ProxyMode::Shared);
    let follow = async {
        loop {
            if *is_ready.borrow_and_update() {
                readiness.done(WORKLOAD_MANAGER);
            } else {
                readiness.hold(WORKLOAD_MANAGER);
            }
            if is_ready.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let give_back = async {
        let mut ebb = Ebb::default();
        loop {
            tokio::time::sleep(EBB_INTERVAL).await;
            if ebb.is_due(pods.busy()) {
                memory::release_free();
            }
            shared.metrics.expire();
        }
    };
    let agent = async {
        // No pod is served by a mesh that is not known yet. The sender lives as long as the client, which is for ever.
        drop(synced.wait_for(|synced| *synced).await);
        readiness.done(STATE_MANAGER);
        if let Some(own) = &shared.config.self_proxy {
            pods.start_self(own).context("ztunnel's own HBONE listener starts")?;
        }
        match &shared.config.mode {
            ProxyMode::Shared => {
                let agent = Agent::new(shared.config.inpod_uds.clone(), pods.clone(), ready)
                    .told_to(shared.standings.agent.clone());
                agent.run().await.map_err(anyhow::Error::from)
            }
            ProxyMode::Dedicated(workload) => {
                pods.start_here(workload).context("proxy starts")?;
                std::future::pending().await
            }
        }
    };
    let ended = tokio::select! {
        result = agent => result,
        () = control_plane => Ok(()),
        () = follow => Ok(()),
        () = give_back => Ok(()),
        signal = stop_signal() => signal.map(|name| info!(signal = name, "shutting down")),
        _ = asked_to_quit.recv() => Ok(()),
    };
    // Listeners first: nobody is accepted any more, not even by the side doors.
    drop(servers);
    if ended.is_ok() {
        let deadline = shared.config.drain_deadline;
        info!(?deadline, "draining");
        tokio::select! {
            () = pods.drain(deadline) => {}
            // Whoever presses Ctrl-C twice means it.
            () = interrupted() => {}
        }
    }
    info!("stopped");
    ended
}

/// The xDS client, and whether the mesh is known. Without a control plane it is what it is.
fn control_plane(
    shared: &Shared,
    demands: mpsc::Receiver<Demand>,
) -> (impl Future<Output = ()> + use<>, watch::Receiver<bool>) {
    let (synced, is_synced) = watch::channel(shared.config.xds.is_none());
    let client = shared.config.xds.clone().map(|config| {
        let mesh = (shared.mesh.clone(), demands);
        xds::Client::new(config, shared.config.tunnels.tls, mesh, shared.metrics.xds(), synced)
            .told_to(shared.standings.xds.clone())
    });
    let run = async move {
        match client {
            Some(client) => client.run().await,
            None => std::future::pending().await,
        }
    };
    (run, is_synced)
}

/// Binds and serves readiness, admin and metrics, in this order.
fn open_doors(doors: &Doors) -> anyhow::Result<tokio::task::JoinSet<()>> {
    let mut servers = tokio::task::JoinSet::new();
    let listeners = http::bind(READINESS_PORT, Reach::Everywhere).context("readiness server starts")?;
    let readiness = doors.clone();
    servers.spawn_local(http::serve(listeners, move |request| readiness.clone().readiness(request)));
    let listeners =
        http::bind(doors.shared.config.ports.admin, Reach::Localhost).context("admin server starts")?;
    let admin = doors.clone();
    servers.spawn_local(http::serve(listeners, move |request| admin.clone().admin(request)));
    if let Some(path) = &doors.shared.config.admin_socket {
        let (listener, place) = unix::bind(path).context("admin server starts")?;
        let admin = doors.clone();
        servers.spawn_local(async move {
            // Removed with the task.
            let _place = place;
            http::serve(vec![listener], move |request| admin.clone().admin(request)).await;
        });
    }
    let listeners =
        http::bind(doors.shared.config.ports.metrics, Reach::Everywhere).context("stats server starts")?;
    let metrics = doors.clone();
    servers.spawn_local(http::serve(listeners, move |request| metrics.clone().metrics(request)));
    Ok(servers)
}

fn load_mesh(source: &MeshSource) -> anyhow::Result<Mesh> {
    let (name, text) = match source {
        MeshSource::Empty => return Ok(Mesh::default()),
        MeshSource::Inline(text) => ("LOCAL_XDS".to_owned(), text.clone()),
        MeshSource::File(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("LOCAL_XDS_PATH={name}"))?;
            (name, text)
        }
    };
    let mesh = local::parse(&text).with_context(|| format!("the mesh in {name} cannot be used"))?;
    // The text and its tree are several times as large as what was made of them.
    memory::release_free();
    info!(workloads = mesh.workloads().len(), services = mesh.services().len(), "mesh loaded from {name}");
    Ok(mesh)
}

/// One descriptor per socket: the default limit is for other programs.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

async fn stop_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        () = interrupted() => Ok("SIGINT"),
    }
}

async fn interrupted() {
    match signal(SignalKind::interrupt()) {
        Ok(mut interrupt) => {
            interrupt.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}
