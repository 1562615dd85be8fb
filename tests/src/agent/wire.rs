// SPDX-License-Identifier: Apache-2.0
//! ZDS packets, written by hand from the protocol's description: an oracle that shares no code with the product.

/// The node agent's answer to "who are you".
pub const HELLO: [u8; 2] = [0x08, 0x01];
/// Every pod that the agent knows has been named.
pub const SNAPSHOT_SENT: [u8; 2] = [0x1a, 0x00];

/// Serve this pod; its network namespace goes beside the packet.
#[must_use]
pub fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Vec<u8> {
    let info = [text(1, name), text(2, namespace), text(3, service_account)].concat();
    nested(1, &[text(1, uid), nested(2, &info)].concat())
}

/// The same without saying who the pod is, which the protocol forbids.
#[must_use]
pub fn add_without_info(uid: &str) -> Vec<u8> {
    nested(1, &text(1, uid))
}

/// The pod still exists.
#[must_use]
pub fn keep(uid: &str) -> Vec<u8> {
    nested(5, &text(1, uid))
}

/// Stop serving this pod. Its field has another number than everywhere else.
#[must_use]
pub fn del(uid: &str) -> Vec<u8> {
    nested(2, &text(2, uid))
}

/// Reads an answer: the error of an ack, empty for success. `None`: not an ack.
#[must_use]
pub fn ack(packet: &[u8]) -> Option<String> {
    let (1, body) = field(packet)? else { return None };
    if body.is_empty() {
        return Some(String::new());
    }
    let (1, error) = field(body)? else { return None };
    String::from_utf8(error.to_vec()).ok()
}

/// The only field of a message that has exactly one, length-delimited.
fn field(message: &[u8]) -> Option<(u8, &[u8])> {
    let (&tag, rest) = message.split_first()?;
    if tag & 7 != 2 {
        return None;
    }
    let (mut length, mut shift, mut rest) = (0_usize, 0, rest);
    loop {
        let (&byte, after) = rest.split_first()?;
        length |= usize::from(byte & 0x7f) << shift;
        rest = after;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (rest.len() == length).then_some((tag >> 3, rest))
}

fn text(number: u8, value: &str) -> Vec<u8> {
    nested(number, value.as_bytes())
}

fn nested(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = body.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or(0));
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_what_the_protocol_says() {
        assert_eq!(keep("u"), [0x2a, 0x03, 0x0a, 0x01, b'u']);
        assert_eq!(del("u"), [0x12, 0x03, 0x12, 0x01, b'u']);
        assert_eq!(
            add("u", "p", "n", "s"),
            [0x0a, 0x0e, 0x0a, 1, b'u', 0x12, 0x09, 0x0a, 1, b'p', 0x12, 1, b'n', 0x1a, 1, b's']
        );
    }

    #[test]
    fn acks_are_read_with_and_without_an_error() {
        assert_eq!(ack(&[0x0a, 0x00]), Some(String::new()));
        assert_eq!(ack(&nested(1, &text(1, &"x".repeat(300)))), Some("x".repeat(300)));
        assert_eq!(ack(&[0x08, 0x01]), None);
        assert_eq!(ack(&[]), None);
    }
}
