// SPDX-License-Identifier: Apache-2.0
//! Connections whose application says where it wants to go (SOCKS5 on 127.0.0.1:15080) instead of being redirected.
//!
//! Next: [`super::outbound`], as for every other connection that leaves the pod.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;
use ztunnel_core::addr::is_this_host;
use ztunnel_core::dns::{kind, wire};
use ztunnel_core::socks5::{self, Code, Handshake, Refusal, Step, Target, reply};

use super::accept::Accepted;
use super::{PodProxy, outbound};
use crate::dns::serve::{Served, later, now};
use crate::entropy::unpredictable;
use crate::telemetry::dns::Transport;

/// How long the handshake may take, the name's resolution not counted.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection does not get anywhere.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the connection ended during the handshake: {0}")]
    Io(#[from] io::Error),
    #[error("the handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("attempted recursive call to ourselves")]
    Loop,
    #[error("names are resolved by the DNS proxy, which is switched off (ISTIO_META_DNS_CAPTURE)")]
    NoDns,
    #[error("dns response had no valid IP addresses: {0}")]
    NoAddress(String),
}

impl Error {
    /// What the client is told.
    fn reply(&self) -> Vec<u8> {
        match self {
            Self::Io(_) | Self::Timeout(_) => Vec::new(),
            Self::Refused(refusal) => refusal.reply(),
            Self::Loop => reply(Code::NotAllowed).into(),
            Self::NoDns | Self::NoAddress(_) => reply(Code::HostUnreachable).into(),
        }
    }
}

/// Serves one connection: the handshake here, the rest as if the application had been redirected.
pub(super) async fn serve(proxy: Rc<PodProxy>, mut accepted: Accepted) {
    match handshake(&proxy, &mut accepted.socket).await {
        Ok(target) => {
            accepted.asked = Some(target);
            outbound::serve(proxy, accepted).await;
        }
        Err(error) => {
            debug!(%error, peer = %accepted.peer, "a SOCKS5 connection is turned away");
            // Whoever has gone need not be told.
            drop(timeout(HANDSHAKE_TIMEOUT, accepted.socket.write_all(&error.reply())).await);
        }
    }
}

async fn handshake(proxy: &PodProxy, socket: &mut TcpStream) -> Result<SocketAddr, Error> {
    let target = timeout(HANDSHAKE_TIMEOUT, negotiate(socket)).await??;
    let target = match target {
        Target::Addr(address) => address,
        Target::Host(name, port) => (resolve(proxy, &name).await?, port).into(),
    };
    if is_this_host(target.ip()) && target.port() == socks5::PORT {
        return Err(Error::Loop);
    }
    // The contract has it before the connection is routed: a client that is turned away later sees it end.
    timeout(HANDSHAKE_TIMEOUT, socket.write_all(&reply(Code::Succeeded))).await??;
    Ok(target)
}

async fn negotiate(socket: &mut TcpStream) -> Result<Target, Error> {
    let (mut handshake, mut wanted) = Handshake::start();
    // A length of one byte, and a port.
    let mut buffer = [0; 257];
    loop {
        let bytes = &mut buffer[..wanted];
        socket.read_exact(bytes).await?;
        match handshake.handle(bytes) {
            Step::Read(next) => wanted = next,
            Step::Reply(bytes, next) => {
                socket.write_all(&bytes).await?;
                wanted = next;
            }
            Step::Connect(target) => return Ok(target),
            Step::Refuse(refusal) => return Err(refusal.into()),
        }
    }
}

/// The first IPv4 address of a name, as the pod's DNS proxy would answer: the listener is IPv4.
async fn resolve(proxy: &PodProxy, name: &str) -> Result<IpAddr, Error> {
    let dns = proxy.context.dns.as_ref().ok_or(Error::NoDns)?;
    let none = || Error::NoAddress(name.to_owned());
    let question = wire::question(name, kind::A, unpredictable()).ok_or(Refusal::Name)?;
    let response = match now(&proxy.context, dns, &question, Transport::Tcp) {
        Served::Now(response) => response,
        Served::Later => later(&proxy.context, dns, &question, Transport::Tcp).await.ok_or_else(none)?,
        Served::Never => return Err(none()),
    };
    wire::addresses(&response, kind::A).ok().and_then(|all| all.first().copied()).ok_or_else(none)
}
