// SPDX-License-Identifier: Apache-2.0
//! Policies that a pod names and that have not arrived: counted by connection, logged once in a while.
//!
//! Whether such a pod lets anybody in is a setting: [`ztunnel_core::authz::Unknown`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::warn;
use ztunnel_core::Name;
use ztunnel_core::authz::{Because, News, Verdict};

use crate::mesh::LocalPod;

/// What is known of the unknown.
#[derive(Debug, Default)]
pub struct UnknownPolicies {
    skipped: AtomicU64,
    denied: AtomicU64,
    news: Mutex<News>,
}

/// Connections that were judged without a policy that their pod names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// The other policies decided.
    pub skipped: u64,
    /// They were denied for that.
    pub denied: u64,
}

impl UnknownPolicies {
    /// A connection to `pod` was judged for the first time.
    pub fn met(&self, pod: &LocalPod, verdict: &Verdict) {
        if verdict.missing.is_empty() {
            return;
        }
        let denied = matches!(verdict.because, Because::Unknown(_));
        let count = if denied { &self.denied } else { &self.skipped };
        count.fetch_add(1, Ordering::Relaxed);
        let workload: Name = pod.to_string().into();
        for policy in &verdict.missing {
            if self.news.lock().is_news(&workload, policy, Instant::now()) {
                if denied {
                    warn!(%policy, %workload, "denying connections because of unknown policy {policy}");
                } else {
                    warn!(%policy, %workload, "skipping unknown policy {policy}");
                }
            }
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        Counts { skipped: self.skipped.load(Ordering::Relaxed), denied: self.denied.load(Ordering::Relaxed) }
    }
}
