// SPDX-License-Identifier: Apache-2.0
//! Serves what comes out of tunnels to the pod: authenticate the tunnel, then for each CONNECT validate, authorize,
//! connect to the application, answer, relay.
//!
//! Nothing is answered before the application is connected: 200 means that it is there.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tracing::debug;
use ztunnel_core::addr::Authority;
use ztunnel_core::hbone::{ConnectRequest, baggage, connect, proxy_protocol};
use ztunnel_core::mesh::{Mesh, Workload};
use ztunnel_core::report::{Cut, Leg, Outcome, Reporter, Security};
use ztunnel_core::route::{self, Inbound, InboundTarget};

use super::accept::Accepted;
use super::permission::Permission;
use super::relay::{self, TunnelStream};
use super::socket::Guarded;
use super::{Counted, PodProxy, Shared, application_side, observe};
use crate::hbone::server::{self, Incoming, TunnelPeer};
use crate::telemetry::connection::{Connection, Ends};

/// Serves one tunnel to the pod.
pub(super) async fn serve(proxy: Rc<PodProxy>, accepted: Accepted) {
    let context = &proxy.context;
    let _open = context.shared.metrics.open_socket(Reporter::Destination);
    let _busy = proxy.balance.busy();
    let Accepted { socket, peer, local, phase, .. } = accepted;
    let (stream, standing) = match server::accept_tls(socket, &context.certs).await {
        Ok(accepted) => accepted,
        Err(outcome) => return proxy.live.turned_away(Reporter::Destination, peer, local, &outcome),
    };
    let (revoke, revoked) = context.certs.tls().revocation_watch();
    let tunnel = TunnelPeer { address: peer, local, identity: server::peer_identity(&stream), revoked };
    let serve = |peer, incoming| serve_stream(Rc::clone(&proxy), peer, incoming);
    if let Err(error) = server::serve_tunnel(
        (stream, standing),
        (tunnel, revoke),
        context.shared.config.tunnels,
        phase,
        serve,
    )
    .await
    {
        debug!(%peer, %error, "tunnel ended");
    }
}

/// Serves one CONNECT. What only the opening needs is on the heap: it is gone before the connection becomes one of
/// thousands.
fn serve_stream(
    proxy: Rc<PodProxy>,
    peer: Rc<TunnelPeer>,
    incoming: Incoming,
) -> impl Future<Output = ()> + 'static {
    let opening = Box::pin(open(Rc::clone(&proxy), Rc::clone(&peer), incoming));
    async move {
        let _counted = Counted::new(&proxy);
        let Some(Open { connection, permission, mut application, stream }) = opening.await else { return };
        let shared = &proxy.context.shared;
        let outcome = match stream {
            Ok(stream) => {
                // Here the tunnel is downstream: what comes out of it is sent to the application.
                let side = application_side(shared, &connection, &mut application);
                let metered = Reversed(&connection);
                tokio::select! {
                    biased;
                    () = peer.revoked() => Outcome::Cut(Cut::Revoked),
                    () = permission.lost() => Outcome::Cut(Cut::PolicyChange),
                    result = relay::tunnel(side, stream, &metered) => {
                        application.end();
                        result.map_or_else(|error| error.outcome(), |_end| Outcome::Complete)
                    }
                }
            }
            Err(outcome) => outcome,
        };
        observe(shared, &connection, &application);
        connection.finish(&outcome);
    }
}

/// A CONNECT whose application is connected.
struct Open {
    connection: Connection,
    permission: Permission,
    application: Guarded,
    /// Or why there could be no answer, or no header for the application.
    stream: Result<TunnelStream, Outcome>,
}

/// Validates, authorizes, connects and answers; `None` if that was a refusal.
async fn open(proxy: Rc<PodProxy>, peer: Rc<TunnelPeer>, incoming: Incoming) -> Option<Open> {
    let start = Instant::now();
    let shared = &proxy.context.shared;
    let Incoming { request, mut respond } = incoming;
    let (head, receive) = request.into_parts();
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let (request, local, target) =
        match accept(&proxy, &peer, head.method.as_str(), authority, &head.headers).await {
            Ok(accepted) => accepted,
            Err(outcome) => {
                refuse(&mut respond, &outcome);
                proxy.live.turned_away(Reporter::Destination, peer.address, peer.local, &outcome);
                return None;
            }
        };
    let ends = shared.mesh.read(|mesh| ends(mesh, shared, &peer, &request, &local, &target));
    let connection = Connection::open(&proxy.live, ends, start);
    let permission = proxy.permissions.watch(peer.address, target.addr, peer.identity.as_ref());
    let connected = match permission.ask(&proxy.context) {
        Ok(()) => {
            let delivered = permission.hold(deliver(&proxy, &peer, &target));
            tokio::select! {
                connected = delivered => connected,
                // What nobody waits for any more must not cost a socket until the application answers.
                () = given_up(&mut respond) => Err(Outcome::Io("the peer gave up before the application answered".into())),
            }
        }
        Err(denied) => Err(denied),
    };
    let mut application = match connected {
        Ok(application) => Guarded::new(application),
        Err(outcome) => {
            refuse(&mut respond, &outcome);
            connection.finish(&outcome);
            return None;
        }
    };
    let mut response = Response::new(());
    if shared.config.tunnels.response_baggage {
        response.headers_mut().insert(baggage::HEADER, proxy.baggage(&local));
    }
    let stream = match respond.send_response(response, false) {
        Ok(send) => introduce(&mut application, &peer, &target)
            .await
            .map(|()| TunnelStream { send, receive })
            .map_err(|error| relay::RelayError::Send(error).outcome()),
        Err(error) => Err(relay::RelayError::Http2(error).outcome()),
    };
    Some(Open { connection, permission, application, stream })
}

/// Everything that can be said before the connection counts.
async fn accept(
    proxy: &PodProxy,
    peer: &TunnelPeer,
    method: &str,
    authority: Option<&str>,
    headers: &HeaderMap,
) -> Result<(ConnectRequest, Arc<Workload>, InboundTarget), Outcome> {
    let request = connect::parse_request(method, authority, headers).map_err(Outcome::BadRequest)?;
    let shared = &proxy.context.shared;
    let local = shared.mesh.local_workload(&proxy.context.pod).await.map_err(Outcome::Refused)?;
    let inbound = Inbound {
        local: &local,
        pod_ip: peer.local.ip(),
        network: &shared.config.node.network,
        authority: &request.authority,
    };
    let missing = |mesh: &Mesh| route::inbound::missing(mesh, &inbound);
    shared.mesh.complete(missing).await.map_err(Outcome::Refused)?;
    let target =
        shared.mesh.read(|mesh| route::inbound::inbound(mesh, &inbound)).map_err(Outcome::Refused)?;
    Ok((request, local, target))
}

fn ends(
    mesh: &Mesh,
    shared: &Shared,
    peer: &TunnelPeer,
    request: &ConnectRequest,
    local: &Arc<Workload>,
    target: &InboundTarget,
) -> Ends {
    let network = &*shared.config.node.network;
    let from_gateway =
        request.forwarded_network.as_ref().is_some_and(|theirs| !theirs.eq_ignore_ascii_case(network));
    let source = if from_gateway { None } else { mesh.workload_by_addr(network, peer.address.ip()) };
    // The peer's word counts only among the services that the pod is in.
    let service = match (&request.authority, request.forwarded.host.as_deref()) {
        (Authority::Addr(_), Some(host)) => {
            route::inbound::guess_service(mesh, local, target.addr.port(), Some(host))
        }
        _ => target.service.clone(),
    };
    Ends {
        reporter: Reporter::Destination,
        source: source.map(Arc::clone),
        derived_source: shared.config.tunnels.response_baggage.then(|| request.baggage.clone()),
        source_principal: peer.identity.clone(),
        destination: Some(Arc::clone(local)),
        derived_destination: None,
        destination_principal: None,
        service,
        security: Security::MutualTls,
        source_addr: peer.address,
        destination_addr: peer.local,
        authority: Some(request.authority.clone()),
        original: request
            .forwarded
            .host
            .as_ref()
            .map(|host| Authority::Host { host: Arc::clone(host), port: request.authority.port() }),
        target: target.addr,
    }
}

async fn deliver(proxy: &PodProxy, peer: &TunnelPeer, target: &InboundTarget) -> Result<TcpStream, Outcome> {
    let context = &proxy.context;
    let to = target.dial(context.shared.config.tunnels.app_tunnels);
    // Whom localhost serves is told in the header, and not by the address.
    let source = (context.keep_source && to == target.addr).then_some(peer.address.ip());
    let connected = context.sockets.deliver(to, source).await;
    connected.map_err(|error| Outcome::connect_failed(&error, Leg::Plain))
}

/// Ready once the peer has reset the stream, or the tunnel is gone.
async fn given_up(respond: &mut SendResponse<Bytes>) {
    drop(poll_fn(|cx| respond.poll_reset(cx)).await);
}

/// Writes the header that the application expects, if it expects one. An empty socket has room for it.
async fn introduce(
    application: &mut TcpStream,
    peer: &TunnelPeer,
    target: &InboundTarget,
) -> std::io::Result<()> {
    let Some(asked) = target.proxied else { return Ok(()) };
    let header = proxy_protocol::header(peer.address, asked, peer.identity.as_ref());
    application.write_all(&header).await
}

/// Answers with the outcome's status, and ends the stream.
fn refuse(respond: &mut SendResponse<Bytes>, outcome: &Outcome) {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(outcome.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if let Err(error) = respond.send_response(response, true) {
        debug!(%error, "cannot answer a refused request");
    }
}

/// The relay counts from the socket's point of view; inbound, the socket is the upstream.
struct Reversed<'a>(&'a Connection);

impl relay::Meter for Reversed<'_> {
    fn sent(&self, bytes: usize) {
        self.0.received(bytes);
    }

    fn received(&self, bytes: usize) {
        self.0.sent(bytes);
    }
}
