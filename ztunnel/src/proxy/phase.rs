// SPDX-License-Identifier: Apache-2.0
//! The life of one pod's proxy: it runs, then it drains. To cut it, its tasks are dropped.

use tokio::sync::watch;

/// How far the end of a pod's proxy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepts connections.
    Running,
    /// Accepts none, lets the open ones finish, tells peers to go away.
    Draining,
    /// Everything still open is dropped.
    Cut,
}

/// Tells the tasks of one pod about its phase.
#[derive(Debug, Clone)]
pub struct PhaseWatch(watch::Receiver<Phase>);

impl PhaseWatch {
    /// A pod that runs, and the switch that ends it.
    pub fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Running);
        (sender, Self(receiver))
    }

    /// Returns once `phase` is reached. A pod whose switch is gone is cut.
    ///
    /// # Cancel safety
    /// Safe: a phase is never missed.
    pub async fn reached(&mut self, phase: Phase) {
        // Only fails when the switch is gone, which is the end of everything.
        drop(self.0.wait_for(|now| *now >= phase).await);
    }
}
