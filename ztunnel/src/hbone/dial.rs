// SPDX-License-Identifier: Apache-2.0
//! Opens one tunnel: TCP, TLS with the expected identity, HTTP/2. Every step has its own time limit.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use ztunnel_core::identity::Identity;
use ztunnel_core::report::{H2Stage, Leg, Outcome, TlsStage};

use super::{HANDSHAKE_TIMEOUT, SEALED_BUFFER, SEND_BUFFER};
use crate::certs::{Certificate, PodCerts};
use crate::config::TunnelConfig;
use crate::proxy::socket::PodSockets;
use crate::tls::revocation::Usage;
use crate::tls::{self, Standing};

/// How many header bytes a peer may answer with.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// How many streams the peer takes, before its settings have said so. No setting can say this number.
pub(super) const NOT_SAID: usize = usize::MAX - 1;

/// A tunnel that has just been opened. The connection must be polled for anything to happen.
pub(super) struct Dialed<S> {
    pub(super) send: SendRequest<Bytes>,
    pub(super) connection: Connection<TlsStream<S>, Bytes>,
    pub(super) standing: Standing,
}

/// Opens a tunnel to `address`, whose peer must have one of the `expected` identities.
///
/// # Errors
/// What failed, as it is reported to the operator.
pub(super) async fn dial(
    sockets: &PodSockets,
    certs: &PodCerts,
    config: &TunnelConfig,
    address: SocketAddr,
    expected: &[Identity],
) -> Result<Dialed<TcpStream>, Outcome> {
    let handshake = Handshake::prepare(certs, expected).await?;
    let socket =
        sockets.connect(address).await.map_err(|error| Outcome::connect_failed(&error, Leg::Hbone))?;
    let stream = handshake.tls(socket).await?;
    handshake.http2(certs, config, stream).await
}

/// What turns a byte stream into a tunnel: with which certificate, to whom.
pub(super) struct Handshake<'a> {
    certificate: Arc<Certificate>,
    tls: Arc<ClientConfig>,
    expected: &'a [Identity],
}

impl<'a> Handshake<'a> {
    pub(super) async fn prepare(certs: &PodCerts, expected: &'a [Identity]) -> Result<Self, Outcome> {
        let certificate = certs.current().await.map_err(|error| Outcome::Identity(error.to_string()))?;
        let tls = certs
            .tls()
            .client_config(&certificate, expected)
            .map_err(|error| Outcome::Tls { stage: TlsStage::Config, error: error.to_string() })?;
        Ok(Self { certificate, tls, expected })
    }

    /// TLS, with the identity checked.
    pub(super) async fn tls<S>(&self, stream: S) -> Result<TlsStream<S>, Outcome>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(nobody(), stream);
        let mut stream = within("TLS", handshake)
            .await
            .map_err(|error| Outcome::Tls { stage: TlsStage::Connect, error: error.to_string() })?;
        stream.get_mut().1.set_buffer_limit(Some(SEALED_BUFFER));
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(http2_handshake("the peer does not speak HTTP/2 (ALPN)".into()));
        }
        Ok(stream)
    }

    /// Which of the expected identities the peer has.
    pub(super) fn peer<S>(&self, stream: &TlsStream<S>) -> Option<Identity> {
        let leaf = stream.get_ref().1.peer_certificates()?.first()?;
        tls::verify::identities(leaf).into_iter().find(|identity| self.expected.contains(identity))
    }

    /// HTTP/2 on top.
    pub(super) async fn http2<S>(
        &self,
        certs: &PodCerts,
        config: &TunnelConfig,
        stream: TlsStream<S>,
    ) -> Result<Dialed<S>, Outcome>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let standing = certs.tls().standing(stream.get_ref().1, &self.certificate, Usage::Server);
        let handshake = h2::client::Builder::new()
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_frame_size(config.frame_size)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_max_send_streams(NOT_SAID)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake::<_, Bytes>(stream);
        let (send, connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_elapsed| http2_handshake("no answer in time".into()))?
            .map_err(|error| http2_handshake(error.to_string()))?;
        Ok(Dialed { send, connection, standing })
    }
}

/// Bounds a handshake by time.
pub(super) async fn within<T>(what: &str, handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_elapsed| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what} handshake: no answer in time")))
    })
}

/// Names play no part in HBONE: the peer is known by its SPIFFE identity. SNI is off.
fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

fn http2_handshake(error: String) -> Outcome {
    Outcome::H2 { stage: H2Stage::Handshake, error }
}
