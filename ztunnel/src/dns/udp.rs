// SPDX-License-Identifier: Apache-2.0
//! Queries that come as datagrams.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error};
use ztunnel_core::dns::wire::MAX_MESSAGE;

use super::serve::{self, Served};
use crate::proxy::PodContext;
use crate::proxy::phase::{Phase, PhaseWatch};
use crate::telemetry::dns::Transport;

/// Datagrams that are taken before others have their turn.
const BATCH: usize = 32;
/// After an error that is not the client's: it may not be over in a moment.
const PAUSE: Duration = Duration::from_millis(50);
/// What had come before we left is there by then.
const QUIET: Duration = Duration::from_millis(10);

thread_local! {
    /// One per thread: a datagram is in it only while it is being looked at.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer, which has room for any datagram.
pub(super) fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(MAX_MESSAGE, 0);
        f(buffer)
    })
}

/// Serves one socket until the pod drains and the last query has its answer, or the pod is cut.
pub(super) async fn run(context: Arc<PodContext>, socket: std::net::UdpSocket, phase: PhaseWatch) {
    let (mut draining, mut cut) = (phase.clone(), phase);
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Rc::new(socket),
        Err(error) => return error!(%error, "cannot listen for DNS"),
    };
    let mut tasks = JoinSet::new();
    let serving = async {
        loop {
            tokio::select! {
                biased;
                () = draining.reached(Phase::Draining) => break,
                Some(_) = tasks.join_next() => {}
                ready = socket.readable() => {
                    if let Err(error) = ready.and_then(|()| take(&context, &socket, &mut tasks)) {
                        debug!(%error, "cannot receive DNS queries, pausing");
                        tokio::time::sleep(PAUSE).await;
                    }
                    // Others of this thread want to live, too.
                    tokio::task::yield_now().await;
                }
            }
        }
        leave(&socket).await;
        while let Ok(Ok(())) = timeout(QUIET, socket.readable()).await {
            if take(&context, &socket, &mut tasks).is_err() {
                break;
            }
        }
        while tasks.join_next().await.is_some() {}
    };
    tokio::select! {
        biased;
        () = cut.reached(Phase::Cut) => {}
        () = serving => {}
    }
}

/// Answers what is there, up to [`BATCH`] datagrams.
fn take(context: &Arc<PodContext>, socket: &Rc<UdpSocket>, tasks: &mut JoinSet<()>) -> io::Result<()> {
    let Some(dns) = &context.dns else { return Ok(()) };
    for _ in 0..BATCH {
        let received = with_buffer(|buffer| {
            let (length, peer) = socket.try_recv_from(buffer)?;
            let message = buffer.get(..length).unwrap_or_default();
            let served = serve::now(context, dns, message, Transport::Udp);
            let kept = matches!(served, Served::Later).then(|| message.to_vec());
            io::Result::Ok((served, kept, peer))
        });
        let (served, kept, peer) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        // Nobody can be answered there.
        if peer.port() == 0 || peer.ip().is_unspecified() {
            continue;
        }
        match (served, kept) {
            // A full send buffer loses it, as a network would.
            (Served::Now(response), _) => drop(socket.try_send_to(&response, peer)),
            (Served::Later, Some(message)) => {
                let (context, socket) = (Arc::clone(context), Rc::clone(socket));
                tasks.spawn_local(async move { answer(&context, &socket, &message, peer).await });
            }
            (Served::Later | Served::Never, _) => {}
        }
    }
    while tasks.try_join_next().is_some() {}
    Ok(())
}

async fn answer(context: &PodContext, socket: &UdpSocket, message: &[u8], peer: SocketAddr) {
    let Some(dns) = &context.dns else { return };
    if let Some(response) = serve::later(context, dns, message, Transport::Udp).await
        && let Err(error) = socket.send_to(&response, peer).await
    {
        debug!(%error, %peer, "cannot answer a DNS query");
    }
}

/// Takes no more queries: the kernel gives a socket that is connected to nobody none of those that other sockets at its
/// address may have, and still sends what it is told to.
async fn leave(socket: &UdpSocket) {
    let nobody: SocketAddr = match socket.local_addr() {
        Ok(SocketAddr::V6(_)) => (Ipv6Addr::LOCALHOST, 1).into(),
        Ok(SocketAddr::V4(_)) | Err(_) => (Ipv4Addr::LOCALHOST, 1).into(),
    };
    if let Err(error) = socket.connect(nobody).await {
        debug!(%error, "cannot leave DNS queries to others");
    }
}
