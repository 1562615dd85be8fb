// SPDX-License-Identifier: Apache-2.0
//! The checks of the self-test. Each gets the stage and says what it saw.

use std::io::{ErrorKind, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ztunnel_common::verdict::{CREDIT_BYTES_TO_APPLICATION, CREDIT_MESSAGES};

use super::stage::{Ends, Stage, expect, pattern_bytes, send};
use crate::sys::bpf::readable_bytes;

type Outcome = Result<String, String>;

/// More than loopback TCP buffers by itself, less than what a missing bound would let through.
const TCP_BUFFERS: usize = 32 << 20;

fn io(error: std::io::Error) -> String {
    error.to_string()
}

fn want(holds: bool, seen: impl Into<String>) -> Outcome {
    if holds { Ok(seen.into()) } else { Err(seen.into()) }
}

fn both_ways(stage: &Stage<'_>, ends: &Ends) -> Outcome {
    for round in 0..4 {
        send(&ends.app, round * 300, 300).map_err(io)?;
        expect(&ends.ours, round * 300, 300)?;
        send(&ends.ours, round * 500, 500).map_err(io)?;
        expect(&ends.app, round * 500, 500)?;
    }
    let path = stage.path(ends);
    want(
        path.rx_bytes == 1200 && path.tx_bytes == 2000,
        format!(
            "redirected to us {} of 1200, to the application {} of 2000: {}",
            path.rx_bytes, path.tx_bytes, path.reason
        ),
    )
}

/// An application's connection to our listener is paired and redirected both ways.
pub(super) fn pair_outbound(stage: &Stage<'_>) -> Outcome {
    both_ways(stage, &stage.outbound().map_err(io)?)
}

/// Our connection to an application is paired and redirected both ways.
pub(super) fn pair_inbound(stage: &Stage<'_>) -> Outcome {
    both_ways(stage, &stage.inbound().map_err(io)?)
}

/// Two sockets of which none is ours are left alone.
pub(super) fn stranger_not_paired(stage: &Stage<'_>) -> Outcome {
    let ends = stage.strangers().map_err(io)?;
    send(&ends.app, 0, 100).map_err(io)?;
    expect(&ends.ours, 0, 100)?;
    let path = stage.path(&ends);
    want(!path.redirected && path.reason == "not_enrolled", path.reason)
}

/// Switched off, nothing is redirected; switched on again, it is.
pub(super) fn switch(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    stage.kernel.switch(false).map_err(io)?;
    send(&ends.app, 0, 100).map_err(io)?;
    expect(&ends.ours, 0, 100)?;
    let off = stage.path(&ends);
    stage.kernel.switch(true).map_err(io)?;
    send(&ends.app, 100, 100).map_err(io)?;
    expect(&ends.ours, 100, 100)?;
    let on = stage.path(&ends);
    want(off.rx_bytes == 0 && on.rx_bytes == 100, format!("off {}, on {}", off.rx_bytes, on.rx_bytes))
}

/// Streams both ways while the path changes every few messages and the node is switched.
pub(super) fn order_under_path_change(stage: &Stage<'_>) -> Outcome {
    let mut seen = String::new();
    // How the paths mix is up to the scheduler; that no byte is lost or moved is not.
    for _attempt in 0..8 {
        let (mixed, what) = stream_under_path_change(stage)?;
        seen = what;
        if mixed {
            return Ok(seen);
        }
    }
    Err(format!("the paths never mixed: {seen}"))
}

fn stream_under_path_change(stage: &Stage<'_>) -> Result<(bool, String), String> {
    const BYTES: usize = 4 << 20;
    let ends = stage.inbound().map_err(io)?;
    stage.pass_every(3).map_err(io)?;
    let done = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| toggle(stage, &done));
        let writers = [&ends.app, &ends.ours].map(|end| scope.spawn(move || stream(end, BYTES)));
        let reader = scope.spawn(|| expect(&ends.app, 0, BYTES));
        let here = expect(&ends.ours, 0, BYTES);
        let there = reader.join().unwrap_or_else(|_| Err("reader failed".to_owned()));
        done.store(true, Ordering::Relaxed);
        let wrote = writers.into_iter().all(|writer| matches!(writer.join(), Ok(Ok(()))));
        (here, there, wrote)
    });
    let (Ok(BYTES), Ok(BYTES), true) = outcome else { return Err(format!("{outcome:?}")) };
    let path = stage.path(&ends);
    let mixed = path.tx_messages > 0 && path.rx_messages > 0 && path.tx_passed > 0 && path.rx_passed > 0;
    let (taken, passed) = (path.tx_messages + path.rx_messages, path.tx_passed + path.rx_passed);
    Ok((mixed, format!("{taken} messages redirected, {passed} by TCP")))
}

fn toggle(stage: &Stage<'_>, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        for forced in [0, 2, 7] {
            // A switch that fails only makes the paths change less often, which the check notices.
            let _switched = stage.pass_every(forced).is_ok();
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

fn stream(end: &TcpStream, bytes: usize) -> std::io::Result<()> {
    let (mut at, mut size) = (0, 1);
    for message in 0_u32.. {
        if at == bytes {
            break;
        }
        // Only a stream that is read to its end now and then returns from TCP to the fast path.
        if message % 16 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        size = (size * 7 + 11) % 20_011;
        let length = size.min(bytes - at);
        send(end, at as u64, length)?;
        at += length;
    }
    Ok(())
}

/// What was redirected before the end of the stream comes before it; the other way stays open.
pub(super) fn half_close(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    send(&ends.app, 0, 1000).map_err(io)?;
    ends.app.shutdown(Shutdown::Write).map_err(io)?;
    let got = expect(&ends.ours, 0, 2000)?;
    send(&ends.ours, 0, 700).map_err(io)?;
    let answer = expect(&ends.app, 0, 700)?;
    want(got == 1000 && answer == 700, format!("{got} bytes, then the end, then {answer} back"))
}

/// A peer that does not read stops the sender, as it would with TCP.
pub(super) fn bounded_unread(stage: &Stage<'_>) -> Outcome {
    fill(stage, 64 << 10)
}

/// The same in messages so small that their own size is not what they cost.
pub(super) fn bounded_unread_small(stage: &Stage<'_>) -> Outcome {
    fill(stage, 16)
}

fn fill(stage: &Stage<'_>, size: usize) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    ends.ours.set_nonblocking(true).map_err(io)?;
    let (mut sent, limit) = (0, if size < 1024 { 64 << 10 } else { 2 * TCP_BUFFERS });
    while sent < limit {
        match (&ends.ours).write(&pattern_bytes(sent as u64, size)) {
            Ok(written) => sent += written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::PermissionDenied) => {
                break;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let path = stage.path(&ends);
    let read = expect(&ends.app, 0, sent)?;
    let bounded = path.tx_bytes <= CREDIT_BYTES_TO_APPLICATION
        && path.tx_messages <= CREDIT_MESSAGES
        && sent < TCP_BUFFERS;
    want(
        bounded && read == sent,
        format!("{sent} bytes unread, of them {} in {} messages redirected", path.tx_bytes, path.tx_messages),
    )
}

fn readable(stream: &TcpStream, wanted: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let seen = readable_bytes(stream).unwrap_or(0);
        if seen == wanted || Instant::now() > deadline {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A mere member is told about its TCP bytes.
pub(super) fn member_fionread(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    stage.kernel.switch(false).map_err(io)?;
    send(&ends.ours, 0, 500).map_err(io)?;
    let seen = readable(&ends.app, 500);
    want(seen == 500, format!("{seen} of 500 bytes by TCP"))
}

/// Redirected bytes count.
pub(super) fn redirected_fionread(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    send(&ends.ours, 0, 1000).map_err(io)?;
    let redirected = readable(&ends.app, 1000);
    expect(&ends.app, 0, 1000)?;
    let empty = readable(&ends.app, 0);
    want(redirected == 1000 && empty == 0, format!("{redirected} of 1000, {empty} of 0"))
}

/// A switch waits for the reader: an application never has bytes in both of its queues.
pub(super) fn one_queue_at_a_time(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    let before = stage.unread(&ends)?;
    send(&ends.ours, 0, 1000).map_err(io)?;
    stage.kernel.switch(false).map_err(io)?;
    send(&ends.ours, 1000, 500).map_err(io)?;
    let during = stage.unread(&ends)?;
    expect(&ends.app, 0, 1500)?;
    let after = stage.unread(&ends)?;
    send(&ends.ours, 1500, 500).map_err(io)?;
    let rest = expect(&ends.app, 1500, 500)?;
    let path = stage.path(&ends);
    want(
        (before, during, after) == (false, true, false)
            && path.tx_bytes == 1500
            && path.tx_passed == 1
            && rest == 500,
        format!(
            "unread {before}, {during}, {after}; redirected {}, then {rest} of 500 by TCP",
            path.tx_bytes
        ),
    )
}

/// Once the gate is closed nothing is redirected to us, and we are told where to read to.
pub(super) fn gate_closes(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    send(&ends.app, 0, 1000).map_err(io)?;
    let position = stage.close_gate(&ends)?;
    send(&ends.app, 1000, 500).map_err(io)?;
    let read = expect(&ends.ours, 0, 1500)?;
    let path = stage.path(&ends);
    want(
        position == 1000 && read == 1500 && path.rx_bytes == 1000 && path.rx_passed == 1,
        format!("closed at {position} of 1000, {} bytes redirected", path.rx_bytes),
    )
}

/// A peek sees redirected bytes and leaves them.
pub(super) fn redirected_peek(stage: &Stage<'_>) -> Outcome {
    let ends = stage.outbound().map_err(io)?;
    send(&ends.ours, 0, 1000).map_err(io)?;
    let mut buffer = vec![0; 400];
    let peeked = ends.app.peek(&mut buffer).map_err(io)?;
    let same = buffer == pattern_bytes(0, 400);
    let read = expect(&ends.app, 0, 1000)?;
    want(same && peeked == 400 && read == 1000, format!("peeked at {peeked} of 400, read {read} of 1000"))
}

/// The reader gets what was redirected although the sender is gone.
pub(super) fn unread_survives_close(stage: &Stage<'_>) -> Outcome {
    let Ends { app, ours } = stage.outbound().map_err(io)?;
    send(&ours, 0, 5000).map_err(io)?;
    drop(ours);
    // The first segment of the application's that TCP acknowledges, after the pair is gone.
    app.shutdown(Shutdown::Write).map_err(io)?;
    let read = expect(&app, 0, 6000)?;
    want(read == 5000, format!("{read} of 5000 bytes, then the end"))
}
