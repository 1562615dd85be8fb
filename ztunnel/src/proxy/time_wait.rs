// SPDX-License-Identifier: Apache-2.0
//! Ends the TIME_WAIT of redirected connections.
//!
//! Every connection that a pod opens is redirected to one address of ours, so that a source port that the
//! application may use again for another destination comes to the same pair of addresses. If we ended the first
//! connection first, as we do whenever its server did, our socket waits there for a minute and answers most such SYNs
//! as strays: the application's connect takes a second. Between two sockets of one kernel nothing can be in flight that
//! TIME_WAIT would protect from, so it is ended when the connection is over. A peer on a network may have something in flight:
//! what comes to our inbound ports keeps its TIME_WAIT.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::info;

use super::socket::PodSockets;
use crate::sys::sock_diag::SockDiag;

/// The kernel refused once: it will again.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Of one pod, on one worker.
#[derive(Debug, Default)]
pub struct TimeWaits(OnceCell<Option<SockDiag>>);

impl TimeWaits {
    /// The connection between our `local` and the application's `peer` is over, and we had ended first.
    pub(super) fn end(&self, sockets: &PodSockets, local: SocketAddr, peer: SocketAddr) {
        if REFUSED.load(Ordering::Relaxed) {
            return;
        }
        let open = || match sockets.sock_diag() {
            Ok(diag) => Some(diag),
            Err(error) => {
                refused(&error);
                None
            }
        };
        if let Some(diag) = self.0.get_or_init(open)
            && let Err(error) = diag.end_time_wait(local, peer)
        {
            refused(&error);
        }
    }
}

fn refused(error: &std::io::Error) {
    if !REFUSED.swap(true, Ordering::Relaxed) {
        info!(%error, "cannot end TIME_WAIT: an application that uses a port again within a minute may wait a second");
    }
}
