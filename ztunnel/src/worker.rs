// SPDX-License-Identifier: Apache-2.0
//! The threads that carry traffic. They share nothing: each has its own runtime, its own listeners in every pod (the
//! kernel spreads connections over them), its own tunnels. A connection lives on one thread, from accept to close.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tracing::error;

use crate::proxy::phase::PhaseWatch;
use crate::proxy::socket::Listener;
use crate::proxy::{self, PodContext};

/// The listeners of one pod for one worker.
#[derive(Debug)]
pub struct PodListeners {
    /// 15001.
    pub outbound: Listener,
    /// 15006.
    pub plaintext: Listener,
    /// 15008.
    pub hbone: Listener,
}

/// A pod that a worker is to serve.
#[derive(Debug)]
struct Start {
    context: Arc<PodContext>,
    listeners: PodListeners,
    phase: PhaseWatch,
    /// Dropped when the worker has nothing of the pod any more.
    alive: mpsc::Sender<()>,
}

/// All workers.
#[derive(Debug)]
pub struct Workers(Vec<mpsc::UnboundedSender<Start>>);

impl Workers {
    /// Starts `count` threads. They end when the last handle is dropped.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start_threads(count: usize) -> io::Result<Self> {
        (0..count)
            .map(|index| {
                let (commands, receiver) = mpsc::unbounded_channel();
                thread::Builder::new().name(format!("ztunnel-{index}")).spawn(move || run(receiver))?;
                Ok(commands)
            })
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Has every worker serve a pod with its share of the listeners.
    pub fn start(
        &self,
        context: &Arc<PodContext>,
        listeners: Vec<PodListeners>,
        phase: &PhaseWatch,
        alive: &mpsc::Sender<()>,
    ) {
        for (worker, listeners) in self.0.iter().zip(listeners) {
            let (context, phase, alive) = (Arc::clone(context), phase.clone(), alive.clone());
            if worker.send(Start { context, listeners, phase, alive }).is_err() {
                error!("a worker thread is gone");
            }
        }
    }
}

fn run(mut starts: mpsc::UnboundedReceiver<Start>) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error!(%error, "a worker thread has no runtime"),
    };
    LocalSet::new().block_on(&runtime, async {
        while let Some(Start { context, listeners, phase, alive }) = starts.recv().await {
            tokio::task::spawn_local(async move {
                proxy::serve_pod(context, listeners, phase).await;
                drop(alive);
            });
        }
    });
}
