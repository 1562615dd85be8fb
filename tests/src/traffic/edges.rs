// SPDX-License-Identifier: Apache-2.0
//! Applications as tokio makes them: after a short read they wait for the next edge, so bytes that came without one
//! of their own are never seen.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::Pattern;
use crate::pod::Pod;

/// An answer must come within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// An echo server in a pod, on one thread. Dropping it closes everything.
#[derive(Debug)]
pub struct EdgeServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EdgeServer {
    /// Listens on a port of the pod.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.listen(port)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime()?;
        let thread = thread::spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! { () = accept(listener) => {}, _ = stopped => {} }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for EdgeServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

async fn accept(listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Asks an echo server `rounds` times from a pod, every request in several writes; checks every byte.
///
/// # Errors
/// A wrong byte, or an answer that does not come.
pub fn ask(from: &Pod, to: std::net::SocketAddr, rounds: u64) -> Result<()> {
    let stream = from.connect(to)?;
    stream.set_nonblocking(true)?;
    runtime()?.block_on(async {
        let mut stream = TcpStream::from_std(stream)?;
        for round in 0..rounds {
            let pattern = Pattern(round);
            let sizes = [64, 1 + usize::try_from(round % 3000)?, 700];
            let mut at = 0;
            for size in sizes {
                let mut message = vec![0; size];
                pattern.fill(at, &mut message);
                stream.write_all(&message).await?;
                at += size as u64;
            }
            let mut answer = vec![0; usize::try_from(at)?];
            let came = tokio::time::timeout(LIMIT, stream.read_exact(&mut answer)).await;
            came.with_context(|| format!("no answer in round {round}: bytes without an edge?"))??;
            let wrong = pattern.first_wrong(0, &answer);
            ensure!(wrong.is_none(), "a wrong byte at {wrong:?} in round {round}");
        }
        Ok(())
    })
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("make a runtime")
}
