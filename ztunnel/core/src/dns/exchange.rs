// SPDX-License-Identifier: Apache-2.0
//! One query towards the resolvers: who is asked when, and when to give up.
//!
//! Upstreams lose datagrams and die. A server is asked again long before its time is over, the next one soon after, and an
//! earlier one may still answer: whoever answers first is believed. What the slowest server has for its answer is not cut
//! short: after the last datagram there is a whole `timeout`.

use std::time::Duration;

use super::wire::Header;

/// How long the first round waits before it goes on.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Ask this server (by its place in the list).
    pub server: usize,
    /// Then wait this long before the next step.
    pub patience: Duration,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It is the answer.
    Answer,
    /// This server will not answer: another one might.
    Refusal,
}

/// Judges a response by its code, as stub resolvers do: a server that fails or refuses says nothing about the name.
#[must_use]
pub fn worth(header: Header) -> Worth {
    match header.rcode() {
        2 | 4 | 5 => Worth::Refusal,
        _ => Worth::Answer,
    }
}

/// The state of one query.
#[derive(Clone, Debug)]
pub struct Exchange {
    servers: usize,
    first: usize,
    rounds: u32,
    timeout: Duration,
    /// How many steps have been taken, those over servers that are out included.
    step: usize,
    /// Bit by server: it will not answer.
    out: u8,
}

impl Exchange {
    /// A query for `servers` servers (at most eight), beginning with number `first`.
    #[must_use]
    pub fn new(servers: usize, first: usize, rounds: u32, timeout: Duration) -> Self {
        Self { servers: servers.min(8), first, rounds, timeout, step: 0, out: 0 }
    }

    /// The next server to ask; `None`: all have been asked as often as they should, or none will answer.
    pub fn poll_try(&mut self) -> Option<Try> {
        let steps = self.servers * self.rounds as usize;
        while self.step < steps {
            let server = (self.first + self.step) % self.servers;
            let round = self.step / self.servers;
            self.step += 1;
            if self.is_out(server) {
                continue;
            }
            let more = (self.step..steps).any(|step| !self.is_out((self.first + step) % self.servers));
            let patience = FIRST_PATIENCE.saturating_mul(1 << round.min(8)).min(self.timeout);
            return Some(Try { server, patience: if more { patience } else { self.timeout } });
        }
        None
    }

    /// A server cannot be reached, or will not answer.
    pub fn handle_refusal(&mut self, server: usize) {
        self.out |= 1 << server;
    }

    /// Nobody is left who could answer.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        (0..self.servers).all(|server| self.is_out(server))
    }

    fn is_out(&self, server: usize) -> bool {
        self.out & (1 << server) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(mut exchange: Exchange) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| exchange.poll_try())
            .map(|next| (next.server, next.patience.as_secs()))
            .collect()
    }

    #[test]
    fn servers_are_asked_in_turn_and_the_last_has_its_whole_time() {
        let five = Duration::from_secs(5);
        assert_eq!(tries(Exchange::new(1, 0, 2, five)), [(0, 1), (0, 5)]);
        assert_eq!(tries(Exchange::new(2, 0, 2, five)), [(0, 1), (1, 1), (0, 2), (1, 5)]);
        assert_eq!(tries(Exchange::new(3, 2, 1, five)), [(2, 1), (0, 1), (1, 5)]);
        assert_eq!(tries(Exchange::new(1, 0, 5, five)), [(0, 1), (0, 2), (0, 4), (0, 5), (0, 5)]);
        assert_eq!(tries(Exchange::new(0, 0, 2, five)), []);
    }

    #[test]
    fn a_server_that_will_not_answer_is_not_asked_again() {
        let mut exchange = Exchange::new(2, 0, 2, Duration::from_secs(5));
        assert_eq!(exchange.poll_try().map(|next| next.server), Some(0));
        exchange.handle_refusal(0);
        assert!(!exchange.is_hopeless());
        assert_eq!(tries(exchange.clone()), [(1, 1), (1, 5)]);
        exchange.handle_refusal(1);
        assert!(exchange.is_hopeless() && tries(exchange).is_empty());
    }
}
