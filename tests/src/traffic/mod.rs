// SPDX-License-Identifier: Apache-2.0
//! Servers and clients that know every byte.
//!
//! [`Conn`] is a socket as event-driven applications use it: non-blocking, read until it would block, with a
//! deadline on every wait. (A blocking read may fail with `EAGAIN` while its socket is in a sockmap; what that does
//! to applications is the business of the scenarios about harm, not of all the others.) [`Pattern`] says which byte
//! belongs at which position; [`Server`] runs a handler per connection; [`stream`] has the exchanges; [`Pulse`] never stops and
//! knows its longest pause. [`edges`] is the
//! same through tokio, which reads by edges: a short read means "drained", and only a new edge makes it look again.

mod conn;
pub mod edges;
mod pattern;
mod pulse;
mod server;
pub mod stream;

pub use conn::Conn;
pub use pattern::{Chunks, Pattern};
pub use pulse::{Beats, Pulse};
pub use server::Server;
