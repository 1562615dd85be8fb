// SPDX-License-Identifier: Apache-2.0
//! Which byte belongs at which position of a stream: a generator that can be asked anywhere, so both ends can
//! check everything without keeping anything.

/// Bytes of a stream, by its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    /// Writes the bytes from position `at` on.
    pub fn fill(self, at: u64, out: &mut [u8]) {
        let mut position = at;
        let mut out = out;
        while !out.is_empty() {
            let word = mix(self.0 ^ (position >> 3)).to_le_bytes();
            let skip = usize::from(position.to_le_bytes()[0] & 7);
            let length = out.len().min(8 - skip);
            let (now, rest) = out.split_at_mut(length);
            now.copy_from_slice(&word[skip..skip + length]);
            out = rest;
            position += length as u64;
        }
    }

    /// Position of the first byte that does not belong there, if any.
    #[must_use]
    pub fn first_wrong(self, at: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = vec![0; bytes.len()];
        self.fill(at, &mut expected);
        let wrong = expected.iter().zip(bytes).position(|(expected, found)| expected != found)?;
        Some(at + wrong as u64)
    }
}

/// Sizes of writes and reads: odd ones, small ones, some large.
#[derive(Debug, Clone)]
pub struct Chunks(u64);

impl Chunks {
    /// A sequence by its seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next size, from 1 to `largest`.
    pub fn next(&mut self, largest: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        let random = mix(self.0);
        let limit = match random & 7 {
            0 => 16,
            1 | 2 => 1500,
            3 => 4097,
            _ => 70_001,
        };
        let size = usize::try_from((random >> 8) % limit).unwrap_or(0) | 1;
        size.min(largest.max(1))
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_a_stream_gives_the_same_bytes() {
        let pattern = Pattern(7);
        let mut whole = [0; 100];
        pattern.fill(3, &mut whole);
        for cut in 0..whole.len() {
            let (mut left, mut right) = (vec![0; cut], vec![0; whole.len() - cut]);
            pattern.fill(3, &mut left);
            pattern.fill(3 + cut as u64, &mut right);
            assert_eq!([left, right].concat(), whole);
        }
    }

    #[test]
    fn one_wrong_byte_is_found_at_its_position() {
        let pattern = Pattern(1);
        let mut bytes = [0; 64];
        pattern.fill(1000, &mut bytes);
        assert_eq!(pattern.first_wrong(1000, &bytes), None);
        bytes[10] ^= 1;
        assert_eq!(pattern.first_wrong(1000, &bytes), Some(1010));
        assert!(Pattern(2).first_wrong(1000, &bytes).is_some());
    }

    #[test]
    fn chunks_are_within_their_limit_and_of_many_sizes() {
        let mut chunks = Chunks::new(1);
        let sizes: Vec<usize> = (0..1000).map(|_| chunks.next(65_536)).collect();
        assert!(sizes.iter().all(|size| (1..=65_536).contains(size)));
        assert!(sizes.iter().any(|size| *size < 16) && sizes.iter().any(|size| *size > 50_000));
    }
}
