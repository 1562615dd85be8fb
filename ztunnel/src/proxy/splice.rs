// SPDX-License-Identifier: Apache-2.0
//! Moves bulk between two TCP sockets inside the kernel, through a pipe (`splice(2)`): nothing is copied to this process.
//!
//! Only between sockets that are not on the fast path: `splice` sees a socket's TCP queue alone, and would wait for ever for
//! what was redirected. Small messages are not worth it: they cost two system calls either way, and a pipe besides.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tracing::debug;

/// Bytes of one move, and of a pipe.
const MOVE: usize = 256 << 10;
/// So many moves in a row below this size: it is no bulk any more.
const SMALL: usize = 16 << 10;
const SMALL_MOVES: u32 = 8;
/// Pipes that a thread keeps for the next bulk.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Empty whenever it is spare.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A user over its limit of pipe pages gets smaller ones: slower, not wrong.
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(MOVE).unwrap_or(i32::MAX))).ok();
        Ok(Self { read, write })
    }

    fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARES {
                spare.push(self);
            }
        });
    }
}

/// Why moving stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The end of input was reached.
    End,
    /// What comes now is small, or cannot be moved: copy.
    Small,
}

/// Moves what comes `from` one socket `to` the other until it ends or is no bulk any more, and counts it.
///
/// # Errors
/// A socket failed. What was already taken from one and not given to the other is lost, as it would be in a buffer.
///
/// # Cancel safety
/// None: dropped half-way, what is in the pipe is lost. A relay that is dropped resets both sockets.
pub(super) async fn bulk(from: &TcpStream, to: &TcpStream, count: impl Fn(usize)) -> io::Result<Stopped> {
    let pipe = match Pipe::take() {
        Ok(pipe) => pipe,
        // Out of descriptors is no reason to end a connection: its bytes can be copied.
        Err(error) => {
            debug!(%error, "no pipe for bulk, copying");
            return Ok(Stopped::Small);
        }
    };
    let mut small = 0;
    loop {
        from.readable().await?;
        let taken = match from.try_io(Interest::READABLE, || moved(from, &pipe.write, MOVE)) {
            Ok(0) => {
                pipe.give_back();
                return Ok(Stopped::End);
            }
            Ok(taken) => taken,
            // The pipe is empty, so that it is the socket that has nothing.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        count(taken);
        let mut left = taken;
        while left > 0 {
            to.writable().await?;
            match to.try_io(Interest::WRITABLE, || moved(&pipe.read, to, left)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(given) => left -= given,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        small = if taken < SMALL { small + 1 } else { 0 };
        if small >= SMALL_MOVES {
            pipe.give_back();
            return Ok(Stopped::Small);
        }
    }
}

fn moved(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(&from, None, &to, None, most, flags) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (left, (right, _)) =
            tokio::try_join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept()).unwrap();
        (left, right)
    }

    #[tokio::test]
    async fn bulk_is_moved_whole_and_counted() {
        let ((mut client, from), (to, mut server)) = (pair().await, pair().await);
        let sent: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let reader = tokio::spawn(async move {
            let mut found = Vec::new();
            server.read_to_end(&mut found).await.unwrap();
            found
        });
        let counted = std::cell::Cell::new(0);
        // Whatever the kernel's portions are: small ones end the bulk, not the stream.
        while bulk(&from, &to, |n| counted.set(counted.get() + n)).await.unwrap() != Stopped::End {}
        drop(to);
        assert_eq!(counted.get(), expected.len());
        assert!(reader.await.unwrap() == expected);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_receiver_that_is_gone_is_an_error() {
        let ((mut client, from), (to, server)) = (pair().await, pair().await);
        drop(server);
        // More than any socket buffers hold.
        let writer = tokio::spawn(async move { client.write_all(&vec![1; 64 << 20]).await });
        let failed = loop {
            match bulk(&from, &to, |_| {}).await {
                Ok(Stopped::Small) => {}
                Ok(Stopped::End) => break false,
                Err(_) => break true,
            }
        };
        assert!(failed);
        drop(from);
        writer.await.unwrap().unwrap_err();
    }
}
