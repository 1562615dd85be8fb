// SPDX-License-Identifier: Apache-2.0
//! The way to a server of the control plane: one HTTP/2 connection over TLS, opened when needed, and what every call
//! shows of us. Source: control-plane contract, sections 1.1 and 1.2.
//!
//! Roots and tokens are files that others replace: both are read again for every call, so that whatever is missing or
//! wrong now may be right at the next attempt.
//!
//! * [`roots`]: what the server's certificate must chain to. * [`connect`]: TCP and TLS.

pub mod connect;
pub mod roots;

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::config::TlsConfig;
use crate::config::control_plane::{Credentials, ServerConfig, TokenSource};
use connect::Connector;
use roots::{Roots, RootsError};

/// The cluster whose token we present.
const CLUSTER_ID: HeaderName = HeaderName::from_static("clusterid");
/// HTTP/2 pings while the connection lives …
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// … and how long their answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// The server refused, or was not reached.
    #[error("{code:?}: {message}")]
    Status {
        /// The code of gRPC.
        code: tonic::Code,
        /// The server's words, or how the connection failed.
        message: String,
    },
}

/// A server of the control plane. The connection to it is shared by all calls.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    credentials: Credentials,
    tls: TlsConfig,
    channel: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    roots: Roots,
    channel: Channel,
}

impl Server {
    /// A server to which nothing is open yet.
    pub fn new(config: ServerConfig, credentials: Credentials, tls: TlsConfig) -> Self {
        Self { config, credentials, tls, channel: Mutex::default() }
    }

    /// The connection. It is opened by the first call, and again whenever it has broken. Call inside a runtime.
    ///
    /// When the roots have changed, a new connection is made with the new ones; calls on the old one go on.
    ///
    /// # Errors
    /// There are no roots, and never were.
    pub fn channel(&self) -> Result<Channel, CallError> {
        let mut open = self.channel.lock();
        let roots = match Roots::load(&self.config.roots, open.as_ref().map(|open| &open.roots)) {
            Ok(roots) => roots,
            Err(error) => {
                let Some(open) = &*open else { return Err(error.into()) };
                warn!(%error, "roots of the control plane cannot be read, keeping those from before");
                return Ok(open.channel.clone());
            }
        };
        if let Some(open) = &*open {
            if open.roots == roots {
                return Ok(open.channel.clone());
            }
            info!(server = %self.config.address, "the roots of the control plane have changed: connecting anew");
        }
        let endpoint = Endpoint::from(self.config.address.clone())
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let connector = Connector::new(&roots, self.config.alternative_name.as_deref(), self.tls);
        let channel = endpoint.connect_with_connector_lazy(connector.service());
        *open = Some(Open { roots, channel: channel.clone() });
        Ok(channel)
    }

    /// `message`, with what we show of ourselves: token, cluster, extra headers.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn request<T>(&self, message: T) -> Result<tonic::Request<T>, CallError> {
        let mut headers: HeaderMap = self.config.headers.iter().cloned().collect();
        if let Some(token) = self.token()? {
            headers.insert(AUTHORIZATION, token);
            if let Ok(cluster) = HeaderValue::from_str(&self.credentials.cluster_id) {
                headers.insert(CLUSTER_ID, cluster);
            }
        }
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(request)
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

    #[test]
    fn a_token_file_is_read_again_for_every_call() {
        let path = std::env::temp_dir().join(format!("ztunnel-token-{}", std::process::id()));
        let variables: &[(&str, &str)] =
            &[("AUTH_TOKEN", path.to_str().unwrap()), ("CA_HEADER_x-tenant", "t")];
        let config = ServerConfig::read(&variables, &crate::config::control_plane::CA).unwrap().unwrap();
        let server = Server::new(config, Credentials::read(&variables).unwrap(), TlsConfig::default());
        let error = server.request(()).unwrap_err();
        assert!(error.to_string().contains("ztunnel-token"), "{error}");
        std::fs::write(&path, "one\n").unwrap();
        let request = server.request(()).unwrap();
        let header = |request: &tonic::Request<()>, name| request.metadata().get(name).unwrap().clone();
        assert_eq!(header(&request, "authorization"), "Bearer one");
        assert_eq!(header(&request, "clusterid"), "Kubernetes");
        assert_eq!(header(&request, "x-tenant"), "t");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(header(&server.request(()).unwrap(), "authorization"), "Bearer two");
        std::fs::write(&path, "\n").unwrap();
        assert!(server.request(()).unwrap_err().to_string().contains("it is empty"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_a_server_says_cannot_forge_a_log_line() {
        assert_eq!(printable("a\nb\tc\u{1b}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_SHOWN);
    }
}
