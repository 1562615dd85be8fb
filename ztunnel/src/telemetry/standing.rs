// SPDX-License-Identifier: Apache-2.0
//! How the sessions stand that tell this node what to do: with the control plane, and with the node agent.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

/// One session, as its driver last described it. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<Mutex<Session>>);

/// What is known of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// How it is.
    pub state: State,
    /// Since when; `None`: since the start.
    pub since: Option<SystemTime>,
    /// What ended the last one, or keeps the next from beginning.
    pub error: Option<String>,
}

/// How a session is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Nobody has driven it yet; it may not be wanted.
    #[default]
    Idle,
    /// It stands.
    Connected,
    /// It does not; it is tried again.
    Disconnected,
}

impl State {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
        }
    }
}

impl Standing {
    /// It stands.
    pub fn connected(&self) {
        *self.0.lock() = Session { state: State::Connected, since: Some(SystemTime::now()), error: None };
    }

    /// It ended, or did not begin.
    pub fn disconnected(&self, error: impl Into<String>) {
        let mut session = self.0.lock();
        if session.state != State::Disconnected {
            session.state = State::Disconnected;
            session.since = Some(SystemTime::now());
        }
        session.error = Some(error.into());
    }

    /// What is known now.
    pub fn look(&self) -> Session {
        self.0.lock().clone()
    }
}

/// Both sessions.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    /// With the control plane (xDS).
    pub xds: Standing,
    /// With the node agent (ZDS).
    pub agent: Standing,
}
