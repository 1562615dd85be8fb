// SPDX-License-Identifier: Apache-2.0
//! A small HTTP/1.1 server: one handler, bounded headers, no keep-alive abuse, and it survives running out of
//! descriptors.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::{debug, warn};

/// A whole answer.
pub type Body = Full<Bytes>;

/// How long a client may take over its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// 127.0.0.1 and ::1.
    Localhost,
    /// Every address.
    Everywhere,
}

/// Binds a server's sockets: IPv6 where the namespace has it, IPv4 in any case.
///
/// # Errors
/// `failed to bind to address …` with the reason.
pub fn bind(port: u16, reach: Reach) -> io::Result<Vec<TcpListener>> {
    let addresses: Vec<SocketAddr> = match reach {
        Reach::Localhost => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        Reach::Everywhere => {
            vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
        }
    };
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in addresses {
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            // Without IPv6 there is nothing to listen on; IPv4 is covered by a dual-stack socket already.
            Err(_) if address.is_ipv6() => {}
            Err(_) if reach == Reach::Everywhere && !listeners.is_empty() => {}
            Err(error) => {
                let text = format!("failed to bind to address {address}: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// Serves `handler` on every listener, for as long as it is polled. Call inside a `LocalSet`.
pub async fn serve(
    listeners: Vec<TcpListener>,
    handler: impl Fn(&Request<Incoming>) -> Response<Body> + 'static,
) {
    let handler = Rc::new(handler);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        servers.spawn_local(accept(listener, Rc::clone(&handler)));
    }
    while servers.join_next().await.is_some() {}
}

#[expect(clippy::infinite_loop, reason = "a server ends when its task is dropped")]
async fn accept<H>(listener: TcpListener, handler: Rc<H>)
where
    H: Fn(&Request<Incoming>) -> Response<Body> + 'static,
{
    loop {
        match listener.accept().await {
            Ok((socket, _peer)) => {
                let handler = Rc::clone(&handler);
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| {
                        let response = handler(&request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .half_close(true)
                        .max_buf_size(8 << 10)
                        .serve_connection(TokioIo::new(socket), service);
                    if let Err(error) = served.await {
                        debug!(%error, "an admin connection ended badly");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection, pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

/// A 200 answer of the given content type.
pub fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// A pretty JSON answer.
pub fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            typed("application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
