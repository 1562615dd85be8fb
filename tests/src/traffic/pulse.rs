// SPDX-License-Identifier: Apache-2.0
//! A request/response stream that never stops, and its longest pause: whoever disturbs it is seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;

use super::Conn;

/// Exchanges on one connection to an echo server, one at a time, until stopped.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    beats: Mutex<Beats>,
}

/// Exchanges so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beats {
    /// How many.
    pub count: u64,
    /// The longest one.
    pub longest: Duration,
    /// How many took longer than 5 ms.
    pub slow: u64,
}

impl Pulse {
    /// Begins. Between two exchanges it rests for `rest`, as an application does that has other things to do.
    #[must_use]
    pub fn start(conn: Conn, rest: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let beats = Arc::clone(&shared);
        let thread = thread::spawn(move || beat(&conn, &beats, rest));
        Self { shared, thread: Some(thread) }
    }

    /// Exchanges since the start, or since the last time that this was called.
    #[must_use]
    pub fn take(&self) -> Beats {
        std::mem::take(&mut self.shared.beats.lock())
    }

    /// Exchanges so far, as [`Pulse::take`] would give them.
    #[must_use]
    pub fn peek(&self) -> Beats {
        *self.shared.beats.lock()
    }

    /// Stops. Gives the exchanges since the last [`Pulse::take`].
    ///
    /// # Errors
    /// The connection broke, or a byte was wrong.
    pub fn stop(mut self) -> Result<Beats> {
        self.shared.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(self.take())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn beat(conn: &Conn, shared: &Shared, rest: Duration) -> Result<()> {
    let mut count: u64 = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let request = [count.to_le_bytes(); 8].concat();
        let start = Instant::now();
        let answer = conn.ask(&request).with_context(|| format!("exchange {count}"))?;
        let took = start.elapsed();
        ensure!(answer == request, "a wrong byte in exchange {count}");
        count += 1;
        let mut beats = shared.beats.lock();
        beats.count += 1;
        beats.longest = beats.longest.max(took);
        beats.slow += u64::from(took > Duration::from_millis(5));
        drop(beats);
        thread::sleep(rest);
    }
    Ok(())
}
