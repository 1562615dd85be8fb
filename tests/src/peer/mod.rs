// SPDX-License-Identifier: Apache-2.0
//! A raw HBONE peer, for what a ztunnel would never send: no certificate, a wrong one, other methods, garbage.
//!
//! It presents what it is told to, checks nothing about the other side, and reports what happened. Blocking: a small
//! runtime inside does the HTTP/2. [`RawPeer`] goes below that: it speaks single [`frames`].

mod certificates;
pub mod frames;
mod raw;
mod server;

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use certificates::{Authority, Credentials};
pub use raw::RawPeer;
pub use server::{Asked, Carry, HboneServer};

use crate::pod::Pod;

/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(10);

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A response with this status.
    Status(u16),
    /// The TLS or HTTP/2 connection ended instead.
    Refused,
}

/// A TLS connection to the HBONE port of a pod.
#[derive(Debug)]
pub struct Peer {
    runtime: Runtime,
    tls: TlsStream<tokio::net::TcpStream>,
}

impl Peer {
    /// Connects from `from` with `credentials`, or without a certificate.
    ///
    /// # Errors
    /// The TCP connection or the TLS handshake failed, as far as this side sees it: with TLS 1.3 a server may
    /// refuse a client's certificate after the client's handshake is complete.
    pub fn connect(from: &Pod, to: SocketAddr, credentials: Option<&Credentials>) -> Result<Self> {
        let stream = from.connect(to).context("connect")?;
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = certificates::client_config(credentials)?;
        let tls = runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let name = ServerName::IpAddress(to.ip().into());
            let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
            tokio::time::timeout(LIMIT, handshake).await?
        });
        Ok(Self { tls: tls.context("TLS handshake")?, runtime })
    }

    /// The certificate chain that the other side presented.
    #[must_use]
    pub fn server_certificate(&self) -> Vec<u8> {
        let certificates = self.tls.get_ref().1.peer_certificates().unwrap_or_default();
        certificates.first().map(|certificate| certificate.to_vec()).unwrap_or_default()
    }

    /// Sends one request in HTTP/2 and reports what became of it. `path` makes it an ordinary request.
    ///
    /// # Errors
    /// Nothing came in time.
    pub fn request(self, request: http::Request<()>) -> Result<Answer> {
        let Self { runtime, tls } = self;
        runtime.block_on(async {
            let answer = async {
                let Ok((client, connection)) = h2::client::handshake(tls).await else {
                    return Answer::Refused;
                };
                let driver = tokio::spawn(connection);
                let answer = exchange(client, request).await.map_or(Answer::Refused, Answer::Status);
                driver.abort();
                answer
            };
            tokio::time::timeout(LIMIT, answer).await.context("no answer")
        })
    }

    /// Sends bytes that are no HTTP/2 inside TLS; true if the other side then ends the connection.
    ///
    /// # Errors
    /// It does not within the time limit.
    pub fn garbage(self, bytes: &[u8]) -> Result<()> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Self { runtime, mut tls } = self;
        runtime.block_on(async {
            let ended = async {
                if tls.write_all(bytes).await.is_err() {
                    return;
                }
                let mut buffer = [0; 4096];
                while matches!(tls.read(&mut buffer).await, Ok(1..)) {}
            };
            tokio::time::timeout(LIMIT, ended).await.context("garbage was swallowed without an end")
        })
    }
}

/// A CONNECT request as HBONE has it.
///
/// # Errors
/// The authority is none.
pub fn connect_request(authority: &str) -> Result<http::Request<()>> {
    let uri = http::Uri::builder().authority(authority).build().context("an authority")?;
    Ok(http::Request::builder().method(http::Method::CONNECT).uri(uri).body(())?)
}

async fn exchange(client: SendRequest<Bytes>, request: http::Request<()>) -> Result<u16, h2::Error> {
    let mut client = client.ready().await?;
    let (response, _stream) = client.send_request(request, false)?;
    Ok(response.await?.status().as_u16())
}

/// Sends bytes to a port without TLS and expects the other side to end the connection, at the latest then.
///
/// # Errors
/// It does not within the time limit.
pub fn garbage_instead_of_tls(from: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let Ok(mut stream) = from.connect(to) else { return Ok(()) };
    stream.set_read_timeout(Some(LIMIT))?;
    if stream.write_all(bytes).is_err() {
        return Ok(());
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("garbage was swallowed without an end")
            }
            Err(_) => return Ok(()),
        }
    }
}
