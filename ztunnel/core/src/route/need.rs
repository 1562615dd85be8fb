// SPDX-License-Identifier: Apache-2.0
//! What a decision lacks, and what it is told when it is asked again.

use std::net::IpAddr;

use super::Refusal;
use crate::Name;

/// What has to be found out before a decision can be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// What this is, by the name that the control plane knows it by: `network/ip` or `namespace/hostname`.
    Resource(Name),
    /// The addresses of this host.
    Addresses(Name),
}

/// What was found out besides the mesh. By default nothing, and the mesh is known as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The names that the control plane was asked for: what the mesh still lacks of them does not exist. `None`: the mesh is
    /// known as a whole.
    pub asked: Option<&'a [Name]>,
    /// Hosts with their addresses; none where a host has none or its name server did not answer.
    pub resolved: &'a [(Name, Vec<IpAddr>)],
}

impl Known<'_> {
    /// The mesh lacks something: go on without it, or ask first?
    pub(super) fn settle(&self, name: impl FnOnce() -> String) -> Result<(), Need> {
        let Some(asked) = self.asked else { return Ok(()) };
        let name: Name = name().into();
        if asked.contains(&name) { Ok(()) } else { Err(Need::Resource(name)) }
    }

    /// The addresses of a host.
    pub(super) fn addresses(&self, host: &Name) -> Result<&[IpAddr], Need> {
        let found = self.resolved.iter().find(|(known, _)| known == host);
        found.map(|(_, addresses)| &**addresses).ok_or_else(|| Need::Addresses(Name::clone(host)))
    }
}

/// Why a decision ends without a route.
#[derive(Debug)]
pub(super) enum Stop {
    Need(Need),
    Refuse(Refusal),
}

impl From<Need> for Stop {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}
