// SPDX-License-Identifier: Apache-2.0
//! One copy of every name: a mesh of many workloads repeats few namespaces, nodes and accounts.

use std::collections::HashSet;

use crate::Name;

/// The names seen so far.
#[derive(Debug, Default)]
pub struct Names(HashSet<Name>);

impl Names {
    /// The one copy of this name.
    pub fn intern(&mut self, text: &str) -> Name {
        if let Some(known) = self.0.get(text) {
            return Name::clone(known);
        }
        let name = Name::from(text);
        self.0.insert(Name::clone(&name));
        name
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets the names that nobody else holds.
    pub fn shrink(&mut self) {
        self.0.retain(|name| Name::strong_count(name) > 1);
    }
}
