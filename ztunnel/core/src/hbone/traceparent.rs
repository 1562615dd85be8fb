// SPDX-License-Identifier: Apache-2.0
//! The `traceparent` header of W3C Trace Context: `00-<trace id>-<span id>-<flags>`, all in hex.

use std::fmt;

/// The header's name.
pub const HEADER: &str = "traceparent";

/// Where the fields lie in the 55 bytes of the header.
const LENGTH: usize = 55;
const DASHES: [usize; 3] = [2, 35, 52];

/// Which trace a stream belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The format's version; ours is 0.
    pub version: u8,
    /// The trace, one per application connection.
    pub trace_id: u128,
    /// The caller's part of it.
    pub span_id: u64,
    /// Sampling; ours is 0.
    pub flags: u8,
}

impl TraceParent {
    /// A trace of its own, made of three words of randomness.
    pub fn new(entropy: &mut dyn FnMut() -> u64) -> Self {
        let (high, low, span_id) = (entropy(), entropy(), entropy());
        Self { version: 0, trace_id: (u128::from(high) << 64) | u128::from(low), span_id, flags: 0 }
    }
}

/// Reads the header; anything but 55 bytes of the one form is none.
pub fn parse(text: &str) -> Option<TraceParent> {
    let bytes = text.as_bytes();
    if bytes.len() != LENGTH || DASHES.iter().any(|&at| bytes[at] != b'-') {
        return None;
    }
    Some(TraceParent {
        version: u8::try_from(hex(&bytes[..2])?).ok()?,
        trace_id: hex(&bytes[3..35])?,
        span_id: u64::try_from(hex(&bytes[36..52])?).ok()?,
        flags: u8::try_from(hex(&bytes[53..])?).ok()?,
    })
}

/// Writes the header.
pub fn print(traceparent: &TraceParent) -> String {
    traceparent.to_string()
}

/// Digits only: `from_str_radix` would take a sign as well.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some((value << 4) | u128::from(digit))
    })
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}-{:032x}-{:016x}-{:02x}", self.version, self.trace_id, self.span_id, self.flags)
    }
}
