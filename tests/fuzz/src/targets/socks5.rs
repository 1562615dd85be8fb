// SPDX-License-Identifier: Apache-2.0
//! The SOCKS5 handshake of an application.

use ztunnel_core::socks5::{Handshake, Step, Target};

/// No handshake is longer: two bytes, 255 methods, four bytes, one, a name of 255 and a port.
const LONGEST: usize = 2 + 255 + 4 + 1 + 255 + 2;

pub(super) fn run(data: &[u8]) {
    let (mut handshake, mut wanted) = Handshake::start();
    let mut rest = data;
    let mut taken = 0;
    loop {
        assert!(wanted > 0, "a handshake that wants nothing goes on for ever");
        let Some((bytes, left)) = rest.split_at_checked(wanted) else { return };
        rest = left;
        taken += wanted;
        assert!(taken <= LONGEST, "{taken} bytes of handshake");
        match handshake.handle(bytes) {
            Step::Read(more) => wanted = more,
            Step::Reply(_, more) => wanted = more,
            Step::Connect(target) => {
                if let Target::Host(host, _) = target {
                    assert!(!host.is_empty() && host.len() <= 255);
                    assert!(host.bytes().all(|byte| byte.is_ascii_graphic()), "a name for the log: {host:?}");
                }
                return;
            }
            Step::Refuse(refusal) => {
                assert!(!refusal.to_string().is_empty());
                assert!(matches!(refusal.reply().len(), 0 | 2 | 10));
                return;
            }
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let greeting: &[u8] = &[5, 1, 0];
    let requests: [&[u8]; 5] = [
        &[5, 1, 0, 1, 10, 0, 0, 1, 0, 80],
        &[5, 1, 0, 3, 8, b'w', b'e', b'b', b'.', b's', b'h', b'o', b'p', 0, 80],
        &[5, 1, 0, 4, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80],
        &[5, 2, 0, 1, 10, 0, 0, 1, 0, 80],
        &[4, 1, 0, 80],
    ];
    requests.iter().map(|request| [greeting, request].concat()).collect()
}
