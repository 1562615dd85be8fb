// SPDX-License-Identifier: Apache-2.0
//! Keeps what an application has not read within its credit, from the sending side.
//!
//! Redirected bytes have no window: nothing stops a sender. The programs would pass what exceeds the credit to TCP, but
//! then the application had bytes in two queues (`ztunnel_common::verdict::must_go_on` says why it must not). So ztunnel
//! counts what it sent since the application was last seen with nothing to read, and asks before it sends more. A
//! connection that asks and answers is counted and hardly ever asks.

use std::sync::Arc;

use ztunnel_common::verdict::{CREDIT_BYTES_TO_APPLICATION, CREDIT_MESSAGES};

use super::Inner;
use super::pair::Place;

/// The valve of one connection, on ztunnel's socket towards the application.
#[derive(Debug)]
pub struct Valve {
    fastpath: Arc<Inner>,
    place: Place,
    bytes: u64,
    messages: u64,
}

impl Valve {
    pub(super) fn new(fastpath: Arc<Inner>, place: Place) -> Self {
        Self { fastpath, place, bytes: 0, messages: 0 }
    }

    /// Whether one more message of `size` bytes may be sent now. `false`: the application reads slowly; ask again later.
    pub fn admits(&mut self, size: usize) -> bool {
        let size = size as u64;
        let fits = self.bytes + size <= CREDIT_BYTES_TO_APPLICATION && self.messages < CREDIT_MESSAGES;
        if !fits {
            // A kernel that does not answer has no credit to lose: its programs pass the message to TCP.
            let unread = self
                .fastpath
                .kernel
                .as_ref()
                .is_some_and(|kernel| kernel.has_unread(self.place).unwrap_or(false));
            if unread {
                return false;
            }
            (self.bytes, self.messages) = (0, 0);
        }
        self.bytes += size;
        self.messages += 1;
        true
    }
}
