// SPDX-License-Identifier: Apache-2.0
//! Service ports and the ports they stand for, small enough to be kept for every endpoint.

use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Service port to target port; a target of 0 is a named port that every endpoint resolves itself.
///
/// Endpoints of one service mostly have the same ports, and a clone shares them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortMap(Arc<[(u16, u16)]>);

impl PortMap {
    /// The target of a service port, if the port is listed.
    #[must_use]
    pub fn target(&self, service_port: u16) -> Option<u16> {
        let found = self.0.binary_search_by_key(&service_port, |&(service, _)| service).ok()?;
        Some(self.0[found].1)
    }

    /// All pairs, by service port.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }

    /// Whether somebody else holds the same ones.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether no port is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for PortMap {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// Of a service port that occurs twice, the last one counts.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        let mut pairs: Vec<(u16, u16)> = pairs.into_iter().collect();
        pairs.reverse();
        pairs.sort_by_key(|&(service, _)| service);
        pairs.dedup_by_key(|&mut (service, _)| service);
        Self(pairs.into())
    }
}

impl Serialize for PortMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
