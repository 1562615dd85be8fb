// SPDX-License-Identifier: Apache-2.0
//! The allocator: glibc's, with a sampler around it that can be switched on to see who keeps memory.
//!
//! Off, it costs one relaxed load per call. On, about one allocation per [`INTERVAL`] bytes is remembered with its stack
//! until it is freed: each allocation is sampled with a probability that grows with its size, as jemalloc's and Go's
//! profilers do, and counted for as many as it stands for. glibc stays the allocator because the budgets of memory were
//! measured with it (`malloc_trim`), and because a profile that nobody takes should cost nothing.
//!
//! Invariant: nothing here samples what it allocates itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use parking_lot::Mutex;

/// Bytes between two samples, on average.
pub const INTERVAL: usize = 512 << 10;
/// Frames of one stack.
const DEPTH: usize = 64;
/// Samples that are remembered: at the usual interval, of fifty gigabytes.
const SAMPLES: usize = 100_000;
/// Addresses are looked for in the table only if they may be there.
const FILTER: usize = 1 << 16;

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: Mutex<Option<Live>> = Mutex::new(None);
/// How many remembered addresses fall into each place.
static SEEN: [AtomicU16; FILTER] = [const { AtomicU16::new(0) }; FILTER];

thread_local! {
    /// Bytes until the next sample of this thread.
    static UNTIL: Cell<usize> = const { Cell::new(INTERVAL) };
    /// This thread is in the sampler.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// State of this thread's dice.
    static DICE: Cell<u64> = const { Cell::new(0) };
}

#[derive(Debug, Default)]
struct Live {
    samples: HashMap<usize, Sample>,
}

/// One allocation that was sampled, and is not free.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it was made, the innermost address first.
    pub stack: Vec<usize>,
    /// Its size in bytes.
    pub size: usize,
}

impl Sample {
    /// How many allocations of this size it stands for, and of how many bytes together.
    pub fn weight(&self) -> (f64, f64) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (size, interval) = (self.size as f64, INTERVAL as f64);
        let count = 1.0 / (1.0 - (-size / interval).exp());
        (count, count * size)
    }
}

/// glibc's allocator, with a sampler around it.
#[derive(Debug)]
pub struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Switches the sampler. What was remembered goes when it is switched off.
pub fn switch(on: Switch) {
    quietly(|| {
        let mut live = LIVE.lock();
        match on {
            Switch::On => {
                live.get_or_insert_default();
                ON.store(true, Ordering::SeqCst);
            }
            Switch::Off => {
                ON.store(false, Ordering::SeqCst);
                *live = None;
                SEEN.iter().for_each(|place| place.store(0, Ordering::Relaxed));
            }
        }
    });
}

/// Whether allocations are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Whether allocations are sampled now.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The sampled allocations that are not free; `None`: the sampler is off.
pub fn live() -> Option<Vec<Sample>> {
    quietly(|| LIVE.lock().as_ref().map(|live| live.samples.values().cloned().collect()))
}

/// Runs `work` without sampling what it allocates: it may hold the table's lock.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let before = INSIDE.replace(true);
    let result = work();
    INSIDE.set(before);
    result
}

// SAFETY: every call goes to `System` unchanged; what is done around it touches no memory that was asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let address = unsafe { System.alloc(layout) };
        if ON.load(Ordering::Relaxed) {
            allocated(address.addr(), layout.size());
        }
        address
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let address = unsafe { System.alloc_zeroed(layout) };
        if ON.load(Ordering::Relaxed) {
            allocated(address.addr(), layout.size());
        }
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if ON.load(Ordering::Relaxed) {
            freed(address.addr());
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ON.load(Ordering::Relaxed) {
            freed(address.addr());
        }
        // SAFETY: as the caller promises.
        let moved = unsafe { System.realloc(address, layout, size) };
        if ON.load(Ordering::Relaxed) {
            allocated(moved.addr(), size);
        }
        moved
    }
}

fn place(address: usize) -> &'static AtomicU16 {
    // Neighbours are at least 16 bytes apart.
    &SEEN[(address >> 4 ^ address >> 20) % FILTER]
}

#[inline(never)]
fn allocated(address: usize, size: usize) {
    if address == 0 || INSIDE.get() {
        return;
    }
    let until = UNTIL.get();
    if size < until {
        UNTIL.set(until - size);
        return;
    }
    quietly(|| {
        UNTIL.set(interval());
        remember(address, size);
    });
}

fn remember(address: usize, size: usize) {
    let mut stack = Vec::with_capacity(DEPTH);
    let walk = |frame: &backtrace::Frame| {
        let address = frame.ip() as usize;
        if address != 0 {
            // A return address belongs to the call before it.
            stack.push(address - 1);
        }
        stack.len() < DEPTH
    };
    // SAFETY: the lock that this leaves out guards the names of symbols, which nobody asks for here.
    unsafe { backtrace::trace_unsynchronized(walk) };
    let mut live = LIVE.lock();
    if let Some(live) = live.as_mut().filter(|live| live.samples.len() < SAMPLES)
        && live.samples.insert(address, Sample { stack, size }).is_none()
    {
        place(address).fetch_add(1, Ordering::Relaxed);
    }
}

#[inline(never)]
fn freed(address: usize) {
    if place(address).load(Ordering::Relaxed) == 0 || INSIDE.get() {
        return;
    }
    quietly(|| {
        let mut live = LIVE.lock();
        if live.as_mut().is_some_and(|live| live.samples.remove(&address).is_some()) {
            place(address).fetch_sub(1, Ordering::Relaxed);
        }
    });
}

/// Bytes until the next sample: exponentially distributed, so that no pattern of sizes escapes.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "chance, of a positive mean"
)]
fn interval() -> usize {
    let mut state = DICE.get();
    if state == 0 {
        // Its address tells threads apart.
        state = DICE.with(|dice| std::ptr::from_ref(dice).addr() as u64) | 1;
    }
    // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    DICE.set(state);
    let uniform = ((state >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
    ((-uniform.ln() * INTERVAL as f64) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn keep_much() -> Vec<Vec<u8>> {
        (0..1000).map(|_| vec![1; 64 << 10]).collect()
    }

    fn kept_bytes() -> f64 {
        let is_kept = |sample: &Sample| {
            let mut found = false;
            for address in &sample.stack {
                backtrace::resolve(*address as *mut _, |symbol| {
                    found |= symbol.name().is_some_and(|name| name.to_string().contains("keep_much"));
                });
            }
            found
        };
        live().unwrap().iter().filter(|sample| is_kept(sample)).map(|sample| sample.weight().1).sum()
    }

    #[test]
    fn what_is_kept_is_seen_until_it_is_freed() {
        assert!(live().is_none() && !is_on());
        switch(Switch::On);
        let kept = keep_much();
        let mebibytes = kept_bytes() / f64::from(1 << 20);
        // 62.5 MiB in about 125 samples: within half is as good as certain.
        assert!((30.0..95.0).contains(&mebibytes), "{mebibytes} MiB");
        drop(kept);
        assert!(kept_bytes() < 1.0, "{}", kept_bytes());
        switch(Switch::Off);
        assert!(live().is_none());
    }
}
