// SPDX-License-Identifier: Apache-2.0
//! A second ztunnel of a node, as there is one for a while in every rolling update.

use std::time::Duration;

use anyhow::{Result, bail};

use super::process::Process;
use super::{READINESS, STATS, ask_in};
use crate::netns::Netns;
use crate::observe::{AccessEntry, Metrics};

/// A ztunnel beside that of the node. Dropping it kills it.
#[derive(Debug)]
pub struct Successor {
    pub(super) process: Process,
    pub(super) netns: Netns,
}

impl Successor {
    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// The deadline passed; the error has what it said.
    pub(super) fn wait_ready(&self, within: Duration) -> Result<()> {
        let ready = crate::wait::ok("readiness of the successor", within, || {
            let response = ask_in(&self.netns, READINESS, "GET", "/healthz/ready")?;
            if response.status != 200 {
                bail!("{} {}", response.status, response.body.trim());
            }
            Ok(())
        });
        ready.map_err(|error| error.context(format!("{}\n{}", self.stdout(), self.process.stderr())))
    }

    /// Its metrics.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&ask_in(&self.netns, STATS, "GET", "/metrics")?.body))
    }

    /// Its access log.
    #[must_use]
    pub fn access_log(&self) -> Vec<AccessEntry> {
        self.stdout().lines().filter_map(AccessEntry::parse).collect()
    }

    /// What it printed.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.process.stdout()
    }
}
