// SPDX-License-Identifier: Apache-2.0
//! Sleeps that are shorter than the runtime's timer can (1 ms).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the runtime's own timer is good for.
const RUNTIME_TIMER: Duration = Duration::from_millis(1);

/// `TimerFd` with the trait that the runtime asks for.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

/// Sleeps for `pause`, however short.
///
/// # Cancel safety
/// Nothing is lost if the future is dropped.
pub async fn sleep(pause: Duration) {
    if pause >= RUNTIME_TIMER {
        return tokio::time::sleep(pause).await;
    }
    // Without a descriptor to spare the pause is a little longer.
    if short(pause).await.is_err() {
        tokio::time::sleep(RUNTIME_TIMER).await;
    }
}

async fn short(pause: Duration) -> io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::OneShot(pause.into()), TimerSetTimeFlags::empty())?;
    // SAFETY: `Timer` owns its descriptor and names the same one for as long as it lives.
    let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?;
    timer.readable().await?.retain_ready();
    Ok(())
}
