// SPDX-License-Identifier: Apache-2.0
//! What an application still sends to a peer that has said all and wants no more.
//!
//! Envoy ends a stream so: it sends the whole answer, END_STREAM, and then RST_STREAM(NO_ERROR), although the request goes
//! on. The answer must arrive whole. An application that is not read any more may never get to read it, and a socket that
//! is closed with something unread in it takes back what is still on the way. So what comes is taken and thrown away, until
//! the application ends, or has got everything.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

/// How often we look whether everything has arrived: at first, and at most.
const LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(256);

/// How the direction into the tunnel has ended, if it was not broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// The application ended it.
    All,
    /// The peer has said all it wants to say and wants no more: what it said must still arrive.
    Refused,
}

/// Reads with `poll_read`, which says how much it threw away, until nothing comes or `is_delivered`.
pub(super) async fn throw_away(
    mut poll_read: impl FnMut(&mut Context<'_>) -> Poll<io::Result<usize>>,
    is_delivered: impl Fn() -> bool,
) {
    let mut pause = LOOK;
    while !is_delivered() {
        match tokio::time::timeout(pause, poll_fn(&mut poll_read)).await {
            Ok(Ok(thrown)) if thrown > 0 => {}
            Ok(_ended) => return,
            Err(_nothing_came) => pause = (pause * 2).min(LONGEST_LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_application_or_when_everything_has_arrived() {
        let left = Cell::new(3_usize);
        let read = |_: &mut Context<'_>| {
            left.set(left.get().saturating_sub(1));
            Poll::Ready(Ok(left.get()))
        };
        throw_away(read, || false).await;
        assert_eq!(left.get(), 0, "read to the end");
        throw_away(|_| Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())), || false).await;
        let looks = Cell::new(0);
        let delivered = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        throw_away(|_| Poll::Pending, delivered).await;
        assert_eq!(looks.get(), 4);
    }
}
