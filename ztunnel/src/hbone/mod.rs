// SPDX-License-Identifier: Apache-2.0
//! HBONE: HTTP/2 CONNECT over mutual TLS, one stream per application connection.
//!
//! * [`dial`]: opens one tunnel to another proxy.
//! * [`pool`]: ④ which tunnel carries a new stream.
//! * [`inner`]: a tunnel inside another one, to another network. * [`stream_io`]: the stream that it runs on.
//! * [`server`]: the tunnels that others open to us.

pub mod dial;
pub mod inner;
pub mod pool;
pub mod server;
mod stream_io;

use std::time::Duration;

use h2::PingPong;

/// No handshake may take longer, TLS and HTTP/2 each.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A ping this long after the last answer …
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// … and no answer for this long: the peer is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that one stream may have queued towards a slow tunnel.
const SEND_BUFFER: usize = 400 << 10;
/// Bytes of TLS records that are sealed before they are written: one system call for all of them.
const SEALED_BUFFER: usize = 256 << 10;

/// Returns when the peer no longer answers pings.
///
/// # Cancel safety
/// Nothing is lost: pings carry no state.
async fn watch_liveness(mut ping: PingPong) {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_TIMEOUT, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
