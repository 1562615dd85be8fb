// SPDX-License-Identifier: Apache-2.0
//! HBONE's CONNECT request as typed values, to and from HTTP parts.
//!
//! A stream is asked for with `CONNECT <authority>` and three headers, one module each. Nothing in the
//! headers is trusted: the peer's identity is its certificate, and what is read here only labels.
//!
//! Invariant: whatever a peer writes is either read whole, or treated as absent, or refused with a status.

pub mod baggage;
pub mod connect;
pub mod forwarded;
pub mod proxy_protocol;
pub mod traceparent;

pub use self::baggage::Baggage;
pub use self::connect::{ConnectRefusal, ConnectRequest};
pub use self::forwarded::Forwarded;
pub use self::traceparent::TraceParent;

#[cfg(test)]
mod tests;
