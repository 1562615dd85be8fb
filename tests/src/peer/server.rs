// SPDX-License-Identifier: Apache-2.0
//! An HBONE server that is no ztunnel: a waypoint, or the gateway of a network. It terminates real TLS and HTTP/2, remembers
//! what it was asked for and by whom, and carries the bytes on, or back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::certificates::{self, Authority};
use crate::mesh::Mesh;

/// One CONNECT that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where to.
    pub authority: String,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// The SPIFFE ID of the client's certificate.
    pub client: String,
}

/// What becomes of the bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    /// They come back.
    Back,
    /// They go to this address, as they are.
    To(SocketAddr),
    /// There are none: this is the answer.
    Status(u16),
}

/// A running server. Dropping it cuts everything.
#[derive(Debug)]
pub struct HboneServer {
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HboneServer {
    /// Listens on 15008 of the pod, with its identity.
    ///
    /// # Errors
    /// The port is in use, or there is no authority yet.
    pub fn start(mesh: &Mesh, pod: &str, carry: Carry) -> Result<Self> {
        let pod = mesh.pod(pod);
        let listener = pod.listen(15008).with_context(|| format!("listen on 15008 of {}", pod.name()))?;
        listener.set_nonblocking(true)?;
        let credentials = Authority::open(&mesh.ca_dir())?.issue(&pod.spiffe())?;
        let acceptor = TlsAcceptor::from(Arc::new(certificates::server_config(&credentials)?));
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = Serving { acceptor, carry, asked: Arc::clone(&asked) };
        let thread = pod.spawn(move || {
            let tasks = LocalSet::new();
            tasks.block_on(&runtime, async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = serving.accept(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { asked, stop: Some(stop), thread: Some(thread) })
    }

    /// All CONNECTs so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

impl Drop for HboneServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[derive(Clone)]
struct Serving {
    acceptor: TlsAcceptor,
    carry: Carry,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Serving {
    async fn accept(&self, listener: TcpListener) {
        while let Ok((socket, _)) = listener.accept().await {
            let this = self.clone();
            tokio::task::spawn_local(async move { this.tunnel(socket).await });
        }
    }

    async fn tunnel(&self, socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        let tls = self.acceptor.accept(socket).await.ok()?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let client = leaf.and_then(certificates::uri).unwrap_or_default();
        let mut connection = h2::server::handshake(tls).await.ok()?;
        while let Some(Ok((request, respond))) = connection.accept().await {
            let (this, client) = (self.clone(), client.clone());
            tokio::task::spawn_local(async move { this.stream(request, respond, client).await });
        }
        Some(())
    }

    async fn stream(
        &self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        client: String,
    ) -> Option<()> {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        self.asked.lock().push(Asked { authority, headers, client });
        let mut answer = |status: u16, end: bool| {
            let response = http::Response::builder().status(status).body(()).ok()?;
            respond.send_response(response, end).ok()
        };
        let receive = request.into_body();
        match self.carry {
            Carry::Status(status) => answer(status, true).map(drop),
            Carry::Back => back(receive, answer(200, false)?).await,
            Carry::To(address) => match TcpStream::connect(address).await {
                Ok(socket) => on(socket, receive, answer(200, false)?).await,
                Err(_) => answer(503, true).map(drop),
            },
        }
    }
}

/// Sends what comes back.
async fn back(mut receive: RecvStream, mut send: SendStream<Bytes>) -> Option<()> {
    while let Some(chunk) = receive.data().await {
        let chunk = chunk.ok()?;
        receive.flow_control().release_capacity(chunk.len()).ok()?;
        write(&mut send, chunk).await?;
    }
    send.send_data(Bytes::new(), true).ok()
}

/// Carries bytes both ways; who resets is reset on the other side.
async fn on(mut socket: TcpStream, mut receive: RecvStream, mut send: SendStream<Bytes>) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let result = {
        let (mut read, mut write_half) = socket.split();
        let there = async {
            while let Some(chunk) = receive.data().await {
                let chunk = chunk.ok()?;
                write_half.write_all(&chunk).await.ok()?;
                receive.flow_control().release_capacity(chunk.len()).ok()?;
            }
            write_half.shutdown().await.ok()
        };
        let here = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match read.read(&mut buffer).await.ok()? {
                    0 => return send.send_data(Bytes::new(), true).ok(),
                    length => write(&mut send, Bytes::copy_from_slice(&buffer[..length])).await?,
                }
            }
        };
        tokio::try_join!(async { there.await.ok_or(()) }, async { here.await.ok_or(()) })
    };
    if result.is_err() {
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).ok();
        send.send_reset(Reason::CANCEL);
    }
    Some(())
}

/// Sends all of it, as the window allows.
async fn write(send: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut granted = send.capacity();
        while granted == 0 {
            granted = std::future::poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
        }
        send.send_data(data.split_to(granted.min(data.len())), false).ok()?;
    }
    Some(())
}
