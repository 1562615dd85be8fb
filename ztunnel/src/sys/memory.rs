// SPDX-License-Identifier: Apache-2.0
//! The allocator's dealings with the kernel.

/// Gives memory that is free but kept back to the kernel.
pub fn release_free() {
    // SAFETY: takes no pointer and changes nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Gives memory back to the kernel when what needed it is gone: the allocator keeps it for the next peak by itself.
#[derive(Debug, Default)]
pub struct Ebb {
    /// The most there was since memory was last given back.
    peak: usize,
}

impl Ebb {
    /// A fall of this many connections is worth the walk over the heap.
    const WORTH: usize = 500;

    /// So many connections are open now. True: the peak is over, release memory.
    pub fn is_due(&mut self, open: usize) -> bool {
        let over = open <= self.peak / 2 && self.peak - open >= Self::WORTH;
        self.peak = if over { open } else { self.peak.max(open) };
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_once_after_each_peak() {
        let mut ebb = Ebb::default();
        let seen: Vec<bool> = [10, 400, 0, 2000, 1500, 900, 100, 90, 2000, 0, 0]
            .into_iter()
            .map(|open| ebb.is_due(open))
            .collect();
        let due: Vec<usize> = seen.iter().enumerate().filter(|(_, due)| **due).map(|(at, _)| at).collect();
        assert_eq!(due, [5, 6, 9]);
    }
}
