// SPDX-License-Identifier: Apache-2.0
//! The delta xDS session: what the control plane says about the mesh, and what it is answered.
//!
//! ```text
//!            connected                receive                 next_batch (repeat)      settle
//!  stream ──────────────▶ requests ────────────▶ [`Push`] ───────────────▶ changes ──────────▶ ACK or NACK
//!    ▲                                                                                          │
//!    └───────── wait, then dial again ◀── ended ◀───────────── the stream ends ◀────────────────┘
//! ```
//!
//! The shell moves bytes and applies changes; everything else is decided here.
//!
//! * [`session`]: subscriptions, versions, answers. [`push`]: one response on its way into the mesh.
//! * [`demand`]: names that are asked for one by one. [`backoff`]: when to dial again.
//! * [`decode`]: resources become changes. [`version`]: what is remembered of each. [`proto`]: the messages.
//!
//! Source: control-plane contract, sections 1.3 to 1.9.

pub mod backoff;
pub mod decode;
pub mod demand;
pub mod proto;
pub mod push;
pub mod session;
#[cfg(test)]
mod tests;
pub mod version;

pub use self::backoff::{Ending, Retry};
pub use self::decode::{Decoder, Kind, Reason, Rejected};
pub use self::demand::Asked;
pub use self::push::Push;
pub use self::session::{Mode, Received, Session, Settled};
