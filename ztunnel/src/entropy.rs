// SPDX-License-Identifier: Apache-2.0
//! Randomness for load balancing and trace ids. Not for secrets: keys come from the TLS library.

use std::cell::Cell;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

thread_local! {
    /// Seeded per thread by the standard library, from the kernel.
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// The next 64 random bits of this thread (SplitMix64).
pub fn entropy() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mut mixed = next;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}
