// SPDX-License-Identifier: Apache-2.0
//! Randomness for load balancing and trace ids. Not for secrets: keys come from the TLS library.

use std::cell::Cell;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

thread_local! {
    /// Seeded per thread by the standard library, from the kernel.
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// Sixteen bits that nobody can guess who has seen any number of others: for ids of DNS queries, which are all that keeps
/// strangers from answering. Every call has a keyed hash of its own, keyed by the kernel.
pub fn unpredictable() -> u16 {
    let [low, high, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The next 64 random bits of this thread.
pub fn entropy() -> u64 {
    STATE.with(|state| {
        let mut draws = Draws(state.get());
        let drawn = draws.draw();
        state.set(draws.0);
        drawn
    })
}

/// Random bits that can be drawn again in the same order, for a decision that is taken again (SplitMix64).
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// Draws that nobody else has.
    pub fn fresh() -> Self {
        Self(entropy())
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
