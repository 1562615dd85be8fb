// SPDX-License-Identifier: Apache-2.0
//! A server in a pod: one thread and one handler per connection, results kept.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;

use super::conn::{Conn, canonical};
use crate::pod::Pod;
use crate::wait;

/// What a server does with one connection.
type Handler = dyn Fn(Conn) -> Result<()> + Send + Sync;

/// A running server. Dropping it closes everything.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    peers: Vec<SocketAddr>,
    handlers: Vec<JoinHandle<()>>,
    finished: usize,
    complaints: Vec<String>,
}

impl Server {
    /// Listens on `port` of the pod, on all its addresses, and hands connections to `handler`.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(
        pod: &Pod,
        port: u16,
        handler: impl Fn(Conn) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = pod.listen(port).with_context(|| format!("listen on {port} of {}", pod.name()))?;
        let shared = Arc::new(Shared::default());
        let accepting = (listener.try_clone()?, Arc::clone(&shared));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = thread::spawn(move || accept(&accepting.0, &accepting.1, &handler));
        Ok(Self { shared, listener, thread: Some(thread) })
    }

    /// Sends back what it gets.
    ///
    /// # Errors
    /// The port is in use.
    pub fn echo(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod, port, |conn| {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match (&conn).read(&mut buffer)? {
                    0 => return Ok(conn.finish()?),
                    length => (&conn).write_all(&buffer[..length])?,
                }
            }
        })
    }

    /// Sends one text and closes.
    ///
    /// # Errors
    /// The port is in use.
    pub fn banner(pod: &Pod, port: u16, text: &'static str) -> Result<Self> {
        Self::start(pod, port, move |conn| Ok((&conn).write_all(text.as_bytes())?))
    }

    /// Addresses of all clients so far.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.shared.state.lock().peers.clone()
    }

    /// Connections whose handler has ended.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.shared.state.lock().finished
    }

    /// What handlers complained about so far.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state.lock().complaints.clone()
    }

    /// Waits until `count` handlers have ended, all of them well.
    ///
    /// # Errors
    /// The deadline passed, or a handler failed.
    pub fn expect_finished(&self, count: usize, within: Duration) -> Result<()> {
        wait::until(&format!("{count} served connections"), within, || self.finished() >= count)
            .with_context(|| format!("{} ended: {:?}", self.finished(), self.complaints()))?;
        match self.complaints().first() {
            Some(complaint) => bail!("the server: {complaint}"),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the accepting thread.
        let raw = self.listener.as_raw_fd();
        nix::sys::socket::shutdown(raw, nix::sys::socket::Shutdown::Both).unwrap_or_default();
        drop(self.thread.take().map(JoinHandle::join));
        let handlers = std::mem::take(&mut self.shared.state.lock().handlers);
        for handler in handlers {
            drop(handler.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, handler: &Arc<Handler>) {
    loop {
        let accepted = listener.accept();
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let Ok((stream, peer)) = accepted else { continue };
        let mut state = shared.state.lock();
        state.peers.push(canonical(peer));
        let number = state.peers.len();
        // A thread that has ended keeps its stack until its handle goes.
        state.handlers.retain(|handler| !handler.is_finished());
        state.handlers.push(thread::spawn({
            let (shared, handler) = (Arc::clone(shared), Arc::clone(handler));
            move || {
                let conn = Conn::until(stream, Arc::clone(&shared.stop));
                let result = conn.map_err(Into::into).and_then(|conn| handler(conn));
                let mut state = shared.state.lock();
                state.finished += 1;
                if let Err(error) = result {
                    state.complaints.push(format!("connection {number} from {peer}: {error:#}"));
                }
            }
        }));
    }
}
