// SPDX-License-Identifier: Apache-2.0
//! What a ztunnel exposes: sample names and their labels. `deploy/` may ask for nothing else; a scenario holds the
//! table against a running node.

use std::collections::{BTreeMap, BTreeSet};

use ztunnel_core::report::families;

/// Labels that Prometheus gives to every series of a target.
pub const TARGET: &[&str] = &["instance", "job"];

/// Series that Prometheus itself makes for a target.
pub const SCRAPE: &[&str] = &["up", "scrape_duration_seconds", "scrape_samples_scraped"];

/// Every sample name with its labels.
#[must_use]
pub fn all() -> BTreeMap<String, BTreeSet<&'static str>> {
    let samples = families::ALL.iter().flat_map(|family| {
        family.samples().map(|(name, extra)| (name, family.labels.iter().copied().chain(extra).collect()))
    });
    samples.collect()
}
