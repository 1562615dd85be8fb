// SPDX-License-Identifier: Apache-2.0
//! One HTTP/2 connection to a server of the control plane.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tower_service::Service;
use tracing::debug;

/// HTTP/2 pings while the connection lives …
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// … and how long their answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for a large message to flow without waiting for us.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A connection. Clones are the same one; it is closed when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    _driver: Arc<Driver>,
}

/// The task that moves the connection's bytes.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Channel {
    /// Speaks HTTP/2 on `stream`.
    ///
    /// # Errors
    /// The server does not.
    pub(super) async fn open(stream: TlsStream<TcpStream>) -> Result<Self, hyper::Error> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        // Its end is seen by whoever uses it.
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "the connection to the control plane ended");
            }
        });
        Ok(Self { sender, _driver: Arc::new(Driver(driver.abort_handle())) })
    }

    /// True if no call can be made on it any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
