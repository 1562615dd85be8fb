// SPDX-License-Identifier: Apache-2.0
//! The node agent: tells a ztunnel which pods it serves, as istio-cni does.
//!
//! [`Agent`] plays by the rules: snapshot on every connection, adds to the newest one, deletes to all, one request
//! at a time. [`raw`] is for tests that break them; [`wire`] writes and reads the packets.

pub mod raw;
pub mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::{Condvar, Mutex};

use crate::netns::Netns;
use raw::{RawConnection, RawListener};

/// How often the accepting thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// A pod as the agent knows it.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// The pod's UID.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its network namespace; `None`: the agent has lost sight of it and says keep.
    pub netns: Option<Netns>,
}

impl Enrolled {
    /// The request that enrolls it.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        wire::add(&self.uid, &self.name, &self.namespace, &self.service_account)
    }
}

/// A running node agent.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Enrolled>,
    /// Oldest first; all have got their snapshot.
    connections: Vec<RawConnection>,
    /// Snapshots completed so far.
    snapshots: usize,
    /// What went wrong in snapshots.
    complaints: Vec<String>,
}

impl Agent {
    /// Starts at `path`, knowing no pod yet.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path) -> Result<Self> {
        let agent = Self { shared: Arc::default(), path: path.to_owned(), thread: Mutex::new(None) };
        agent.resume()?;
        Ok(agent)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Knows one more pod, and tells the newest ztunnel. Gives the error of its ack; `None`: nobody is connected,
    /// the pod will be in the next snapshot.
    ///
    /// # Errors
    /// ztunnel did not answer.
    pub fn add(&self, pod: Enrolled) -> Result<Option<String>> {
        let mut state = self.shared.state.lock();
        let packet = pod.packet();
        let netns = pod.netns.clone();
        state.pods.insert(pod.uid.clone(), pod);
        let (Some(netns), Some(newest)) = (netns, state.connections.last()) else { return Ok(None) };
        let answer = newest.ask(&packet, &[netns.handle()]);
        if answer.is_err() {
            state.connections.pop();
        }
        answer.map(Some)
    }

    /// Forgets a pod, and tells every ztunnel. Gives their acks' errors.
    ///
    /// # Errors
    /// A ztunnel did not answer.
    pub fn delete(&self, uid: &str) -> Result<Vec<String>> {
        let mut state = self.shared.state.lock();
        state.pods.remove(uid);
        let packet = wire::del(uid);
        let answers: Result<Vec<String>> =
            state.connections.iter().map(|connection| connection.ask(&packet, &[])).collect();
        if answers.is_err() {
            state.connections.clear();
        }
        answers
    }

    /// Changes what the agent knows without telling anybody: seen at the next snapshot.
    pub fn edit(&self, change: impl FnOnce(&mut BTreeMap<String, Enrolled>)) {
        change(&mut self.shared.state.lock().pods);
    }

    /// Snapshots that ztunnels have acknowledged so far.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.shared.state.lock().snapshots
    }

    /// What went wrong in snapshots so far.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state.lock().complaints.clone()
    }

    /// Waits for the `count`th completed snapshot.
    ///
    /// # Errors
    /// The deadline passed; the error has what went wrong.
    pub fn wait_snapshots(&self, count: usize, within: Duration) -> Result<()> {
        let mut state = self.shared.state.lock();
        let waiting = |state: &mut State| state.snapshots < count;
        let result = self.shared.changed.wait_while_for(&mut state, waiting, within);
        if result.timed_out() && state.snapshots < count {
            anyhow::bail!(
                "{} of {count} snapshots within {within:?}; {:?}",
                state.snapshots,
                state.complaints
            );
        }
        Ok(())
    }

    /// Stops listening and hangs up, as a restarting agent does. What it knows stays.
    pub fn pause(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().take();
        drop(thread.map(JoinHandle::join));
        self.shared.state.lock().connections.clear();
        drop(std::fs::remove_file(&self.path));
    }

    /// Listens again after [`Agent::pause`].
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn resume(&self) -> Result<()> {
        let listener = RawListener::bind(&self.path)?;
        self.shared.stop.store(false, Ordering::Release);
        let shared = Arc::clone(&self.shared);
        *self.thread.lock() = Some(thread::spawn(move || serve(&shared, &listener)));
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.pause();
    }
}

fn serve(shared: &Shared, listener: &RawListener) {
    while !shared.stop.load(Ordering::Acquire) {
        let Ok(accepted) = listener.accept(LOOK) else { return };
        let Some(connection) = accepted else { continue };
        let mut state = shared.state.lock();
        match snapshot(&mut state, &connection) {
            Ok(()) => {
                state.connections.push(connection);
                state.snapshots += 1;
            }
            Err(error) => state.complaints.push(format!("{error:#}")),
        }
        shared.changed.notify_all();
    }
}

/// Names every pod on a new connection.
fn snapshot(state: &mut State, connection: &RawConnection) -> Result<()> {
    connection.expect_hello()?;
    let mut complaints = Vec::new();
    for pod in state.pods.values() {
        let error = match &pod.netns {
            Some(netns) => connection.ask(&pod.packet(), &[netns.handle()]),
            None => connection.ask(&wire::keep(&pod.uid), &[]),
        };
        let error = error.with_context(|| format!("snapshot: pod {}", pod.name))?;
        complaints.extend((!error.is_empty()).then(|| format!("{}: {error}", pod.name)));
    }
    let error = connection.ask(&wire::SNAPSHOT_SENT, &[]).context("snapshot: the end")?;
    complaints.extend((!error.is_empty()).then_some(error));
    state.complaints.append(&mut complaints);
    Ok(())
}
