// SPDX-License-Identifier: Apache-2.0
//! ④ Hands out a stream on a live tunnel, dialing when the core says so.
//!
//! One pool per pod and worker: everything here stays on one thread. A dial runs in a task of its own, so that it
//! outlives a client that gives up, and settles for everybody who waits for it, with one and the same result.
//!
//! Next: [`crate::proxy::relay`] copies the bytes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;
use tracing::debug;
use ztunnel_core::identity::Identity;
use ztunnel_core::pool::{Checkout, Load, Pool, Settings, Tenure, TunnelId};
use ztunnel_core::report::{Cut, H2Stage, Outcome};
use ztunnel_core::route::Hop;

use super::dial::{Dialed, NOT_SAID, dial};
use super::{HANDSHAKE_TIMEOUT, watch_liveness};
use crate::certs::PodCerts;
use crate::config::TunnelConfig;
use crate::proxy::relay::TunnelStream;
use crate::proxy::socket::{CONNECT_TIMEOUT, PodSockets};
use crate::tls::{Revoked, Standing};

/// A tunnel that carried this much for one stream is busy: others get one of their own, if there may be more.
const BULK: u64 = 1 << 20;
/// Tunnels to one destination, as long as none of them is full.
const MAX_TUNNELS: usize = 4;
/// The peer connects to its application before it answers.
pub(super) const CONNECT_ANSWER_TIMEOUT: Duration = CONNECT_TIMEOUT.saturating_add(Duration::from_secs(5));
/// Tunnels that may turn out to be dead before one connection gives up. Nothing of the application was sent on them.
const ATTEMPTS: usize = 3;

/// What two connections must agree on to share a tunnel. The source identity is the pod's, hence the pool's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    expected: Vec<Identity>,
}

/// How far a tunnel has come.
#[derive(Debug, Clone)]
enum Stage {
    Dialing,
    /// HTTP/2 can be spoken. Only who dialed may ask for a stream: how many the peer takes is not known yet.
    Open,
    /// The peer's settings are known; or the dial has failed.
    Settled(Result<(), Outcome>),
}

struct Tunnel {
    /// Empty while dialing.
    send: Option<SendRequest<Bytes>>,
    stage: watch::Receiver<Stage>,
    /// Streams that carry bulk.
    bulk: Rc<Cell<usize>>,
    /// Becomes true when the peer is no longer to be believed; `None`: nobody looks.
    revoked: Option<watch::Receiver<bool>>,
    task: AbortHandle,
}

/// The tunnels of one pod on one worker.
pub struct TunnelPool {
    sockets: PodSockets,
    certs: Arc<PodCerts>,
    config: TunnelConfig,
    core: RefCell<Pool<Key>>,
    tunnels: RefCell<HashMap<TunnelId, Tunnel>>,
    /// Wakes the task that releases idle tunnels.
    idle: Rc<Notify>,
}

impl std::fmt::Debug for TunnelPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelPool").field("tunnels", &self.core.borrow().len()).finish_non_exhaustive()
    }
}

/// One stream of a tunnel; gives its place back when dropped.
#[derive(Debug)]
pub struct Lease {
    pool: Weak<TunnelPool>,
    id: TunnelId,
    bytes: Cell<u64>,
    bulk: Rc<Cell<usize>>,
    revoked: Option<watch::Receiver<bool>>,
}

impl Lease {
    /// Ready once the certificate of the tunnel's peer is revoked.
    #[must_use]
    pub fn revoked(&self) -> Revoked {
        Revoked::new(self.revoked.as_ref())
    }

    /// Tells the pool that bytes have flowed.
    pub fn carried(&self, bytes: usize) {
        let before = self.bytes.get();
        let after = before.saturating_add(bytes as u64);
        self.bytes.set(after);
        if before < BULK && after >= BULK {
            self.bulk.set(self.bulk.get() + 1);
            if let Some(pool) = self.pool.upgrade() {
                pool.core.borrow_mut().set_busy(self.id, Load::Busy);
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let was_bulk = self.bytes.get() >= BULK;
        if was_bulk {
            self.bulk.set(self.bulk.get() - 1);
        }
        let Some(pool) = self.pool.upgrade() else { return };
        let mut core = pool.core.borrow_mut();
        if was_bulk && self.bulk.get() == 0 {
            core.set_busy(self.id, Load::Free);
        }
        let tenure = core.stream_closed(self.id, Instant::now());
        drop(core);
        pool.after(self.id, tenure);
        pool.idle.notify_one();
    }
}

/// A stream that the peer has accepted.
#[derive(Debug)]
pub struct Opened {
    /// The bytes go here.
    pub stream: TunnelStream,
    /// The peer's answer: 200 and its headers.
    pub response: http::response::Parts,
    /// The stream's place in its tunnel.
    pub lease: Lease,
}

impl TunnelPool {
    /// An empty pool, and the task that releases its idle tunnels for as long as it lives.
    pub fn new(sockets: PodSockets, certs: Arc<PodCerts>, config: TunnelConfig) -> Rc<Self> {
        let settings = Settings {
            max_streams_per_tunnel: usize::from(config.max_streams),
            idle_release: config.idle_release,
            max_tunnels_per_key: MAX_TUNNELS,
        };
        let pool = Rc::new(Self {
            sockets,
            certs,
            config,
            core: RefCell::new(Pool::new(settings)),
            tunnels: RefCell::default(),
            idle: Rc::default(),
        });
        tokio::task::spawn_local(release_idle(Rc::downgrade(&pool), Rc::clone(&pool.idle)));
        pool
    }

    pub(super) fn certs(&self) -> &PodCerts {
        &self.certs
    }

    pub(super) fn config(&self) -> &TunnelConfig {
        &self.config
    }

    /// Opens a stream to `hop` and sends `request` on it; returns when the peer has accepted.
    ///
    /// # Errors
    /// What failed, as it is reported to the operator.
    ///
    /// # Cancel safety
    /// The stream is reset and its place given back.
    pub async fn open(self: &Rc<Self>, hop: &Hop, request: &http::Request<()>) -> Result<Opened, Outcome> {
        let key = Key { address: hop.addr, expected: hop.expected.clone() };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (lease, send, stage) = self.lease(&key).await?;
            let id = lease.id;
            match self.ask(lease, send, request).await {
                // Another tunnel is chosen, now that this one is known to be full.
                Err(Asked::Full) => attempt -= 1,
                // The peer says that it has not looked at the request (RFC 9113, section 8.7), or the tunnel was
                // dead before the request was written: another tunnel may carry it, no byte is sent twice.
                Err(Asked::Unprocessed(error)) => {
                    self.retire(id);
                    if attempt == ATTEMPTS {
                        return Err(http2(error.to_string()));
                    }
                    debug!(%error, to = %hop.addr, "tunnel is gone, trying another");
                }
                Err(Asked::Failed(failure)) => {
                    // What is wrong with the whole tunnel says more.
                    return Err(match &*stage.borrow() {
                        Stage::Settled(Err(earlier)) => earlier.clone(),
                        Stage::Dialing | Stage::Open | Stage::Settled(Ok(())) => failure,
                    });
                }
                Ok(opened) => return Ok(opened),
            }
        }
    }

    /// A place on an open tunnel.
    async fn lease(
        self: &Rc<Self>,
        key: &Key,
    ) -> Result<(Lease, SendRequest<Bytes>, watch::Receiver<Stage>), Outcome> {
        loop {
            let checkout = self.core.borrow_mut().checkout(key);
            let (id, lease, is_first) = match checkout {
                Checkout::Reuse(id) => (id, Some(self.lease_of(id)), false),
                Checkout::Dial(id) => {
                    self.start_dial(id, key);
                    (id, Some(self.lease_of(id)), true)
                }
                Checkout::Wait(id) => (id, None, false),
            };
            let stage = self.tunnels.borrow().get(&id).map(|tunnel| tunnel.stage.clone());
            let Some(mut stage) = stage else { return Err(pool_draining()) };
            let far_enough = |stage: &Stage| match stage {
                Stage::Dialing => false,
                Stage::Open => is_first,
                Stage::Settled(_) => true,
            };
            let reached = match stage.wait_for(far_enough).await {
                Ok(reached) => reached.clone(),
                Err(_closed) => return Err(pool_draining()),
            };
            if let Stage::Settled(Err(failure)) = reached {
                return Err(failure);
            }
            let Some(lease) = lease else { continue };
            let send = self.tunnels.borrow().get(&id).and_then(|tunnel| tunnel.send.clone());
            if let Some(send) = send {
                return Ok((lease, send, stage));
            }
        }
    }

    fn lease_of(self: &Rc<Self>, id: TunnelId) -> Lease {
        let tunnels = self.tunnels.borrow();
        let tunnel = tunnels.get(&id);
        let bulk = tunnel.map(|tunnel| Rc::clone(&tunnel.bulk)).unwrap_or_default();
        let revoked = tunnel.and_then(|tunnel| tunnel.revoked.clone());
        Lease { pool: Rc::downgrade(self), id, bytes: Cell::new(0), bulk, revoked }
    }

    /// Dials in a task of its own, which then drives the tunnel until it closes.
    fn start_dial(self: &Rc<Self>, id: TunnelId, key: &Key) {
        let (settle, stage) = watch::channel(Stage::Dialing);
        let (revoke, revoked) = self.certs.tls().revocation_watch();
        let pool = Rc::downgrade(self);
        let (sockets, certs, config) = (self.sockets.clone(), Arc::clone(&self.certs), self.config);
        let key = key.clone();
        let task = tokio::task::spawn_local(async move {
            let dialed = dial(&sockets, &certs, &config, key.address, &key.expected).await;
            let Some(this) = pool.upgrade() else { return };
            match dialed {
                Err(failure) => this.dial_failed(id, &settle, failure),
                Ok(dialed) => {
                    let Dialed { send, connection, standing } = dialed;
                    if let Some(tunnel) = this.tunnels.borrow_mut().get_mut(&id) {
                        tunnel.send = Some(send);
                    }
                    settle.send_replace(Stage::Open);
                    drop(this);
                    drive((pool, id), (connection, standing), settle, revoke).await;
                }
            }
        });
        let tunnel = Tunnel { send: None, stage, bulk: Rc::default(), revoked, task: task.abort_handle() };
        self.tunnels.borrow_mut().insert(id, tunnel);
    }

    /// Nobody gets a stream of this tunnel, except for the one that may be under way.
    fn dial_failed(&self, id: TunnelId, settle: &watch::Sender<Stage>, failure: Outcome) {
        self.core.borrow_mut().dial_failed(id);
        settle.send_replace(Stage::Settled(Err(failure)));
        drop(self.tunnels.borrow_mut().remove(&id));
    }

    /// The peer's settings say how many streams it takes; later ones may say something else.
    fn takes(&self, id: TunnelId, streams: usize, settle: &watch::Sender<Stage>) {
        let is_first = matches!(*settle.borrow(), Stage::Open);
        let mut core = self.core.borrow_mut();
        if is_first {
            core.dialed(id, streams, Instant::now());
            drop(core);
            settle.send_replace(Stage::Settled(Ok(())));
            self.idle.notify_one();
        } else {
            core.set_max_streams(id, streams);
        }
    }

    async fn ask(
        &self,
        lease: Lease,
        send: SendRequest<Bytes>,
        request: &http::Request<()>,
    ) -> Result<Opened, Asked> {
        let ready = tokio::time::timeout(HANDSHAKE_TIMEOUT, send.ready());
        let mut send = match ready.await {
            Ok(Ok(send)) => send,
            Ok(Err(error)) => return Err(Asked::Unprocessed(error)),
            Err(_elapsed) => return Err(Asked::Failed(http2("no free stream in time".into()))),
        };
        // The peer may have changed its mind since the place was given out.
        match send.current_max_send_streams() {
            0 => return Err(Asked::Failed(http2("the peer takes no streams".into()))),
            limit if self.core.borrow().streams(lease.id).is_some_and(|streams| streams > limit) => {
                return Err(Asked::Full);
            }
            _ => {}
        }
        let (response, stream) = send.send_request(request.clone(), false).map_err(Asked::from)?;
        let response = match tokio::time::timeout(CONNECT_ANSWER_TIMEOUT, response).await {
            Ok(response) => response.map_err(Asked::from)?,
            Err(_elapsed) => {
                return Err(Asked::Failed(http2("no answer to CONNECT in time".into())));
            }
        };
        let (response, receive) = response.into_parts();
        if response.status != http::StatusCode::OK {
            return Err(Asked::Failed(Outcome::Http(response.status.as_u16())));
        }
        Ok(Opened { stream: TunnelStream { send: stream, receive }, response, lease })
    }

    /// No new streams on this tunnel.
    fn retire(&self, id: TunnelId) {
        let tenure = self.core.borrow_mut().retire(id);
        self.after(id, tenure);
    }

    fn after(&self, id: TunnelId, tenure: Tenure) {
        if tenure == Tenure::Forgotten {
            // The last handle: the connection says GOAWAY and closes by itself.
            drop(self.tunnels.borrow_mut().remove(&id));
        }
    }
}

impl Drop for TunnelPool {
    fn drop(&mut self) {
        for tunnel in self.tunnels.get_mut().values() {
            tunnel.task.abort();
        }
        self.idle.notify_one();
    }
}

/// Drives a tunnel until it closes.
async fn drive(
    (pool, id): (Weak<TunnelPool>, TunnelId),
    (mut connection, standing): (Connection<TlsStream<TcpStream>, Bytes>, Standing),
    settle: watch::Sender<Stage>,
    revoke: watch::Sender<bool>,
) {
    let liveness = connection.ping_pong().map(watch_liveness);
    let liveness = async {
        match liveness {
            Some(watch) => watch.await,
            None => std::future::pending().await,
        }
    };
    let mut known = NOT_SAID;
    let mut driven = pin!(poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        // Settings come with everything else that the connection reads, and nothing tells of them.
        let streams = connection.max_concurrent_send_streams();
        if streams != known {
            known = streams;
            if let Some(this) = pool.upgrade() {
                this.takes(id, streams, &settle);
            }
        }
        polled
    }));
    let is_open = || matches!(*settle.borrow(), Stage::Open);
    let silent = async {
        tokio::time::sleep(HANDSHAKE_TIMEOUT).await;
        if !is_open() {
            std::future::pending().await
        }
    };
    let end = tokio::select! {
        result = &mut driven => {
            debug!(?result, "tunnel closed");
            result.map_or_else(|error| error.to_string(), |()| "the peer closed the tunnel".into())
        }
        () = liveness => {
            debug!("tunnel closed: the peer does not answer pings");
            "the peer does not answer pings".into()
        }
        () = silent => {
            debug!("tunnel closed: the peer sends no settings");
            "no settings in time".into()
        }
        () = standing.revoked() => {
            debug!("tunnel closed: the peer's certificate is revoked");
            // Its streams hear of it before they see the end of the tunnel.
            revoke.send_replace(true);
            "the peer's certificate is revoked".into()
        }
    };
    let Some(this) = pool.upgrade() else { return };
    if is_open() {
        this.dial_failed(id, &settle, Outcome::H2 { stage: H2Stage::Handshake, error: end });
    } else {
        this.retire(id);
    }
}

/// How a request failed.
enum Asked {
    /// The tunnel has no room for it.
    Full,
    /// The peer has not looked at it.
    Unprocessed(h2::Error),
    Failed(Outcome),
}

impl From<h2::Error> for Asked {
    fn from(error: h2::Error) -> Self {
        let unprocessed =
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        if unprocessed || error.reason() == Some(h2::Reason::REFUSED_STREAM) {
            Self::Unprocessed(error)
        } else {
            Self::Failed(http2(error.to_string()))
        }
    }
}

fn pool_draining() -> Outcome {
    Outcome::Cut(Cut::PoolDrain)
}

fn http2(error: String) -> Outcome {
    Outcome::H2 { stage: H2Stage::Stream, error }
}

/// Closes tunnels that nobody has used for a while. Sleeps until the next is due, or until one falls idle.
async fn release_idle(pool: Weak<TunnelPool>, idle: Rc<Notify>) {
    loop {
        let next = {
            let Some(pool) = pool.upgrade() else { return };
            let expired = pool.core.borrow_mut().expired(Instant::now());
            for id in expired {
                pool.after(id, Tenure::Forgotten);
            }
            pool.core.borrow().next_expiry()
        };
        match next {
            Some(next) => tokio::time::sleep_until(next.into()).await,
            None => idle.notified().await,
        }
    }
}
