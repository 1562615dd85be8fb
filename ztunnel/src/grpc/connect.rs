// SPDX-License-Identifier: Apache-2.0
//! TCP, TLS and HTTP/2 to a server of the control plane, each with its own time limit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::channel::Channel;
use super::roots::Roots;
use crate::config::TlsConfig;
use crate::tls;

/// Each step may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time before TCP asks whether the server is still there, then between two questions, then how many.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(75), 9);

/// Opens connections that are trusted by certain roots.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    roots: Arc<RootCertStore>,
    alternative_name: Option<ServerName<'static>>,
    tls: TlsConfig,
}

impl Connector {
    pub(super) fn new(roots: &Roots, alternative_name: Option<&str>, tls: TlsConfig) -> Self {
        let alternative_name = alternative_name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        Self { roots: Arc::clone(roots.store()), alternative_name, tls }
    }

    /// Connects; the error says at which step it failed.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<Channel, String> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let dial = TcpStream::connect((host, uri.port_u16().unwrap_or(443)));
        let socket = within(&format!("TCP to {address}"), dial).await?;
        if let Err(error) = prepare(&socket) {
            debug!(%error, "cannot set socket options");
        }
        let config = self.config().map_err(|error| format!("TLS: {error}"))?;
        let handshake = TlsConnector::from(config).connect(name, socket);
        let stream = within(&format!("TLS with {address}"), handshake).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(format!("TLS with {address}: it does not speak HTTP/2 (ALPN)"));
        }
        // Boxed: hyper's handshake is large, and everybody who waits for it would be.
        within(&format!("HTTP/2 with {address}"), Box::pin(Channel::open(stream))).await
    }

    fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = tls::provider(self.tls);
        let verifier = Verifier {
            roots: Arc::clone(&self.roots),
            alternative_name: self.alternative_name.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(tls::versions(self.tls))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Bounds a step by time, and names it in its error.
async fn within<T, E: std::fmt::Display>(
    step: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(CONNECT_TIMEOUT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("{step}: {error}")),
        Err(_elapsed) => Err(format!("{step}: no answer within {CONNECT_TIMEOUT:?}")),
    }
}

/// The certificate must chain to the roots, and be the address' or the alternative name's.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    alternative_name: Option<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        verify_server_name(&parsed, server_name)
            .or_else(|error| match &self.alternative_name {
                Some(name) => verify_server_name(&parsed, name),
                None => Err(error),
            })
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
