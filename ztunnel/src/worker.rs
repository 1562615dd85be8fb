// SPDX-License-Identifier: Apache-2.0
//! The threads that carry traffic. They share nothing: each has its own runtime, its own listeners in every pod (the
//! kernel spreads connections over them), its own tunnels. A connection lives on one thread, from accept to close; only
//! a tunnel that was just accepted may move, to the thread that has least to do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tracing::error;

use crate::dns;
use crate::proxy::balance::{Balance, Inbox};
use crate::proxy::phase::PhaseWatch;
use crate::proxy::socket::Listener;
use crate::proxy::{self, PodContext};

/// The listeners of one pod for one worker.
#[derive(Debug, Default)]
pub struct PodListeners {
    /// 15001; `None`: nothing that the pod sends is redirected to us.
    pub outbound: Option<Listener>,
    /// 15006; `None`: nothing that it receives is.
    pub plaintext: Option<Listener>,
    /// 15008; `None`: no tunnel ends here.
    pub hbone: Option<Listener>,
    /// 15080.
    pub socks5: Option<Listener>,
    /// 15053.
    pub dns: dns::Listeners,
}

impl PodListeners {
    /// The same listeners for another worker.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clone = |listener: &Option<Listener>| listener.as_ref().map(Listener::try_clone).transpose();
        Ok(Self {
            outbound: clone(&self.outbound)?,
            plaintext: clone(&self.plaintext)?,
            hbone: clone(&self.hbone)?,
            socks5: clone(&self.socks5)?,
            dns: self.dns.try_clone()?,
        })
    }
}

/// A pod that a worker is to serve.
#[derive(Debug)]
struct Start {
    context: Arc<PodContext>,
    listeners: PodListeners,
    balance: (Balance, Inbox),
    phase: PhaseWatch,
    /// Dropped when the worker has nothing of the pod any more.
    alive: mpsc::Sender<()>,
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<mpsc::UnboundedSender<Start>>,
    runtimes: Vec<Handle>,
    /// How much each of them has to do.
    loads: Arc<[AtomicUsize]>,
}

impl Workers {
    /// Starts `count` threads. They end when the last handle is dropped.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start_threads(count: usize) -> io::Result<Self> {
        let (mut threads, mut runtimes) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let (commands, receiver) = mpsc::unbounded_channel();
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtimes.push(runtime.handle().clone());
            thread::Builder::new().name(format!("ztunnel-{index}")).spawn(move || run(&runtime, receiver))?;
            threads.push(commands);
        }
        Ok(Self { threads, runtimes, loads: (0..count).map(|_| AtomicUsize::new(0)).collect() })
    }

    /// The runtime of each.
    pub fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Connections, streams and tunnels that are open, of all pods.
    pub fn busy(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// Has every worker serve a pod with its share of the listeners.
    pub fn start(
        &self,
        context: &Arc<PodContext>,
        listeners: Vec<PodListeners>,
        phase: &PhaseWatch,
        alive: &mpsc::Sender<()>,
    ) {
        let places = Balance::for_workers(&self.loads);
        for ((worker, listeners), balance) in self.threads.iter().zip(listeners).zip(places) {
            let (context, phase, alive) = (Arc::clone(context), phase.clone(), alive.clone());
            if worker.send(Start { context, listeners, balance, phase, alive }).is_err() {
                error!("a worker thread is gone");
            }
        }
    }
}

impl Workers {
    /// Has one worker serve a pod alone.
    pub fn start_alone(
        &self,
        context: &Arc<PodContext>,
        listeners: PodListeners,
        phase: &PhaseWatch,
        alive: &mpsc::Sender<()>,
    ) {
        let (context, phase, alive) = (Arc::clone(context), phase.clone(), alive.clone());
        let start = Start { context, listeners, balance: Balance::alone(&self.loads), phase, alive };
        if self.threads.first().is_none_or(|worker| worker.send(start).is_err()) {
            error!("a worker thread is gone");
        }
    }
}

fn run(runtime: &Runtime, mut starts: mpsc::UnboundedReceiver<Start>) {
    LocalSet::new().block_on(runtime, async {
        while let Some(Start { context, listeners, balance, phase, alive }) = starts.recv().await {
            tokio::task::spawn_local(async move {
                proxy::serve_pod(context, listeners, balance, phase).await;
                drop(alive);
            });
        }
    });
}
