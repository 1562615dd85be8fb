// SPDX-License-Identifier: Apache-2.0
//! What goes over the wire: requests and responses whose every byte can be checked, and a checkable stream.
//!
//! A message is a header of 16 bytes and a payload that is a slice of one fixed table, chosen by the seed:
//! filling and checking cost one copy and one comparison. Lost, repeated, swapped or foreign bytes are seen.

use std::sync::LazyLock;

/// Header: request length (top bit: close afterwards), response length, seed.
pub(crate) const HEADER: usize = 16;
/// The longest message.
pub(crate) const MAX: usize = 1 << 20;
/// Seeds choose where in the table a payload begins.
const SHIFT: usize = 4093;
const CLOSE: u32 = 1 << 31;
/// A response is not its own request: its seed differs by this.
const ANSWER: u64 = 0x5bd1_e995_c6a4_a793;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..MAX + SHIFT)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
});

fn payload(seed: u64, len: usize) -> &'static [u8] {
    let at = usize::try_from(seed % SHIFT as u64).unwrap_or(0);
    &TABLE[at..at + len]
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) len: usize,
    pub(crate) answer_len: usize,
    pub(crate) close: bool,
    pub(crate) seed: u64,
}

impl Request {
    /// Reads a header; `None` if it cannot be one of ours.
    pub(crate) fn parse(header: &[u8]) -> Option<Self> {
        let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let (first, answer) = (word(0)?, word(4)?);
        let seed = u64::from_be_bytes(header.get(8..HEADER)?.try_into().ok()?);
        let request = Self {
            len: usize::try_from(first & !CLOSE).ok()?,
            answer_len: usize::try_from(answer).ok()?,
            close: first & CLOSE != 0,
            seed,
        };
        let fits = |len: usize| (HEADER..=MAX).contains(&len);
        (fits(request.len) && fits(request.answer_len)).then_some(request)
    }

    /// Writes the whole request into `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let close = if self.close { CLOSE } else { 0 };
        fill(out, [word(self.len) | close, word(self.answer_len)], self.seed, self.len);
    }

    /// Writes the whole response into `out`.
    pub(crate) fn write_answer(&self, out: &mut Vec<u8>) {
        fill(out, [word(self.answer_len), 0], self.seed ^ ANSWER, self.answer_len);
    }

    /// True if `bytes` are this request, whole and unchanged.
    pub(crate) fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len && bytes.get(HEADER..) == Some(payload(self.seed, self.len - HEADER))
    }

    /// True if `bytes` are the response to this request, whole and unchanged.
    pub(crate) fn is_answered_by(&self, bytes: &[u8]) -> bool {
        let seed = self.seed ^ ANSWER;
        bytes.len() == self.answer_len
            && bytes.get(..4) == Some(&word(self.answer_len).to_be_bytes())
            && bytes.get(8..HEADER) == Some(&seed.to_be_bytes())
            && bytes.get(HEADER..) == Some(payload(seed, self.answer_len - HEADER))
    }
}

fn word(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX >> 1)
}

fn fill(out: &mut Vec<u8>, words: [u32; 2], seed: u64, len: usize) {
    out.clear();
    out.extend(words[0].to_be_bytes());
    out.extend(words[1].to_be_bytes());
    out.extend(seed.to_be_bytes());
    out.extend(payload(seed, len - HEADER));
}

/// A piece of the endless stream, from byte `at`, at most `len` long and never empty.
pub(crate) fn stream(at: u64, len: usize) -> &'static [u8] {
    let from = usize::try_from(at % MAX as u64).unwrap_or(0);
    &TABLE[from..MAX.min(from + len)]
}

/// True if `bytes` are the endless stream's from byte `at`.
pub(crate) fn is_stream(mut at: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let want = stream(at, bytes.len());
        let (now, later) = bytes.split_at(want.len());
        if now != want {
            return false;
        }
        at += want.len() as u64;
        bytes = later;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(seed: u64) -> Request {
        Request { len: 64, answer_len: 1024, close: seed.is_multiple_of(2), seed }
    }

    #[test]
    fn a_request_survives_the_wire() {
        for seed in [0, 1, u64::MAX] {
            let mut bytes = Vec::new();
            request(seed).write(&mut bytes);
            let read = Request::parse(&bytes).expect("a header");
            assert_eq!(read, request(seed));
            assert!(read.is(&bytes));
        }
    }

    #[test]
    fn changed_short_and_foreign_bytes_are_seen() {
        let (mut asked, mut answer) = (Vec::new(), Vec::new());
        request(7).write(&mut asked);
        request(7).write_answer(&mut answer);
        assert!(request(7).is_answered_by(&answer));
        assert!(!request(8).is_answered_by(&answer));
        assert!(!request(7).is_answered_by(&answer[..1023]));
        for at in [0, 9, 500] {
            answer[at] ^= 1;
            assert!(!request(7).is_answered_by(&answer), "{at}");
            answer[at] ^= 1;
        }
        asked[40] ^= 1;
        assert!(!request(7).is(&asked));
    }

    #[test]
    fn a_header_out_of_bounds_is_refused() {
        assert_eq!(Request::parse(&[0; HEADER]), None);
        assert_eq!(Request::parse(&[0xff; HEADER]), None);
        assert_eq!(Request::parse(&[0; 3]), None);
    }

    #[test]
    fn the_stream_goes_round_and_is_checked() {
        let at = MAX as u64 - 3;
        let mut bytes = stream(at, 100).to_vec();
        assert_eq!(bytes.len(), 3);
        bytes.extend(stream(at + 3, 100));
        assert!(is_stream(at, &bytes));
        assert!(!is_stream(at + 1, &bytes));
    }
}
