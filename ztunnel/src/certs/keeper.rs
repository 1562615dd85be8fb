// SPDX-License-Identifier: Apache-2.0
//! Fetches and renews certificates, when the core's schedule says so.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::task::{Id, JoinSet};
use tracing::{debug, info, warn};
use ztunnel_core::certs::Tenure;
use ztunnel_core::identity::Identity;

use super::store::{Book, CertStore, State};
use super::{CertError, Certificate, Source};
use crate::entropy::entropy;
use crate::mesh::SharedMesh;

/// Keeps the certificates of `store` for as long as it is polled. Call inside a `LocalSet`.
pub async fn keep(store: CertStore, mesh: SharedMesh, source: Source) {
    let source = Rc::new(source);
    let mut mesh_changes = mesh.changes();
    let mut requests = JoinSet::new();
    let mut under_way: HashMap<Id, Identity> = HashMap::new();
    loop {
        greet(&store);
        let now = Instant::now();
        let (due, wake) = store.with(|book| {
            let due: Vec<_> = std::iter::from_fn(|| book.schedule.poll_fetch(now)).collect();
            (due, book.schedule.next_wake())
        });
        for identity in due {
            let (source, asked) = (Rc::clone(&source), identity.clone());
            debug!(%identity, "asking for a certificate");
            let request = requests.spawn_local(async move { source.issue(&asked).await });
            under_way.insert(request.id(), identity);
        }
        let wake = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = store.changed() => {}
            // The mesh lives as long as we do.
            _ = mesh_changes.changed() => {}
            () = wake => {}
            Some(ended) = requests.join_next_with_id() => {
                let (id, result) = match ended {
                    Ok(ended) => ended,
                    // A panic of ours must not keep the identity waiting for ever.
                    Err(broken) => (broken.id(), Err(CertError::Request(broken.to_string()))),
                };
                if let Some(identity) = under_way.remove(&id) {
                    store.with(|book| settle(book, &identity, result));
                }
            }
        }
    }
}

/// Has the certificates of new pods fetched, as soon as the mesh knows them.
fn greet(store: &CertStore) {
    let newcomers = store.with(|book| std::mem::take(&mut book.newcomers));
    let mut unknown = newcomers;
    unknown.retain(|pod| pod.upgrade().is_some_and(|pod| !pod.warm_up()));
    store.with(|book| book.newcomers.append(&mut unknown));
}

fn settle(book: &mut Book, identity: &Identity, result: Result<Certificate, CertError>) {
    let now = Instant::now();
    let wall = SystemTime::now();
    let usable = result.and_then(|certificate| match certificate.validity.life(wall, now) {
        Ok(life) => Ok((certificate, life)),
        Err(error) => Err(super::answer::AnswerError::Dates { identity: identity.clone(), error }.into()),
    });
    match usable {
        Ok((certificate, life)) => {
            if book.schedule.fetched(identity, life) == Tenure::Kept
                && let Some(slot) = book.slots.get(identity)
            {
                info!(%identity, renewed_in = ?life.renew_at.saturating_duration_since(now), "certificate obtained");
                slot.send_replace(State::Available(Arc::new(certificate)));
            }
        }
        Err(error) => {
            let Some(retry) = book.schedule.failed(identity, now, entropy()) else { return };
            let Some(slot) = book.slots.get(identity) else { return };
            let still =
                matches!(&*slot.borrow(), State::Available(current) if !current.validity.is_over(wall));
            warn!(%identity, %error, ?retry, current_is_kept = still, "no certificate");
            if !still {
                slot.send_replace(State::Unavailable(error));
            }
        }
    }
}
