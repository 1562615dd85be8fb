// SPDX-License-Identifier: Apache-2.0
//! Received bytes until they are a whole request.

use anyhow::{Result, bail};

use crate::frame::{HEADER, Request};

/// Bytes of a request that is not complete yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole request, checked.
    pub(crate) fn next(&mut self) -> Result<Option<Request>> {
        let Some(header) = self.bytes.get(..HEADER) else { return Ok(None) };
        let Some(request) = Request::parse(header) else { bail!("not a request of ours") };
        let Some(whole) = self.bytes.get(..request.len) else { return Ok(None) };
        if !request.is(whole) {
            bail!("wrong bytes in a request");
        }
        self.bytes.drain(..request.len);
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_out_whole_however_they_arrive() {
        let want = Request { len: 100, answer_len: 64, close: false, seed: 5 };
        let (mut once, mut wire) = (Vec::new(), Vec::new());
        want.write(&mut once);
        wire.extend(&once);
        wire.extend(&once);
        for step in [1, 7, 100, 150, 200] {
            let mut inbox = Inbox::default();
            let mut seen = 0;
            for bytes in wire.chunks(step) {
                inbox.push(bytes);
                while let Some(request) = inbox.next().expect("right bytes") {
                    assert_eq!(request, want);
                    seen += 1;
                }
            }
            assert_eq!(seen, 2, "in steps of {step}");
        }
    }

    #[test]
    fn wrong_bytes_are_refused() {
        let mut inbox = Inbox::default();
        inbox.push(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(inbox.next().is_err());
    }
}
