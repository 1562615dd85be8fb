// SPDX-License-Identifier: Apache-2.0
//! What a ztunnel exposes, sample by sample: from the table that makes the exposition, which a scenario holds against a node.

use std::collections::{BTreeMap, BTreeSet};

use ztunnel_core::report::families::ALL;

/// Labels that Prometheus gives to every series of a target.
pub(crate) const TARGET: &[&str] = &["instance", "job"];

/// Series that Prometheus itself makes for a target.
pub(crate) const SCRAPE: &[&str] = &["up", "scrape_duration_seconds", "scrape_samples_scraped"];

/// Every sample name with its labels.
pub(crate) fn all() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut all = BTreeMap::new();
    for family in ALL {
        for (name, extra) in family.samples() {
            all.insert(name, family.labels.iter().copied().chain(extra).collect());
        }
    }
    all
}
