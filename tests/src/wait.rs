// SPDX-License-Identifier: Apache-2.0
//! Waiting for conditions with deadlines; nothing here sleeps and hopes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Looks until `condition` gives something; `what` names it in the error.
///
/// # Errors
/// The deadline passed.
pub fn some<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {within:?} in vain for: {what}");
        }
        thread::sleep(STEP);
    }
}

/// Looks until `condition` holds.
///
/// # Errors
/// The deadline passed.
pub fn until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    some(what, within, || condition().then_some(()))
}

/// Calls `attempt` until it succeeds; after the deadline its last error is the reason.
///
/// # Errors
/// The last error of `attempt`.
pub fn ok<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {within:?} in vain for: {what}")));
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}
