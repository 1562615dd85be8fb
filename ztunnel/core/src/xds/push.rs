// SPDX-License-Identifier: Apache-2.0
//! One response on its way into the mesh: decoded and applied in batches, so that neither takes long at once, and
//! so that never more than one batch of it exists twice.

use bytes::Bytes;

use super::decode::{Decoded, Decoder, Kind, Rejected};
use super::session::Mode;
use super::version::Version;
use crate::Name;
use crate::mesh::Change;

/// One response.
#[derive(Debug)]
pub struct Push {
    pub(super) kind: Kind,
    pub(super) nonce: String,
    pub(super) resources: std::vec::IntoIter<Bytes>,
    pub(super) removed: Vec<String>,
    pub(super) report: Report,
    place: usize,
    /// How many removals have been handed out.
    struck: usize,
    /// Aliases matter only to those who ask for names.
    mode: Mode,
}

/// What became of its resources.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) accepted: Vec<(Name, Version)>,
    pub(super) aliases: Vec<String>,
    pub(super) rejected: Vec<Rejected>,
}

impl Push {
    pub(super) fn new(
        kind: Kind,
        nonce: String,
        resources: Vec<Bytes>,
        removed: Vec<String>,
        mode: Mode,
    ) -> Self {
        let resources = resources.into_iter();
        Self { kind, nonce, resources, removed, report: Report::default(), place: 0, struck: 0, mode }
    }

    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many resources are still to be read, and how many names it removes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.resources.len(), self.removed.len())
    }

    /// Reads the next resources, at most `limit`; removals come last. None: there is nothing more.
    ///
    /// All policies of a response are one batch, whatever the limit: they take effect together.
    pub fn next_batch(&mut self, decoder: &mut Decoder, limit: usize) -> Option<Vec<Change>> {
        let limit = if self.kind == Kind::Authorization { usize::MAX } else { limit };
        let mut changes = Vec::with_capacity(limit.min(self.resources.len()));
        let mut taken = 0;
        while taken < limit
            && let Some(encoded) = self.resources.next()
        {
            taken += 1;
            changes.extend(self.read(decoder, encoded));
        }
        let removals = self.removed.iter().skip(self.struck).take(limit - taken);
        let before = changes.len();
        changes.extend(removals.map(|name| match self.kind {
            Kind::Address => Change::RemoveAddress(name.as_str().into()),
            Kind::Authorization => Change::RemovePolicy(name.as_str().into()),
        }));
        let struck = changes.len() - before;
        self.struck += struck;
        (taken + struck > 0).then_some(changes)
    }

    fn read(&mut self, decoder: &mut Decoder, encoded: Bytes) -> Option<Change> {
        let place = self.place;
        self.place += 1;
        match decoder.decode(self.kind, place, encoded) {
            Ok(Decoded { name, aliases, version, change }) => {
                self.report.accepted.push((name, version));
                if self.mode == Mode::OnDemand {
                    self.report.aliases.extend(aliases);
                }
                Some(change)
            }
            Err(rejected) => {
                self.report.rejected.push(*rejected);
                None
            }
        }
    }
}
