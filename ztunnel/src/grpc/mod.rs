// SPDX-License-Identifier: Apache-2.0
//! The way to a server of the control plane: HTTP/2 over TLS, and what every call shows of us.
//!
//! Roots and tokens are files that others replace: both are read again for every call, so that whatever is missing or
//! wrong now may be right at the next attempt. Source: control-plane contract, sections 1.1 and 1.2.
//!
//! * [`roots`]: what the server's certificate must chain to. * [`connect`]: TCP, TLS and HTTP/2.
//! * [`channel`]: one connection. [`stream`]: a call whose messages are bytes, for large ones.

pub mod channel;
pub mod connect;
pub mod roots;
pub mod stream;

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::config::TlsConfig;
use crate::config::control_plane::{Credentials, ServerConfig, TokenSource};
use channel::Channel;
use connect::Connector;
use roots::{Roots, RootsError};

/// The cluster whose token we present.
const CLUSTER_ID: HeaderName = HeaderName::from_static("clusterid");
/// No token is longer.
const MAX_TOKEN: usize = 64 << 10;
/// What a server says is shown up to here.
const MAX_SHOWN: usize = 512;

/// Why a call could not be made, or how it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing to check the server's certificate with.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The token that the operator named cannot be used.
    #[error("the token in {} cannot be used: {error} (AUTH_TOKEN names it)", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// The server was not reached, or is not who it should be.
    #[error("Unavailable: {0}")]
    Connect(String),
    /// The server refused, or the call broke.
    #[error("{code:?}: {message}")]
    Status {
        /// The code of gRPC.
        code: tonic::Code,
        /// The server's words, or how the call broke.
        message: String,
    },
}

/// A server of the control plane.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    credentials: Credentials,
    tls: TlsConfig,
    shared: Mutex<Shared>,
    /// Failed attempts to open the shared connection.
    failures: AtomicU64,
}

/// The connection that calls share.
#[derive(Debug, Default)]
struct Shared {
    roots: Option<Roots>,
    channel: Option<Channel>,
    /// How the last attempt failed.
    failure: Option<CallError>,
}

impl Server {
    /// A server to which nothing is open yet.
    pub fn new(config: ServerConfig, credentials: Credentials, tls: TlsConfig) -> Self {
        Self { config, credentials, tls, shared: Mutex::default(), failures: AtomicU64::new(0) }
    }

    /// Where it is.
    pub fn address(&self) -> &Uri {
        &self.config.address
    }

    /// The connection that calls share. It is opened by the first call, and again whenever it has ended.
    ///
    /// When the roots have changed, a new connection is opened with the new ones; calls on the old one go on.
    ///
    /// # Errors
    /// There are no roots, or the server is not reached.
    pub async fn channel(&self) -> Result<Channel, CallError> {
        let failures = self.failures.load(Ordering::Relaxed);
        let mut shared = self.shared.lock().await;
        // Whoever has waited for somebody else's attempt shares its end, the bad one as well.
        if failures != self.failures.load(Ordering::Relaxed)
            && let Some(failure) = &shared.failure
        {
            return Err(failure.clone());
        }
        let opened = self.open(&mut shared).await;
        if let Err(failure) = &opened {
            shared.failure = Some(failure.clone());
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        drop(shared);
        opened
    }

    async fn open(&self, shared: &mut Shared) -> Result<Channel, CallError> {
        let roots = match (Roots::load(&self.config.roots, shared.roots.as_ref()), &shared.roots) {
            (Ok(roots), _) => roots,
            (Err(error), Some(known)) => {
                warn!(%error, "the roots of the control plane cannot be read, keeping those from before");
                known.clone()
            }
            (Err(error), None) => return Err(error.into()),
        };
        match &shared.channel {
            Some(channel) if !channel.is_closed() && shared.roots.as_ref() == Some(&roots) => {
                return Ok(channel.clone());
            }
            Some(channel) if !channel.is_closed() => {
                info!(server = %self.config.address, "the roots of the control plane have changed: connecting anew");
            }
            Some(_) | None => {}
        }
        let connector = Connector::new(&roots, self.config.alternative_name.as_deref(), self.tls);
        let channel = connector.connect(&self.config.address).await.map_err(CallError::Connect)?;
        *shared = Shared { roots: Some(roots), channel: Some(channel.clone()), failure: None };
        Ok(channel)
    }

    /// What every call shows of us: token, cluster, extra headers.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn metadata(&self) -> Result<HeaderMap, CallError> {
        let mut headers: HeaderMap = self.config.headers.iter().cloned().collect();
        if let Some(token) = self.token()? {
            headers.insert(AUTHORIZATION, token);
            if let Ok(cluster) = HeaderValue::from_str(&self.credentials.cluster_id) {
                headers.insert(CLUSTER_ID, cluster);
            }
        }
        Ok(headers)
    }

    fn token(&self) -> Result<Option<HeaderValue>, CallError> {
        let (path, required) = match &self.credentials.token {
            TokenSource::Literal(token) => return Ok(Some(token.clone())),
            TokenSource::File(path) => (path, true),
            TokenSource::Mounted(path) => (path, false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => bearer(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(None),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|error| CallError::Token { path: path.clone(), error })
    }

    /// What a failed call is reported as.
    pub fn error(&self, status: &tonic::Status) -> CallError {
        let mut message = printable(status.message());
        let mut source = status.source();
        while let Some(error) = source {
            let text = printable(&error.to_string());
            // Layers repeat each other.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        if let TokenSource::Mounted(path) = &self.credentials.token
            && status.code() == tonic::Code::Unauthenticated
            && !path.exists()
        {
            message = format!("{message} (there is no token in {})", path.display());
        }
        CallError::Status { code: status.code(), message: format!("{message} ({})", self.config.address) }
    }
}

/// The header's value; its secrecy is kept by everything that prints headers.
fn bearer(text: &str) -> Result<HeaderValue, String> {
    let token = text.trim();
    if token.is_empty() {
        return Err("it is empty".to_owned());
    }
    if token.len() > MAX_TOKEN {
        return Err(format!("it is longer than {MAX_TOKEN} bytes"));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_error| "it is not of visible ASCII".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// A peer's words, made safe for a log line.
fn printable(text: &str) -> String {
    text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(variables: &[(&str, &str)]) -> Server {
        let config = ServerConfig::read(&variables, &crate::config::control_plane::CA).unwrap().unwrap();
        Server::new(config, Credentials::read(&variables).unwrap(), TlsConfig::default())
    }

    #[test]
    fn a_token_file_is_read_again_for_every_call() {
        let path = std::env::temp_dir().join(format!("ztunnel-token-{}", std::process::id()));
        let server = server(&[("AUTH_TOKEN", path.to_str().unwrap()), ("CA_HEADER_x-tenant", "t")]);
        let error = server.metadata().unwrap_err();
        assert!(error.to_string().contains("ztunnel-token"), "{error}");
        std::fs::write(&path, "one\n").unwrap();
        let headers = server.metadata().unwrap();
        assert_eq!(headers["authorization"], "Bearer one");
        assert_eq!(headers["clusterid"], "Kubernetes");
        assert_eq!(headers["x-tenant"], "t");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(server.metadata().unwrap()["authorization"], "Bearer two");
        std::fs::write(&path, "\n").unwrap();
        assert!(server.metadata().unwrap_err().to_string().contains("it is empty"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn calls_that_wait_for_one_attempt_share_its_failure() {
        let path = std::env::temp_dir().join(format!("ztunnel-no-roots-{}", std::process::id()));
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        std::fs::write(&path, root).unwrap();
        let address = ("CA_ADDRESS", "127.0.0.1:1");
        let server = server(&[address, ("CA_ROOT_CA", path.to_str().unwrap())]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (first, second) = tokio::join!(server.channel(), server.channel());
            assert!(first.as_ref().unwrap_err().to_string().contains("TCP to 127.0.0.1:1"), "{first:?}");
            assert_eq!(first.unwrap_err(), second.unwrap_err());
            assert_eq!(server.failures.load(Ordering::Relaxed), 1, "one attempt for both");
            assert!(server.channel().await.is_err());
            assert_eq!(server.failures.load(Ordering::Relaxed), 2, "the next call tries again");
        });
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_a_server_says_cannot_forge_a_log_line() {
        assert_eq!(printable("a\nb\tc\u{1b}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_SHOWN);
    }
}
