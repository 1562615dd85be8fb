// SPDX-License-Identifier: Apache-2.0
//! What the node still waits for before it is ready.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The tasks that hold readiness back, by name.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// Holds readiness back until [`done`](Self::done).
    pub fn hold(&self, task: &'static str) {
        self.0.lock().insert(task);
    }

    /// The task no longer holds readiness back.
    pub fn done(&self, task: &'static str) {
        self.0.lock().remove(task);
    }

    /// What is still awaited, sorted. Empty: ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.lock().iter().copied().collect()
    }
}
