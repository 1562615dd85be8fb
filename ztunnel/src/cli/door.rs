// SPDX-License-Identifier: Apache-2.0
//! Asks the admin server of a running node, through its unix socket or its port on localhost.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::admin::{ADMIN_PORT, METRICS_PORT};
use crate::config::Config;
use crate::config::env::ProcessEnv;

/// How long a whole answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How large it may be: the dump of a mesh of 100,000 workloads is about a quarter of this.
const LARGEST: usize = 512 << 20;

/// Where to ask.
#[derive(Debug, Clone)]
enum Address {
    Port(u16),
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{}:{port}", Ipv4Addr::LOCALHOST),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The admin server of a running node.
#[derive(Debug)]
pub(super) struct Door {
    admin: Address,
    metrics: Address,
}

impl Door {
    /// As the caller says, or else as the node's settings do: they are ours if we run beside it.
    pub(super) fn new(port: Option<u16>, socket: Option<&Path>) -> Self {
        let settings = Config::from_env(&ProcessEnv).ok();
        let of_settings = |settings: &Config| match &settings.admin_socket {
            Some(path) => Address::Socket(path.clone()),
            None => Address::Port(settings.ports.admin),
        };
        let admin = match (port, socket) {
            (_, Some(path)) => Address::Socket(path.to_owned()),
            (Some(port), None) => Address::Port(port),
            (None, None) => settings.as_ref().map_or(Address::Port(ADMIN_PORT), of_settings),
        };
        let metrics = settings.map_or(METRICS_PORT, |settings| settings.ports.metrics);
        Self { admin, metrics: Address::Port(metrics) }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// Nobody answers, or not with JSON.
    pub(super) fn json(&self, target: &str) -> io::Result<Value> {
        let text = self.get(target)?;
        serde_json::from_str(&text).map_err(|error| {
            io::Error::other(format!(
                "{} answered {target} with no JSON ({error}): is it ztunnel?",
                self.admin
            ))
        })
    }

    /// Asks for a text.
    ///
    /// # Errors
    /// Nobody answers, or with a refusal.
    pub(super) fn get(&self, target: &str) -> io::Result<String> {
        ask(&self.admin, &Method::GET, target)
    }

    /// Has something done.
    ///
    /// # Errors
    /// Nobody answers, or with a refusal.
    pub(super) fn post(&self, target: &str) -> io::Result<String> {
        ask(&self.admin, &Method::POST, target)
    }

    /// The metrics, from their own port.
    ///
    /// # Errors
    /// Nobody answers.
    pub(super) fn metrics(&self) -> io::Result<String> {
        ask(&self.metrics, &Method::GET, "/metrics")
    }
}

/// The query of a request.
#[derive(Debug, Default)]
pub(super) struct Query(String);

impl Query {
    /// One more pair, if there is a value.
    pub(super) fn with(mut self, name: &str, value: Option<String>) -> Self {
        if let Some(value) = value {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(name);
            self.0.push('=');
            self.0.extend(form_urlencoded::byte_serialize(value.as_bytes()));
        }
        self
    }

    /// The target of the request.
    pub(super) fn of(self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

fn ask(address: &Address, method: &Method, target: &str) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let asked = async {
            match address {
                Address::Port(port) => {
                    let place = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                    exchange(
                        TcpStream::connect(place).await.map_err(|error| nobody(address, &error))?,
                        method,
                        target,
                    )
                    .await
                }
                Address::Socket(path) => {
                    exchange(
                        UnixStream::connect(path).await.map_err(|error| nobody(address, &error))?,
                        method,
                        target,
                    )
                    .await
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{address} has not answered {target} within {} s", PATIENCE.as_secs()),
            )),
        }
    })
}

fn nobody(address: &Address, error: &io::Error) -> io::Error {
    let hint = match address {
        Address::Port(_) => {
            "run this in the node's network namespace, for instance `kubectl exec -n istio-system POD -- ztunnel …`"
        }
        Address::Socket(_) => "the node listens there if its setting ADMIN_SOCKET says so",
    };
    io::Error::new(error.kind(), format!("no ztunnel answers on {address}: {error} ({hint})"))
}

async fn exchange<S>(stream: S, method: &Method, target: &str) -> io::Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(http::header::HOST, "localhost")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(io::Error::other)?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status == StatusCode::OK {
            Ok(text)
        } else {
            Err(io::Error::other(format!("{target}: {status}: {}", text.trim())))
        }
    };
    // The connection ends with the answer; what ended it is told there.
    let (answer, _ended) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_cannot_say_more_than_its_values() {
        let query = Query::default().with("pod", Some("shop/web&state=on".into())).with("path", None);
        let query = query.with("peer", Some("a b".into()));
        assert_eq!(query.of("/connections"), "/connections?pod=shop%2Fweb%26state%3Don&peer=a+b");
    }

    #[test]
    fn who_does_not_answer_is_named_with_what_to_do() {
        let door = Door::new(None, Some(Path::new("/nonexistent/admin.sock")));
        let error = door.get("/status").unwrap_err().to_string();
        assert!(error.starts_with("no ztunnel answers on /nonexistent/admin.sock: "), "{error}");
        assert!(error.contains("ADMIN_SOCKET"), "{error}");
    }
}
