// SPDX-License-Identifier: Apache-2.0
//! `EBPF_DEBUG`: what the programs say about rare events, as lines of our own log.
//!
//! aya-log decides by a constant of the programs, which is set before they are loaded: switched off, the verifier
//! removes the branches, and what is left is a ring buffer of one page.

use std::os::fd::AsFd as _;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(super) use aya_log::LEVEL;

/// The highest level that the programs say something at.
pub(super) fn level(on: bool) -> u8 {
    if on { aya_log::Level::Debug as u8 } else { 0 }
}

/// Bytes of the ring buffer. What does not fit while nobody reads is dropped.
pub(super) fn buffer(on: bool) -> u32 {
    if on { 128 << 10 } else { 4 << 10 }
}

/// Why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// The object has no ring buffer.
    #[error(transparent)]
    Buffer(#[from] aya_log::Error),
    /// No thread.
    #[error("start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Forwards from here on, on a thread of its own, which ends with the process.
pub(super) fn forward(object: &mut Ebpf) -> Result<(), ForwardError> {
    let mut logger = EbpfLogger::init_with_logger(object, Forward)?;
    std::thread::Builder::new().name("ebpf-debug".to_owned()).spawn(move || {
        loop {
            let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) => logger.flush(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    tracing::warn!("EBPF_DEBUG: nothing is forwarded any more: {error}");
                    return;
                }
            }
        }
    })?;
    Ok(())
}

struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!("{}", record.args());
    }

    fn flush(&self) {}
}
