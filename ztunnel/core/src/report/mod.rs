// SPDX-License-Identifier: Apache-2.0
//! What is said about one connection: HTTP status, response flag, metric labels and log line.
//!
//! [`Outcome`] is the single table from anything that can end a connection to what the peer, the metrics
//! and the operator are told. The texts are a contract: people grep for them.
//!
//! Next: [`labels`] and [`families`] for metrics, [`access`] for the log. [`levels`]: which lines of the log are wanted.

pub mod access;
pub mod families;
pub mod labels;
pub mod levels;

use std::fmt;
use std::io;

pub use self::access::{AccessEntry, Datapath, Event, Party};
pub use self::labels::{Facts, LabelFilter, Labels, Reporter, Security};

use crate::hbone::ConnectRefusal;
use crate::route::Refusal;

/// `response_flags`: what went wrong, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// Nothing that counts as a failure.
    #[default]
    None,
    /// Forbidden by policy, at once or later.
    Deny,
    /// Everything that has no flag of its own.
    Connect,
    /// No TLS configuration could be made.
    TlsFailure,
    /// HTTP/2 broke.
    H2HandshakeFailure,
    /// The HBONE port did not answer: probably a NetworkPolicy.
    NetworkPolicy,
    /// There is no certificate for the source workload.
    IdentityError,
    /// A live connection lost its peer to the revocation list.
    CertRevoked,
}

impl Flag {
    /// Every flag, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// When it is given.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::None => "it went well, or was cut by a drain",
            Self::Deny => "a policy forbade it, at once or later",
            Self::Connect => {
                "everything without a flag of its own: no connection, no handshake, no endpoint, a copy that broke"
            }
            Self::TlsFailure => "no TLS configuration could be made",
            Self::H2HandshakeFailure => "HTTP/2 broke",
            Self::NetworkPolicy => "the HBONE port did not answer: probably a NetworkPolicy",
            Self::IdentityError => "there was no certificate for the source workload",
            Self::CertRevoked => "the certificate of a live connection was revoked",
        }
    }

    /// The flag as a label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// How a connection ended, or why it never began. Texts of foreign errors come without a prefix.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Both directions ended.
    Complete,
    /// Not a CONNECT request of HBONE.
    BadRequest(ConnectRefusal),
    /// There is no way to go.
    Refused(Refusal),
    /// A policy forbids it; the text is the verdict's.
    Denied(String),
    /// TCP did not connect.
    ConnectFailed {
        /// What the kernel said, or [`DEADLINE`].
        error: String,
        /// Our own deadline or the kernel's.
        timed_out: bool,
        /// Whether it was a tunnel's connection.
        hbone: bool,
    },
    /// TLS failed.
    Tls {
        /// Where.
        stage: TlsStage,
        /// How.
        error: String,
    },
    /// HTTP/2 failed.
    H2 {
        /// Where.
        stage: H2Stage,
        /// How.
        error: String,
    },
    /// The peer answered CONNECT with something else than 200.
    Http(u16),
    /// There is no certificate.
    Identity(String),
    /// We closed it.
    Cut(Cut),
    /// Copying broke.
    Copy {
        /// Where.
        stage: CopyStage,
        /// How.
        error: String,
    },
    /// Any other failure of a socket.
    Io(String),
}

/// What a deadline of ours is called in [`Outcome::ConnectFailed`].
pub const DEADLINE: &str = "deadline has elapsed";

/// Where TLS failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsStage {
    /// Before the first byte: certificate, key or roots are unusable.
    Config,
    /// Our handshake with the next hop.
    Connect,
    /// A peer's handshake with us.
    Accept,
}

/// Where HTTP/2 failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum H2Stage {
    /// Before the tunnel could take streams.
    Handshake,
    /// Later.
    Stream,
}

/// Why we closed a connection that could have gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A policy took the permission back.
    PolicyChange,
    /// We are draining, or the pod is gone.
    Drain,
    /// The drain deadline passed.
    DrainTimeout,
    /// The peer's certificate was revoked.
    Revoked,
    /// The tunnel pool of the pod is being closed.
    PoolDrain,
    /// The connection could not be tracked, so that no policy could ever close it.
    Untracked,
}

/// Where copying broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStage {
    /// From downstream to upstream.
    Send,
    /// From upstream to downstream.
    Receive,
    /// While ending the direction from downstream to upstream.
    CloseSend,
    /// While ending the direction from upstream to downstream.
    CloseReceive,
}

impl Outcome {
    /// The outcome of an error while copying. Peers that just go away end a connection, they do not fail it.
    pub fn copy(stage: CopyStage, error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof, WriteZero};
        #[expect(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
        let error = match error.kind() {
            BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => return Self::Complete,
            WriteZero => match stage {
                CopyStage::Send | CopyStage::CloseSend => {
                    "destination disconnected before all data was written".to_owned()
                }
                CopyStage::Receive | CopyStage::CloseReceive => {
                    "client disconnected before all data was written".to_owned()
                }
            },
            _ => error.to_string(),
        };
        Self::Copy { stage, error }
    }

    /// The outcome of a failed TCP connect.
    pub fn connect_failed(error: &io::Error, leg: Leg) -> Self {
        Self::ConnectFailed {
            error: error.to_string(),
            timed_out: error.kind() == io::ErrorKind::TimedOut,
            hbone: leg == Leg::Hbone,
        }
    }

    /// The outcome of a TCP connect that met our deadline.
    pub fn connect_timed_out(leg: Leg) -> Self {
        Self::ConnectFailed { error: DEADLINE.to_owned(), timed_out: true, hbone: leg == Leg::Hbone }
    }

    /// What a CONNECT request is answered.
    pub fn status(&self) -> u16 {
        match self {
            Self::Complete => 200,
            Self::BadRequest(refusal) => refusal.status(),
            Self::Refused(refusal) => refusal_status(refusal),
            Self::Denied(_) | Self::Cut(Cut::Untracked | Cut::PolicyChange) => 401,
            Self::ConnectFailed { .. }
            | Self::Tls { .. }
            | Self::H2 { .. }
            | Self::Http(_)
            | Self::Identity(_)
            | Self::Cut(Cut::Drain | Cut::DrainTimeout | Cut::Revoked | Cut::PoolDrain)
            | Self::Copy { .. }
            | Self::Io(_) => 503,
        }
    }

    /// The final `response_flags`.
    pub fn flag(&self) -> Flag {
        match self {
            Self::Complete | Self::Cut(Cut::Drain | Cut::DrainTimeout) => Flag::None,
            Self::Denied(_) | Self::Cut(Cut::PolicyChange) => Flag::Deny,
            Self::ConnectFailed { timed_out: true, hbone: true, .. } => Flag::NetworkPolicy,
            Self::Tls { stage: TlsStage::Config, .. } => Flag::TlsFailure,
            Self::H2 { .. } => Flag::H2HandshakeFailure,
            Self::Identity(_) => Flag::IdentityError,
            Self::Cut(Cut::Revoked) => Flag::CertRevoked,
            Self::BadRequest(_)
            | Self::Refused(_)
            | Self::ConnectFailed { .. }
            | Self::Tls { .. }
            | Self::Http(_)
            | Self::Cut(Cut::PoolDrain | Cut::Untracked)
            | Self::Copy { .. }
            | Self::Io(_) => Flag::Connect,
        }
    }

    /// Whether the connection came to nothing, or lost its permission: what somebody wants to know whose requests fail.
    /// Not what ends connections that worked: resets, broken tunnels, the end of a pod.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::BadRequest(_)
            | Self::Refused(_)
            | Self::Denied(_)
            | Self::ConnectFailed { .. }
            | Self::Tls { .. }
            | Self::H2 { stage: H2Stage::Handshake, .. }
            | Self::Http(_)
            | Self::Identity(_)
            | Self::Cut(Cut::PolicyChange | Cut::Revoked | Cut::Untracked) => true,
            Self::Complete
            | Self::H2 { stage: H2Stage::Stream, .. }
            | Self::Cut(Cut::Drain | Cut::DrainTimeout | Cut::PoolDrain)
            | Self::Copy { .. }
            | Self::Io(_) => false,
        }
    }

    /// The text of the log's `error` field; nothing for success.
    pub fn error(&self) -> Option<String> {
        (*self != Self::Complete).then(|| self.to_string())
    }
}

impl From<ConnectRefusal> for Outcome {
    fn from(refusal: ConnectRefusal) -> Self {
        Self::BadRequest(refusal)
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Which connection a TCP connect was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// A tunnel, to port 15008 or to a waypoint or gateway.
    Hbone,
    /// An application, or a destination outside of HBONE.
    Plain,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::BadRequest(refusal) => refusal.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Denied(verdict) => write!(f, "connection closed due to policy rejection: {verdict}"),
            Self::ConnectFailed { error, timed_out: true, hbone: true } => {
                write!(f, "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {error}")
            }
            Self::ConnectFailed { error, .. } => write!(f, "connection failed: {error}"),
            Self::Tls { stage, error } => match stage {
                TlsStage::Config => write!(f, "tls error: {error}"),
                TlsStage::Connect => write!(f, "io error: {error}"),
                TlsStage::Accept => write!(f, "tls handshake error: {error}"),
            },
            Self::H2 { stage, error } => match stage {
                H2Stage::Handshake => write!(f, "http2 handshake failed: {error}"),
                H2Stage::Stream => write!(f, "h2 failed: {error}"),
            },
            Self::Http(status) => match http::StatusCode::from_u16(*status) {
                Ok(status) => write!(f, "http status: {status}"),
                Err(_) => write!(f, "http status: {status}"),
            },
            Self::Identity(error) => write!(f, "identity error: {error}"),
            Self::Cut(cut) => cut.fmt(f),
            Self::Copy { stage, error } => match stage {
                CopyStage::Send => write!(f, "send: {error}"),
                CopyStage::Receive => write!(f, "receive: {error}"),
                CopyStage::CloseSend | CopyStage::CloseReceive => {
                    write!(f, "while closing connection: {error}")
                }
            },
            Self::Io(error) => write!(f, "io error: {error}"),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PolicyChange => "connection closed due to policy change",
            Self::Drain => "connection closed due to connection drain",
            Self::DrainTimeout => "connection failed to drain within the timeout",
            Self::Revoked => "connection closed: peer certificate revoked by CRL",
            Self::PoolDrain => "pool draining",
            Self::Untracked => "connection tracking failed",
        })
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn refusal_status(refusal: &Refusal) -> u16 {
    if matches!(refusal, Refusal::IpMismatch { .. }) { 400 } else { 503 }
}

#[cfg(test)]
mod tests;
