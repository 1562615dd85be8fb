// SPDX-License-Identifier: Apache-2.0
//! Serves the tunnels that other proxies open to a pod: TLS, then one task per CONNECT stream.
//!
//! Next: [`crate::proxy::inbound`] serves one stream.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;
use ztunnel_core::identity::Identity;
use ztunnel_core::report::{Outcome, TlsStage};

use super::dial::within;
use super::{HANDSHAKE_TIMEOUT, SEALED_BUFFER, SEND_BUFFER, watch_liveness};
use crate::certs::PodCerts;
use crate::config::TunnelConfig;
use crate::proxy::phase::{Phase, PhaseWatch};
use crate::tls::revocation::Usage;
use crate::tls::{self, Revoked, Standing};

/// Streams that one peer may have open in one tunnel.
const MAX_CONCURRENT_STREAMS: u32 = 200;
/// Header bytes that one request may have.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// Who opened the tunnel, from where, to which of our addresses.
#[derive(Debug, Clone)]
pub struct TunnelPeer {
    /// The TCP peer.
    pub address: SocketAddr,
    /// The pod's address that the peer dialed, port 15008.
    pub local: SocketAddr,
    /// From the peer's certificate.
    pub identity: Option<Identity>,
    /// Becomes true when that is no longer to be believed; `None`: nobody looks.
    pub revoked: Option<watch::Receiver<bool>>,
}

impl TunnelPeer {
    /// Ready once the peer's certificate is revoked.
    #[must_use]
    pub fn revoked(&self) -> Revoked {
        Revoked::new(self.revoked.as_ref())
    }
}

/// A request on a tunnel.
#[derive(Debug)]
pub struct Incoming {
    /// The request's head and its bytes.
    pub request: http::Request<RecvStream>,
    /// For the answer.
    pub respond: SendResponse<Bytes>,
}

/// An authenticated connection to us.
pub type ServerStream = TlsStream<TcpStream>;

/// Authenticates a peer.
///
/// # Errors
/// What failed, as it is reported to the operator.
pub async fn accept_tls(socket: TcpStream, certs: &PodCerts) -> Result<(ServerStream, Standing), Outcome> {
    let certificate = certs.current().await.map_err(|error| Outcome::Identity(error.to_string()))?;
    let config = certs
        .tls()
        .server_config(&certificate)
        .map_err(|error| Outcome::Tls { stage: TlsStage::Config, error: error.to_string() })?;
    let handshake = TlsAcceptor::from(config).accept(socket);
    let mut stream = within("TLS", handshake)
        .await
        .map_err(|error| Outcome::Tls { stage: TlsStage::Accept, error: error.to_string() })?;
    stream.get_mut().1.set_buffer_limit(Some(SEALED_BUFFER));
    let standing = certs.tls().standing(stream.get_ref().1, &certificate, Usage::Client);
    Ok((stream, standing))
}

/// The first SPIFFE identity of the peer's certificate.
pub fn peer_identity(stream: &ServerStream) -> Option<Identity> {
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    tls::verify::identities(leaf).into_iter().next()
}

/// Why a tunnel ended other than by both sides' will.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer finished TLS and then said nothing.
    #[error("http2 handshake failed: no answer in time")]
    Silent,
    /// The peer broke HTTP/2, or the connection failed.
    #[error("h2 failed: {0}")]
    Http2(#[from] h2::Error),
}

/// Serves every stream of one tunnel with `serve`, until the peer leaves.
///
/// # Errors
/// The peer broke HTTP/2, or the connection failed.
///
/// # Cancel safety
/// Dropping the future cuts the tunnel and every stream in it.
pub async fn serve_tunnel<F>(
    (stream, standing): (ServerStream, Standing),
    peer: (TunnelPeer, watch::Sender<bool>),
    config: TunnelConfig,
    mut phase: PhaseWatch,
    serve: impl Fn(Rc<TunnelPeer>, Incoming) -> F,
) -> Result<(), TunnelError>
where
    F: Future<Output = ()> + 'static,
{
    let handshake = h2::server::Builder::new()
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(config.frame_size)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
    let mut connection = handshake.await.map_err(|_elapsed| TunnelError::Silent)??;
    let (peer, revoke) = (Rc::new(peer.0), peer.1);
    let mut revoked = pin!(standing.revoked());
    let ping = connection.ping_pong();
    let mut liveness = pin!(async {
        match ping {
            Some(ping) => watch_liveness(ping).await,
            None => std::future::pending().await,
        }
    });
    let (mut alive, mut draining) = (true, false);
    // Dropped with this future: a cut pod's streams end at once.
    let mut streams = JoinSet::new();
    let result = loop {
        tokio::select! {
            incoming = connection.accept() => match incoming {
                Some(Ok((request, respond))) => {
                    streams.spawn_local(serve(Rc::clone(&peer), Incoming { request, respond }));
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            Some(_) = streams.join_next() => {}
            () = phase.reached(Phase::Draining), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut revoked, if !*revoke.borrow() => {
                debug!(peer = %peer.address, "tunnel closed: the peer's certificate is revoked");
                // Its streams hear of it before they see the end of the tunnel.
                revoke.send_replace(true);
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
            }
            () = &mut liveness, if alive => {
                alive = false;
                debug!(peer = %peer.address, "tunnel closed: the peer does not answer pings");
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
            }
        }
    };
    // The tunnel is gone; what its streams still hold for their applications is not.
    while streams.join_next().await.is_some() {}
    result
}
