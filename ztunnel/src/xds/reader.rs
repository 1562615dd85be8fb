// SPDX-License-Identifier: Apache-2.0
//! The thread that reads responses. It takes no lock that traffic needs, so it may run when nobody else wants to;
//! what it has read is applied by the thread that drives the session, which never has much to do at once.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::error;
use ztunnel_core::mesh::Change;
use ztunnel_core::xds::{Decoder, Push};

use crate::sys::priority;

/// Resources that are applied under one lock: some tens of microseconds.
pub(super) const BATCH: usize = 64;
/// Batches that may wait to be applied.
const AHEAD: usize = 16;

/// What the thread has done.
#[derive(Debug)]
pub(super) enum Step {
    /// Apply these.
    Batch(Vec<Change>),
    /// That was all of it.
    Done(Box<Done>),
}

/// A response that has been read.
#[derive(Debug)]
pub(super) struct Done {
    /// It, with its report.
    pub(super) push: Push,
    /// How long it took, waiting for batches to be applied included.
    pub(super) took: Duration,
}

/// Our end of the thread.
#[derive(Debug)]
pub(super) struct Reader {
    jobs: mpsc::Sender<Push>,
    steps: mpsc::Receiver<Step>,
}

impl Reader {
    /// Starts the thread. It ends with the last handle.
    pub(super) fn start() -> Self {
        let (jobs, receiver) = mpsc::channel(1);
        let (sender, steps) = mpsc::channel(AHEAD);
        let spawned = thread::Builder::new().name("ztunnel-xds".into()).spawn(move || run(receiver, &sender));
        if let Err(error) = spawned {
            // The channels are closed then: every response fails, is reported, and is asked for again.
            error!(%error, "no thread to read responses");
        }
        Self { jobs, steps }
    }

    /// Has a response read. One at a time.
    pub(super) fn read(&self, push: Push) {
        if self.jobs.try_send(push).is_err() {
            error!("the thread that reads responses is gone");
        }
    }

    /// What has been done next; none if the thread is gone.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn step(&mut self) -> Option<Step> {
        self.steps.recv().await
    }
}

fn run(mut jobs: mpsc::Receiver<Push>, steps: &mpsc::Sender<Step>) {
    priority::yield_to_others();
    let mut decoder = Decoder::default();
    while let Some(mut push) = jobs.blocking_recv() {
        let start = Instant::now();
        while let Some(batch) = push.next_batch(&mut decoder, BATCH) {
            if steps.blocking_send(Step::Batch(batch)).is_err() {
                return;
            }
        }
        decoder.tidy();
        let done = Done { push, took: start.elapsed() };
        if steps.blocking_send(Step::Done(Box::new(done))).is_err() {
            return;
        }
    }
}
