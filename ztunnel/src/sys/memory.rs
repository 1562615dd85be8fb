// SPDX-License-Identifier: Apache-2.0
//! The allocator's dealings with the kernel.

/// Gives memory that is free but kept back to the kernel.
pub fn release_free() {
    // SAFETY: takes no pointer and changes nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
