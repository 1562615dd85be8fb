// SPDX-License-Identifier: Apache-2.0
//! Names that connections ask the control plane for, where the mesh is not known as a whole.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use ztunnel_core::Name;

/// How long a connection waits for an answer.
const WAIT: Duration = Duration::from_secs(5);
/// Questions that are on their way to the client.
const ROOM: usize = 1024;

/// One question.
#[derive(Debug)]
pub struct Demand {
    pub(super) name: Name,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The mesh has all there is to know.
    Known,
    /// There is no room for more questions.
    Refused,
    /// Nobody answered in time.
    Timeout,
}

/// Asks questions. Clones ask the same client.
#[derive(Debug, Clone)]
pub struct Demands(mpsc::Sender<Demand>);

impl Demands {
    /// A way to ask, and the client's end of it.
    pub fn channel() -> (Self, mpsc::Receiver<Demand>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Self(sender), receiver)
    }

    /// Asks for a name and waits for the answer, 5 seconds at most.
    pub async fn ask(&self, name: Name) -> Answer {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            match self.0.send(Demand { name, answer }).await {
                Ok(()) => answered.await.unwrap_or(Answer::Refused),
                Err(_closed) => Answer::Refused,
            }
        };
        tokio::time::timeout(WAIT, asked).await.unwrap_or(Answer::Timeout)
    }
}
