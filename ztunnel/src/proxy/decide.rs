// SPDX-License-Identifier: Apache-2.0
//! Asks the core where an outbound connection goes, and finds out what it lacks, until it has an answer.
//!
//! Previous: [`super::accept`]. Next: [`super::outbound`] opens the hop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ztunnel_core::Name;
use ztunnel_core::addr::OriginalDst;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::Outcome;
use ztunnel_core::route::{Known, Need, Outbound, Refusal, Route, Routing, outbound};

use super::PodProxy;
use crate::entropy::Draws;

/// Questions of one decision. Each step of the tree asks a few; more than that is a mesh that changes faster than it answers.
const MAX_QUESTIONS: usize = 16;

/// One consistent view of the mesh says where to go. `peer` is the application's end of the connection.
pub(super) async fn decide(
    proxy: &PodProxy,
    peer: SocketAddr,
    original_dst: OriginalDst,
) -> Result<(Arc<Workload>, Route), Outcome> {
    let shared = &proxy.context.shared;
    // A connection to ourselves is refused whoever the source is: no need to know it.
    let source = shared.mesh.local_workload(&proxy.context.pod).await.map_err(Outcome::Refused)?;
    let mut asked: Vec<Name> = Vec::new();
    let mut resolved: Vec<(Name, Vec<IpAddr>)> = Vec::new();
    // What is asked again must choose again what it has chosen: its answer is in `asked` or `resolved` then.
    let draws = Draws::fresh();
    while asked.len() + resolved.len() <= MAX_QUESTIONS {
        let connection = Outbound {
            source: &source,
            source_ip: peer.ip(),
            network: &shared.config.node.network,
            original_dst,
            known: Known { asked: shared.mesh.is_on_demand().then_some(&asked), resolved: &resolved },
        };
        let mut draws = draws.clone();
        let routing = shared.mesh.read(|mesh| outbound::outbound(mesh, &connection, &mut || draws.draw()));
        match routing {
            Routing::Go(route) => return Ok((source, route)),
            Routing::Refuse(refusal) => return Err(Outcome::Refused(refusal)),
            Routing::Need(Need::Resource(name)) => {
                shared.mesh.ask(&name).await.map_err(Outcome::Refused)?;
                asked.push(name);
            }
            Routing::Need(Need::Addresses(host)) => {
                shared.metrics.resolved(&source, &host);
                let addresses = shared.resolver.addresses(&host).await;
                resolved.push((host, addresses));
            }
        }
    }
    let last = asked.pop().or_else(|| resolved.pop().map(|(host, _)| host)).unwrap_or_default();
    Err(Outcome::Refused(Refusal::NoAnswer(last)))
}
