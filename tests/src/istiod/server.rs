// SPDX-License-Identifier: Apache-2.0
//! The sockets of an istiod: TLS 1.3 with a certificate of its own root, HTTP/2, one task per call.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::grpc::Call;
use crate::netns::Netns;

/// A request may not be larger: istiod's own default.
const MAX_HEADERS: u32 = 64 << 10;

/// A root, and a certificate that it signed.
#[derive(Debug)]
pub(super) struct Credentials {
    root: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Credentials {
    /// A root of its own and a certificate for `ip` and `hostname`.
    pub(super) fn generate(ip: IpAddr, hostname: &str) -> Result<Self> {
        let root_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root of the control plane");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&root_key)?.pem();
        let issuer = Issuer::new(params, root_key);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(ip), SanType::DnsName(hostname.try_into()?)];
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Self { root, certificate: certificate.der().clone(), key: key.serialize_der() })
    }

    pub(super) fn root_pem(&self) -> &str {
        &self.root
    }

    fn config(&self) -> Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// A listener with a thread of its own, which can go away and come back.
pub struct Server {
    netns: Netns,
    address: SocketAddr,
    tls: TlsAcceptor,
    serve: Arc<dyn Fn(Call) -> Serving + Send + Sync>,
    running: Mutex<Option<Running>>,
    connections: Arc<AtomicUsize>,
}

type Serving = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens in `netns`, and has `serve` answer every call.
    pub(super) fn start<F: Future<Output = ()> + Send + 'static>(
        netns: Netns,
        address: SocketAddr,
        credentials: &Credentials,
        serve: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Result<Self> {
        let server = Self {
            netns,
            address,
            tls: TlsAcceptor::from(Arc::new(credentials.config()?)),
            serve: Arc::new(move |call| Box::pin(serve(call))),
            running: Mutex::default(),
            connections: Arc::default(),
        };
        server.resume()?;
        Ok(server)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Closes the listener and cuts every connection: nothing is left when this returns.
    pub(super) fn pause(&self) {
        let running = self.running.lock().take();
        if let Some(Running { stop, thread }) = running {
            drop(stop);
            drop(thread.join());
        }
    }

    pub(super) fn resume(&self) -> Result<()> {
        let mut running = self.running.lock();
        if running.is_some() {
            return Ok(());
        }
        let listener = self.netns.run(|| listen(self.address));
        let listener = listener.with_context(|| format!("listen on {}", self.address))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (tls, serve) = (self.tls.clone(), Arc::clone(&self.serve));
        let connections = Arc::clone(&self.connections);
        // Everything lives on this runtime: when it is dropped, every socket is closed.
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, &tls, &serve, &connections) => {}
                    _ = stopped => {}
                }
            });
        });
        *running = Some(Running { stop, thread });
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.pause();
    }
}

fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept(
    listener: std::net::TcpListener,
    tls: &TlsAcceptor,
    serve: &Arc<dyn Fn(Call) -> Serving + Send + Sync>,
    connections: &AtomicUsize,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut tasks = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        tasks.spawn(connection(socket, tls.clone(), Arc::clone(serve)));
        while tasks.try_join_next().is_some() {}
    }
}

/// One connection. A peer that does not speak TLS or HTTP/2 is its own fault, and seen at its end.
async fn connection(
    socket: TcpStream,
    tls: TlsAcceptor,
    serve: Arc<dyn Fn(Call) -> Serving + Send + Sync>,
) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let stream = tls.accept(socket).await.ok()?;
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20);
    builder.max_header_list_size(MAX_HEADERS).max_send_buffer_size(4 << 20);
    let mut connection = builder.handshake::<_, Bytes>(stream).await.ok()?;
    // A call may have its whole connection cut.
    let cut = Arc::new(Notify::new());
    // Dropped with the connection, and every call on it.
    let mut calls = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = cut.notified() => return None,
        };
        let (request, respond) = accepted?.ok()?;
        calls.spawn(serve(Call::new(request, respond, Arc::clone(&cut))));
        while calls.try_join_next().is_some() {}
    }
}
