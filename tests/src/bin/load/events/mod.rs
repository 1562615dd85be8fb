// SPDX-License-Identifier: Apache-2.0
//! The loads event-driven: one thread, edge-triggered epoll, as nginx, Envoy, Go, Node and tokio do it.
//!
//! [`Ready`] remembers which sockets may still move, so that each gets its turn.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

pub(crate) mod exchange;
pub(crate) mod stream;

/// Which sockets are worth trying.
#[derive(Debug)]
pub(crate) struct Ready {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    flags: Vec<bool>,
    /// The other end has said that it sends no more.
    ended: Vec<bool>,
    queue: Vec<usize>,
}

impl Ready {
    pub(crate) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); 256],
            flags: Vec::new(),
            ended: Vec::new(),
            queue: Vec::new(),
        })
    }

    /// Watches a socket under a number; it is worth trying at once. Closing it ends the watch.
    pub(crate) fn watch(&mut self, socket: impl AsFd, number: usize) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(socket, EpollEvent::new(flags, number as u64)).context("epoll: add")?;
        if self.flags.len() <= number {
            self.flags.resize(number + 1, false);
            self.ended.resize(number + 1, false);
        }
        self.ended[number] = false;
        self.mark(number);
        Ok(())
    }

    /// The socket is worth another try.
    pub(crate) fn mark(&mut self, number: usize) {
        if let Some(flag @ false) = self.flags.get_mut(number) {
            *flag = true;
            self.queue.push(number);
        }
    }

    /// After a short read: there is no more, unless the end is behind it, for which no other edge comes.
    pub(crate) fn short(&mut self, number: usize) {
        if self.ended.get(number) == Some(&true) {
            self.mark(number);
        }
    }

    /// Waits until some socket may move, at most for `patience`; swaps the numbers into `turn`.
    pub(crate) fn wait(&mut self, patience: Duration, turn: &mut Vec<usize>) -> Result<()> {
        if self.queue.is_empty() && patience < Duration::from_millis(20) {
            // epoll counts in milliseconds, a fixed rate does not.
            let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            again(ppoll(&mut fds, Some(TimeSpec::from_duration(patience)), None).map(drop))?;
        }
        let exact = self.queue.is_empty() && patience >= Duration::from_millis(20);
        let timeout = if exact { u16::try_from(patience.as_millis()).unwrap_or(1000).min(1000) } else { 0 };
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::from(timeout)) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other.context("epoll: wait")?,
        };
        for at in 0..count {
            let number = usize::try_from(self.events[at].data()).context("epoll: number")?;
            let end = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            if let (true, Some(ended)) =
                (self.events[at].events().intersects(end), self.ended.get_mut(number))
            {
                *ended = true;
            }
            self.mark(number);
        }
        turn.clear();
        std::mem::swap(turn, &mut self.queue);
        for &number in &*turn {
            self.flags[number] = false;
        }
        Ok(())
    }
}

fn again(outcome: nix::Result<()>) -> Result<()> {
    match outcome {
        Ok(()) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("ppoll"),
    }
}
