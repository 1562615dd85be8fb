// SPDX-License-Identifier: Apache-2.0
//! Double HBONE: a tunnel inside the stream of another, through the gateway of a network.
//!
//! The outer tunnel leads to the gateway and is shared as every tunnel. The inner one is for one connection, is
//! authenticated by the destination's proxy, and is opaque to the gateway. It is driven by the task of the connection that it
//! carries, so that neither outlives the other.
//!
//! Source: data-plane contract, section 1.9.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;
use ztunnel_core::identity::Identity;
use ztunnel_core::report::{Cut, H2Stage, Outcome};
use ztunnel_core::route::DoubleHop;

use super::dial::{Dialed, Handshake};
use super::pool::{CONNECT_ANSWER_TIMEOUT, Lease, Opened, TunnelPool};
use super::stream_io::StreamIo;
use super::watch_liveness;
use crate::proxy::relay::{End, RelayError, TunnelStream};
use crate::tls::Standing;

/// How long what was said last may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A stream to a proxy in another network, which has accepted it.
#[derive(Debug)]
pub struct Inner {
    /// The bytes go here.
    pub stream: TunnelStream,
    /// The destination's answer: 200 and its headers.
    pub response: http::response::Parts,
    /// Who it is, as its certificate says.
    pub identity: Option<Identity>,
    /// The tunnel that must be driven for anything to happen to the stream.
    pub tunnel: InnerTunnel,
    /// Its place in the outer one.
    pub outer: Lease,
}

/// An inner tunnel without its stream.
pub struct InnerTunnel {
    /// Nothing once it has ended.
    connection: Option<Pin<Box<dyn Future<Output = ()>>>>,
    standing: Standing,
}

impl std::fmt::Debug for InnerTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InnerTunnel").field("open", &self.connection.is_some()).finish_non_exhaustive()
    }
}

impl TunnelPool {
    /// Opens a tunnel to the gateway, one inside it, and a stream there. The two requests differ in their headers alone.
    ///
    /// # Errors
    /// What failed, as it is reported to the operator.
    ///
    /// # Cancel safety
    /// Both tunnels lose their stream.
    pub async fn open_across(
        self: &Rc<Self>,
        hops: &DoubleHop,
        outer: &http::Request<()>,
        inner: http::Request<()>,
    ) -> Result<Inner, Outcome> {
        // Before anything is dialed: without a certificate there is nothing to dial for.
        let handshake = Handshake::prepare(self.certs(), &hops.expected).await?;
        let Opened { stream, lease, .. } = Box::pin(self.open(&hops.outer, outer)).await?;
        let tls = Box::pin(handshake.tls(StreamIo::new(stream))).await?;
        let identity = handshake.peer(&tls);
        let dialed = Box::pin(handshake.http2(self.certs(), self.config(), tls)).await?;
        let Dialed { mut send, mut connection, standing } = dialed;
        let liveness = connection.ping_pong().map(watch_liveness);
        let connection: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let liveness = async {
                match liveness {
                    Some(watch) => watch.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = connection => debug!(?result, "inner tunnel closed"),
                () = liveness => debug!("inner tunnel closed: the peer does not answer pings"),
            }
        });
        let mut tunnel = InnerTunnel { connection: Some(connection), standing };
        let (response, stream) = send.send_request(inner, false).map_err(failed)?;
        let answered = async {
            tokio::select! {
                biased;
                response = response => response.map_err(failed),
                () = tunnel.ended() => Err(stream_error("the tunnel ended before it was answered".into())),
            }
        };
        let response = timeout(CONNECT_ANSWER_TIMEOUT, answered)
            .await
            .map_err(|_elapsed| stream_error("no answer to CONNECT in time".into()))??;
        let (response, receive) = response.into_parts();
        if response.status != http::StatusCode::OK {
            return Err(Outcome::Http(response.status.as_u16()));
        }
        Ok(Inner { stream: TunnelStream { send: stream, receive }, response, identity, tunnel, outer: lease })
    }
}

impl InnerTunnel {
    /// Drives the tunnel while `relay` uses its stream, and then until what was said last has left.
    ///
    /// # Errors
    /// What ended the relay, or that one of the two peers is no longer to be believed.
    pub async fn carry(
        mut self,
        outer: &Lease,
        relay: impl Future<Output = Result<End, RelayError>>,
    ) -> Result<End, Outcome> {
        let mut relay = pin!(relay);
        let result = loop {
            tokio::select! {
                biased;
                () = outer.revoked() => return Err(Outcome::Cut(Cut::Revoked)),
                () = self.standing.revoked() => return Err(Outcome::Cut(Cut::Revoked)),
                result = &mut relay => break result,
                // Its stream hears of that by itself.
                () = drive(&mut self.connection), if self.connection.is_some() => {}
            }
        };
        if timeout(LAST_WORDS, self.ended()).await.is_err() {
            debug!("the peer of an inner tunnel does not take the end of it");
        }
        result.map_err(|error| error.outcome())
    }

    async fn ended(&mut self) {
        drive(&mut self.connection).await;
    }
}

/// Returns when the tunnel has ended, and then at once.
async fn drive(connection: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
    if let Some(open) = connection {
        open.await;
        *connection = None;
    }
}

fn failed(error: h2::Error) -> Outcome {
    stream_error(error.to_string())
}

fn stream_error(error: String) -> Outcome {
    Outcome::H2 { stage: H2Stage::Stream, error }
}
