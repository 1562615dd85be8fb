// SPDX-License-Identifier: Apache-2.0
//! Keeps what an application has not read within its credit, from the sending side.
//!
//! Redirected bytes have no window: nothing stops a sender. The programs would pass what exceeds the credit to TCP, but
//! then the application had bytes in two queues (`ztunnel_common::verdict::must_go_on` says why it must not). So ztunnel
//! counts what it sent since the application was last seen with nothing to read, and asks before it sends more. A
//! connection that asks and answers is counted and hardly ever asks.
//!
//! The same for the end. A socket whose connection is over in both directions leaves the sockmap, and the kernel frees what
//! was redirected to it and not read. So ztunnel sends its FIN when the application has read everything, and when it has
//! itself read everything that was redirected to it (`Conn::closing`): then nothing is left to lose, whoever ends first.

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

    /// Whether the application has read everything that was redirected to it.
    pub fn is_drained(&self) -> bool {
        let kernel = self.fastpath.kernel.as_ref();
        !kernel.is_some_and(|kernel| kernel.has_unread(self.place).unwrap_or(false))
    }

    /// Has nothing redirected to us any more, and says up to where our own reading must come before we may end our
    /// direction.
    pub fn close_gate(&self) -> u64 {
        let kernel = self.fastpath.kernel.as_ref();
        kernel.and_then(|kernel| kernel.close_gate(self.place).ok()).unwrap_or(0)
    }
}
