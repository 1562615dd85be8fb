// SPDX-License-Identifier: Apache-2.0
//! ③ Opens the hop that the core chose for an outbound connection, and reports what became of it.
//!
//! Previous: [`super::accept`], [`super::decide`]. Next: [`crate::hbone::pool`] for tunnels, then
//! [`super::relay`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use ztunnel_core::addr::{Authority, OriginalDst};
use ztunnel_core::hbone::{Baggage, Forwarded, TraceParent, baggage, connect};
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::{Cut, Leg, Outcome, Reporter, Security};
use ztunnel_core::route::{DoubleHop, Hop, Route, RouteKind};

use super::accept::Accepted;
use super::decide::decide;
use super::relay::{self, End, Meter, Side};
use super::socket::Guarded;
use super::{Counted, PodProxy, application_side, observe};
use crate::entropy::entropy;
use crate::hbone::inner::Inner;
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
    let decided = match Box::pin(decide(&proxy, peer, original_dst)).await {
        Ok((source, route)) => Decided { source, route, peer, original_dst, start },
        Err(outcome) => return proxy.live.turned_away(Reporter::Source, peer, original_dst.0, &outcome),
    };
    let (connection, ended) = match &decided.route.kind {
        RouteKind::Hbone(hop) => {
            let connection = decided.open(&proxy, None);
            let ended = tunnel(&proxy, &decided, hop, &mut socket, &connection).await;
            (connection, ended)
        }
        // On the heap: hardly any connection is one of these, and each would carry room for it.
        RouteKind::DoubleHbone(hops) => Box::pin(across(&proxy, &decided, hops, &mut socket)).await,
        RouteKind::Plaintext(addr) | RouteKind::Passthrough(addr) => {
            let connection = decided.open(&proxy, None);
            let ended = match context.sockets.connect(*addr).await {
                Ok(upstream) => {
                    let mut upstream = Guarded::new(upstream);
                    let application = application_side(&context.shared, &connection, &mut socket);
                    let result = relay::tcp(application, Side::plain(&mut upstream), &connection).await;
                    upstream.end();
                    result.map_err(|error| error.outcome())
                }
                Err(error) => Err(Outcome::connect_failed(&error, Leg::Plain)),
            };
            (connection, ended)
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

/// A connection that has somewhere to go.
struct Decided {
    source: Arc<Workload>,
    route: Route,
    /// The application's end.
    peer: SocketAddr,
    original_dst: OriginalDst,
    start: Instant,
}

impl Decided {
    /// From here on the connection counts. `inner`: what answered from another network.
    fn open(&self, proxy: &PodProxy, inner: Option<&Inner>) -> Connection {
        let Self { source, route, peer, original_dst, start } = self;
        let hop = route.kind.hop();
        let target = match hop.map(|hop| &hop.authority) {
            Some(Authority::Addr(application)) => *application,
            Some(Authority::Host { .. }) => original_dst.0,
            None => route.kind.addr(),
        };
        // Who says nothing about itself is labeled as what the mesh knows: the gateway.
        let derived = inner.map(|inner| baggage::from_headers(&inner.response.headers));
        let derived = derived.filter(|baggage| *baggage != Baggage::default());
        let ends = Ends {
            reporter: Reporter::Source,
            source: Some(Arc::clone(source)),
            derived_source: None,
            source_principal: hop.map(|_| source.identity()),
            destination: if derived.is_some() { None } else { route.destination.clone() },
            derived_destination: derived,
            destination_principal: inner.and_then(|inner| inner.identity.clone()),
            service: route.service.clone(),
            security: if hop.is_some() { Security::MutualTls } else { Security::Unknown },
            source_addr: *peer,
            destination_addr: route.kind.addr(),
            authority: hop.map(|hop| hop.authority.clone()),
            original: Some(Authority::Addr(original_dst.0)),
            target,
        };
        Connection::open(&proxy.live, ends, *start)
    }

    /// The request of a stream to `authority`.
    fn request(&self, proxy: &PodProxy, authority: &Authority) -> Result<http::Request<()>, Outcome> {
        let host = self.route.service.as_ref().map(|service| Arc::clone(&service.hostname));
        let forwarded = Forwarded { source: Some(self.peer), host };
        let traceparent = TraceParent::new(&mut entropy);
        connect::request(authority, proxy.baggage(&self.source), &forwarded, &traceparent)
            .map_err(unspeakable)
    }
}

/// A name that no header can carry.
fn unspeakable(error: http::Error) -> Outcome {
    Outcome::Io(error.to_string())
}

async fn tunnel(
    proxy: &Rc<PodProxy>,
    decided: &Decided,
    hop: &Hop,
    socket: &mut TcpStream,
    connection: &Connection,
) -> Result<End, Outcome> {
    // What only the opening needs is on the heap: it is gone before the connection becomes one of thousands.
    let opening = Box::pin(async {
        let request = decided.request(proxy, &hop.authority)?;
        proxy.pool.open(hop, &request).await
    });
    let Opened { stream, lease, .. } = opening.await?;
    let metered = Metered { connection, lease: &lease };
    let application = application_side(&proxy.context.shared, connection, socket);
    tokio::select! {
        biased;
        () = lease.revoked() => Err(Outcome::Cut(Cut::Revoked)),
        result = relay::tunnel(application, stream, &metered) => result.map_err(|error| error.outcome()),
    }
}

/// To another network: who is there is known once it has answered, and so the connection counts from then on.
async fn across(
    proxy: &Rc<PodProxy>,
    decided: &Decided,
    hops: &DoubleHop,
    socket: &mut TcpStream,
) -> (Connection, Result<End, Outcome>) {
    let shared = &proxy.context.shared;
    let opening = Box::pin(async {
        let outer = decided.request(proxy, &hops.outer.authority)?;
        let inner = connect::across_networks(outer.clone(), &shared.config.node.network);
        proxy.pool.open_across(hops, &outer, inner.map_err(unspeakable)?).await
    });
    match opening.await {
        Err(outcome) => (decided.open(proxy, None), Err(outcome)),
        Ok(inner) => {
            let connection = decided.open(proxy, Some(&inner));
            let Inner { stream, tunnel, outer, .. } = inner;
            let application = application_side(shared, &connection, socket);
            let metered = Metered { connection: &connection, lease: &outer };
            let ended = tunnel.carry(&outer, relay::tunnel(application, stream, &metered)).await;
            (connection, ended)
        }
    }
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
