// SPDX-License-Identifier: Apache-2.0
//! Domain names on the wire: labels with their lengths, ended by an empty one (RFC 1035, section 3.1).

use std::fmt::Write as _;

/// Bytes of a name on the wire, its end included (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Bytes of a label.
const MAX_LABEL: usize = 63;

/// Reads a name that is written out: one that points elsewhere is none here. Gives the bytes it takes, its end included.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => return (at < MAX_NAME).then_some(at + 1),
            label @ 1..=MAX_LABEL => at += 1 + label,
            _ => return None,
        }
    }
}

/// Steps over a name that may end in a pointer (RFC 1035, section 4.1.4). Gives the bytes it takes where it stands.
#[must_use]
pub fn skip(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => return (at < MAX_NAME).then_some(at + 1),
            label @ 1..=MAX_LABEL => at += 1 + label,
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// The labels of a written-out name.
fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (&length, after) = rest.split_first()?;
        let (label, after) = after.split_at_checked(length.into())?;
        rest = after;
        (!label.is_empty()).then_some(label)
    })
}

/// The name as the mesh writes names: lower case, dots between labels, none at the end. `None` if it has characters that
/// no host name has, or is the root: then the mesh does not know it.
#[must_use]
pub fn host(wire: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(wire.len());
    for label in labels(wire) {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' => text.push(byte.into()),
                b'A'..=b'Z' => text.push(byte.to_ascii_lowercase().into()),
                _ => return None,
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The name for people: a dot after every label, and odd characters as `\DDD` (RFC 1035, section 5.1).
#[must_use]
pub fn display(wire: &[u8]) -> String {
    let mut text = String::with_capacity(wire.len());
    for label in labels(wire) {
        for &byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', byte.into()]),
                b'!'..=b'~' => text.push(byte.into()),
                // Writing to a string cannot fail.
                _ => write!(text, "\\{byte:03}").unwrap_or_default(),
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// A host name on the wire. `None` if it does not fit: an empty label, or more bytes than a name or a label may have.
#[must_use]
pub fn encode(host: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(host.len() + 2);
    for label in host.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|&length| (1..=63).contains(&length))?;
        wire.push(length);
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_written_and_shown() {
        let wire = encode("WWW.example.com").unwrap();
        assert_eq!(wire, b"\x03WWW\x07example\x03com\x00");
        assert_eq!(length(&wire), Some(wire.len()));
        assert_eq!(host(&wire).as_deref(), Some("www.example.com"));
        assert_eq!(display(&wire), "WWW.example.com.");
        assert_eq!((host(b"\x00"), display(b"\x00").as_str()), (None, "."));
        assert_eq!(display(b"\x04a.\\\x07\x00"), "a\\.\\\\\\007.");
        assert_eq!(host(b"\x03a.b\x00"), None, "a dot inside a label is not one between labels");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = [&[63][..], &[b'a'; 63]].concat().repeat(4);
        for wrong in
            [&b""[..], b"\x03ab", b"\x01a", b"\x40", b"\xc0\x0c", b"\x80\x00", &[&long[..], b"\x00"].concat()]
        {
            assert_eq!(length(wrong), None, "{wrong:?}");
        }
        assert_eq!(skip(b"\x01a\xc0\x0c"), Some(4));
        assert_eq!(skip(b"\xc0"), None);
        for wrong in ["", "a..b", ".a", "a.", &"a".repeat(64), &"a.".repeat(130)] {
            assert_eq!(encode(wrong), None, "{wrong}");
        }
    }
}
