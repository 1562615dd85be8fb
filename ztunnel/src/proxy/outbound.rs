// SPDX-License-Identifier: Apache-2.0
//! ③ Opens the hop that the core chose for an outbound connection, and reports what became of it.
//!
//! Previous: [`super::accept`], [`ztunnel_core::route::outbound`]. Next: [`crate::hbone::pool`] for tunnels, then
//! [`super::relay`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use ztunnel_core::addr::{Authority, OriginalDst};
use ztunnel_core::hbone::connect;
use ztunnel_core::hbone::{Forwarded, TraceParent};
use ztunnel_core::mesh::{Mesh, Workload};
use ztunnel_core::report::{Cut, Leg, Outcome, Reporter, Security};
use ztunnel_core::route::{self, Hop, Outbound, Route, RouteKind, Routing};

use super::accept::Accepted;
use super::relay::{self, End, Meter, Side};
use super::socket::Guarded;
use super::{Counted, PodProxy, application_side, observe};
use crate::entropy::entropy;
use crate::hbone::pool::{Lease, Opened};
use crate::telemetry::connection::{Connection, Ends};

/// Serves one connection that the application opened.
pub(super) async fn serve(proxy: Rc<PodProxy>, accepted: Accepted) {
    let start = Instant::now();
    let context = &proxy.context;
    let _open = context.shared.metrics.open_socket(Reporter::Source);
    let _counted = Counted::new(&proxy);
    let original_dst = accepted.original_dst();
    let Accepted { socket, peer, local, .. } = accepted;
    let mut socket = Guarded::new(socket);
    let decided = match decide(&proxy, original_dst).await {
        Ok(decided) => decided,
        Err(outcome) => return proxy.live.turned_away(Reporter::Source, peer, original_dst.0, &outcome),
    };
    let (source, route) = decided;
    let connection = Connection::open(&proxy.live, ends(&source, &route, peer, original_dst), start);
    let ended = match &route.kind {
        RouteKind::Hbone(hop) => {
            let service = route.service.as_ref().map(|service| Arc::clone(&service.hostname));
            let forwarded = Forwarded { source: Some(peer), host: service };
            tunnel(&proxy, &source, hop, forwarded, &mut socket, &connection).await
        }
        RouteKind::Plaintext(addr) | RouteKind::Passthrough(addr) => {
            match context.sockets.connect(*addr).await {
                Ok(upstream) => {
                    let mut upstream = Guarded::new(upstream);
                    let application = application_side(&context.shared, &connection, &mut socket);
                    let result = relay::tcp(application, Side::plain(&mut upstream), &connection).await;
                    upstream.end();
                    result.map_err(|error| error.outcome())
                }
                Err(error) => Err(Outcome::connect_failed(&error, Leg::Plain)),
            }
        }
    };
    if ended.is_ok() {
        socket.end();
    }
    observe(&context.shared, &connection, &socket);
    connection.finish(ended.as_ref().err().unwrap_or(&Outcome::Complete));
    drop(socket);
    if ended == Ok(End::OursFirst) {
        proxy.time_waits.end(&context.sockets, local, peer);
    }
}

/// One consistent view of the mesh says where to go.
async fn decide(proxy: &PodProxy, original_dst: OriginalDst) -> Result<(Arc<Workload>, Route), Outcome> {
    let shared = &proxy.context.shared;
    // A connection to ourselves is refused whoever the source is: no need to know it.
    let source = shared.mesh.local_workload(&proxy.context.pod).await.map_err(Outcome::Refused)?;
    let connection = Outbound { source: &source, network: &shared.config.node.network, original_dst };
    let missing = |mesh: &Mesh| route::outbound::missing(mesh, &connection);
    shared.mesh.complete(missing).await.map_err(Outcome::Refused)?;
    match shared.mesh.read(|mesh| route::outbound::outbound(mesh, &connection, &mut entropy)) {
        Routing::Go(route) => Ok((source, route)),
        Routing::Refuse(refusal) => Err(Outcome::Refused(refusal)),
    }
}

fn ends(source: &Arc<Workload>, route: &Route, peer: SocketAddr, original_dst: OriginalDst) -> Ends {
    let hop = match &route.kind {
        RouteKind::Hbone(hop) => Some(hop),
        RouteKind::Plaintext(_) | RouteKind::Passthrough(_) => None,
    };
    let target = match hop.map(|hop| &hop.authority) {
        Some(Authority::Addr(application)) => *application,
        Some(Authority::Host { .. }) => original_dst.0,
        None => route.kind.addr(),
    };
    Ends {
        reporter: Reporter::Source,
        source: Some(Arc::clone(source)),
        derived_source: None,
        source_principal: hop.map(|_| source.identity()),
        destination: route.destination.clone(),
        service: route.service.clone(),
        security: if hop.is_some() { Security::MutualTls } else { Security::Unknown },
        source_addr: peer,
        destination_addr: route.kind.addr(),
        authority: hop.map(|hop| hop.authority.clone()),
        original: Some(Authority::Addr(original_dst.0)),
        target,
    }
}

async fn tunnel(
    proxy: &Rc<PodProxy>,
    source: &Arc<Workload>,
    hop: &Hop,
    forwarded: Forwarded,
    socket: &mut TcpStream,
    connection: &Connection,
) -> Result<End, Outcome> {
    // What only the opening needs is on the heap: it is gone before the connection becomes one of thousands.
    let Opened { stream, lease, .. } = Box::pin(open(proxy, source, hop, forwarded)).await?;
    let metered = Metered { connection, lease: &lease };
    let application = application_side(&proxy.context.shared, connection, socket);
    tokio::select! {
        biased;
        () = lease.revoked() => Err(Outcome::Cut(Cut::Revoked)),
        result = relay::tunnel(application, stream, &metered) => result.map_err(|error| error.outcome()),
    }
}

async fn open(
    proxy: &Rc<PodProxy>,
    source: &Arc<Workload>,
    hop: &Hop,
    forwarded: Forwarded,
) -> Result<Opened, Outcome> {
    let traceparent = TraceParent::new(&mut entropy);
    let request = connect::request(&hop.authority, proxy.baggage(source), &forwarded, &traceparent)
        .map_err(|error| Outcome::Io(error.to_string()))?;
    proxy.pool.open(hop, &request).await
}

/// Bytes count for the connection and for the tunnel that carries it.
struct Metered<'a> {
    connection: &'a Connection,
    lease: &'a Lease,
}

impl Meter for Metered<'_> {
    fn sent(&self, bytes: usize) {
        self.connection.sent(bytes);
        self.lease.carried(bytes);
    }

    fn received(&self, bytes: usize) {
        self.connection.received(bytes);
        self.lease.carried(bytes);
    }
}
