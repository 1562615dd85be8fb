// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The shared structs have no padding: their size is the sum of their fields.

use crate::settings::Control;
use crate::values::{Conn, Flow, Own, Pending, PendingKey, Pod, Tally};

const _: () = {
    assert!(size_of::<Control>() == 5 * 4);
    assert!(size_of::<Pod>() == 2 * 4);
    assert!(size_of::<PendingKey>() == 8 + 2 * 4, "padding would be hashed");
    assert!(size_of::<Pending>() == 2 * 8 + 4 * 4);
    assert!(size_of::<Tally>() == 4 * 8 + 2 * 4);
    assert!(size_of::<Flow>() == 9 * 8 + size_of::<Tally>() + 2 * 4);
    assert!(size_of::<Conn>() == 2 * 8 + 2 * 4 + 2 * size_of::<Flow>());
    assert!(size_of::<Own>() == 3 * 8 + size_of::<PendingKey>() + 4 * 4 + 2 * size_of::<Tally>());
    assert!(align_of::<Conn>() == 8);
};

/// A value that may travel between the halves as bytes.
///
/// # Safety
/// The type has no padding and every bit pattern of it is valid.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "the promise itself is what has to be unsafe")]
pub unsafe trait Plain: Copy + Default + 'static {}

#[cfg(feature = "user")]
macro_rules! plain {
    ($($ty:ty),+) => {$(
        // SAFETY: integers only; the asserts above show that there is no padding.
        #[expect(unsafe_code, reason = "keeps the promise of `Plain`")]
        unsafe impl Plain for $ty {}
    )+};
}

#[cfg(feature = "user")]
plain!(u32, i32, u64, Control, Pod, PendingKey, Pending, Tally, Flow, Conn, Own);
