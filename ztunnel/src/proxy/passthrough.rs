// SPDX-License-Identifier: Apache-2.0
//! Serves one plaintext connection into the pod: no tunnel, no identity, but the same policies.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ztunnel_core::report::{Cut, Leg, Outcome, Reporter, Security};
use ztunnel_core::route;

use super::accept::Accepted;
use super::relay::{self, Side};
use super::socket::Guarded;
use super::{Counted, PodProxy, application_side, observe};
use crate::telemetry::connection::{Connection, Ends};

/// Serves one connection that somebody opened to the pod without HBONE.
pub(super) async fn serve(proxy: Rc<PodProxy>, accepted: Accepted) {
    let start = Instant::now();
    let context = &proxy.context;
    let shared = &context.shared;
    let _open = shared.metrics.open_socket(Reporter::Destination);
    let _counted = Counted::new(&proxy);
    let original_dst = accepted.original_dst();
    let Accepted { socket, peer, .. } = accepted;
    let mut socket = Guarded::new(socket);
    let decided = async {
        let target = route::inbound::plaintext(original_dst)?;
        Ok((target, shared.mesh.local_workload(&context.pod).await?))
    };
    let (target, local) = match decided.await {
        Ok(decided) => decided,
        Err(refusal) => {
            let outcome = Outcome::Refused(refusal);
            return proxy.live.turned_away(Reporter::Destination, peer, original_dst.0, &outcome);
        }
    };
    let (source, service) = shared.mesh.read(|mesh| {
        let source = mesh.workload_by_addr(&shared.config.node.network, peer.ip()).map(Arc::clone);
        (source, route::inbound::guess_service(mesh, &local, target.addr.port(), None))
    });
    let ends = Ends {
        reporter: Reporter::Destination,
        source,
        derived_source: None,
        source_principal: None,
        destination: Some(Arc::clone(&local)),
        derived_destination: None,
        destination_principal: None,
        service,
        security: Security::Unknown,
        source_addr: peer,
        destination_addr: original_dst.0,
        authority: None,
        original: None,
        target: target.addr,
    };
    let connection = Connection::open(&proxy.live, ends, start);
    let permission = proxy.permissions.watch(peer, target.addr, None);
    let ended = match permission.ask(context) {
        Err(denied) => Err(denied),
        Ok(()) => {
            let source = context.keep_source.then_some(peer.ip());
            let connected = async {
                let connected = context.sockets.deliver(target.addr, source).await;
                connected.map_err(|error| Outcome::connect_failed(&error, Leg::Plain))
            };
            match permission.hold(connected).await {
                Err(outcome) => Err(outcome),
                Ok(application) => {
                    let mut application = Guarded::new(application);
                    let side = application_side(shared, &connection, &mut application);
                    let ended = tokio::select! {
                        biased;
                        () = permission.lost() => Err(Outcome::Cut(Cut::PolicyChange)),
                        result = relay::tcp(Side::plain(&mut socket), side, &connection) => {
                            application.end();
                            result.map_err(|error| error.outcome())
                        }
                    };
                    observe(shared, &connection, &application);
                    ended
                }
            }
        }
    };
    if ended.is_ok() {
        socket.end();
    }
    connection.finish(ended.as_ref().err().unwrap_or(&Outcome::Complete));
}
