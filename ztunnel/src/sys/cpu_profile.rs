// SPDX-License-Identifier: Apache-2.0
//! Samples of where this process spends its CPU time: `SIGPROF` for every so many milliseconds of it, and a handler that
//! walks the stack.
//!
//! The handler allocates nothing and takes no lock of ours: it walks into a buffer that was reserved before, and counts
//! what does not fit. The walk itself is the unwinder's of the C library, which finds its tables without a lock since
//! glibc 2.35; before, it takes one that is never held while its owner waits for us.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use backtrace::Frame;

/// Frames of one stack; what is further out is cut off.
const DEPTH: usize = 128;
/// Samples that are kept: half a minute of 32 busy CPUs at 100 Hz, in some hundred megabytes at most that are touched
/// only as far as they are used.
const SAMPLES: usize = 100_000;

static BUFFER: AtomicPtr<Buffer> = AtomicPtr::new(ptr::null_mut());
/// Handlers that may be looking at the buffer.
static HANDLERS: AtomicUsize = AtomicUsize::new(0);

/// What the handler writes to.
struct Buffer {
    next: AtomicUsize,
    lost: AtomicUsize,
    slots: Box<[MaybeUninit<UnsafeCell<Slot>>]>,
}

#[derive(Clone, Copy)]
struct Slot {
    depth: usize,
    stack: [usize; DEPTH],
}

/// Stacks, the innermost address first.
#[derive(Debug, Default)]
pub struct Samples {
    /// One per sample.
    pub stacks: Vec<Vec<usize>>,
    /// Samples that there was no room for.
    pub lost: usize,
}

/// A profile that is being taken. Dropping it ends it.
#[derive(Debug)]
pub struct CpuProfile {
    is_over: bool,
}

impl CpuProfile {
    /// Begins: `frequency` samples for each second of CPU time.
    ///
    /// # Errors
    /// One is being taken already, or the kernel refuses the timer.
    pub fn start(frequency: u32) -> io::Result<Self> {
        let slots = Box::new_uninit_slice(SAMPLES);
        let buffer = Box::new(Buffer { next: AtomicUsize::new(0), lost: AtomicUsize::new(0), slots });
        let buffer = Box::into_raw(buffer);
        let taken =
            BUFFER.compare_exchange(ptr::null_mut(), buffer, Ordering::SeqCst, Ordering::SeqCst).is_err();
        if taken {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(buffer) });
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a CPU profile is being taken already"));
        }
        let profile = Self { is_over: false };
        install()?;
        timer(Duration::from_secs(1) / frequency.max(1))?;
        Ok(profile)
    }

    /// Ends, and gives what was seen.
    pub fn finish(mut self) -> Samples {
        self.is_over = true;
        stop()
    }
}

impl Drop for CpuProfile {
    fn drop(&mut self) {
        if !self.is_over {
            drop(stop());
        }
    }
}

fn stop() -> Samples {
    // A timer that cannot be ended goes on, and its handler finds no buffer.
    timer(Duration::ZERO).ok();
    let buffer = BUFFER.swap(ptr::null_mut(), Ordering::SeqCst);
    while HANDLERS.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    if buffer.is_null() {
        return Samples::default();
    }
    // SAFETY: it came from `Box::into_raw`, is out of reach, and no handler is looking at it any more.
    let mut buffer = unsafe { Box::from_raw(buffer) };
    let count = buffer.next.load(Ordering::Relaxed).min(SAMPLES);
    let stacks = buffer.slots[..count].iter_mut().map(|slot| {
        // SAFETY: slots below `next` were given to handlers, which have all written theirs and ended.
        let slot = unsafe { slot.assume_init_mut() }.get_mut();
        slot.stack[..slot.depth].to_vec()
    });
    let stacks = stacks.collect();
    Samples { stacks, lost: buffer.lost.load(Ordering::Relaxed) }
}

fn install() -> io::Result<()> {
    // SAFETY: zeroes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // Calls that are interrupted go on by themselves.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is complete; the handler stays for good, so that a late signal does not end the process.
    let status = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn timer(interval: Duration) -> io::Result<()> {
    let every = libc::timeval {
        tv_sec: libc::time_t::try_from(interval.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: interval.subsec_micros().into(),
    };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: `timer` is valid for the call.
    let status = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handle(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid for the thread's life.
    let before = unsafe { *errno };
    HANDLERS.fetch_add(1, Ordering::SeqCst);
    let buffer = BUFFER.load(Ordering::SeqCst);
    // SAFETY: `stop` takes the buffer away first, and frees it when no handler is left.
    if let Some(buffer) = unsafe { buffer.as_ref() } {
        sample(buffer, interrupted(context));
    }
    HANDLERS.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above: what was interrupted finds its error as it was.
    unsafe { *errno = before };
}

fn sample(buffer: &Buffer, interrupted: Option<usize>) {
    let index = buffer.next.fetch_add(1, Ordering::Relaxed);
    let Some(cell) = buffer.slots.get(index) else {
        buffer.lost.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let slot = UnsafeCell::raw_get(cell.as_ptr());
    // SAFETY: the index is this handler's alone.
    unsafe { slot.write(Slot { depth: 0, stack: [0; DEPTH] }) };
    // SAFETY: as above, and it has just been written.
    let slot = unsafe { &mut *slot };
    let mut inside = interrupted.is_none();
    let walk = |frame: &Frame| {
        let address = frame.ip() as usize;
        // What comes before is this handler.
        inside |= Some(address) == interrupted;
        if inside && address != 0 {
            // A return address belongs to the call before it.
            slot.stack[slot.depth] = if slot.depth == 0 { address } else { address - 1 };
            slot.depth += 1;
        }
        slot.depth < DEPTH
    };
    // SAFETY: the lock that this leaves out guards the names of symbols, which nobody asks for here.
    unsafe { backtrace::trace_unsynchronized(walk) };
    if slot.depth == 0
        && let Some(address) = interrupted
    {
        slot.stack[0] = address;
        slot.depth = 1;
    }
}

/// Where the thread was.
fn interrupted(context: *mut libc::c_void) -> Option<usize> {
    // SAFETY: with SA_SIGINFO the third argument is the context, valid while the handler runs.
    let context = unsafe { context.cast::<libc::ucontext_t>().as_ref() }?;
    #[cfg(target_arch = "x86_64")]
    return usize::try_from(context.uc_mcontext.gregs[libc::REG_RIP as usize]).ok();
    #[cfg(target_arch = "aarch64")]
    return usize::try_from(context.uc_mcontext.pc).ok();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[inline(never)]
    fn burn(until: Instant) -> u64 {
        let mut sum = 1_u64;
        while Instant::now() < until {
            for round in 0..10_000_u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(round));
            }
        }
        sum
    }

    #[test]
    fn what_burns_cpu_is_seen_and_only_one_profile_is_taken_at_a_time() {
        let profile = CpuProfile::start(200).unwrap();
        assert_eq!(CpuProfile::start(100).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        // Until enough was seen, not for so long.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            burn(Instant::now() + Duration::from_millis(100));
            // SAFETY: the profile is being taken: the buffer is there.
            let seen = unsafe { &*BUFFER.load(Ordering::SeqCst) }.next.load(Ordering::Relaxed);
            if seen >= 10 || Instant::now() > deadline {
                break;
            }
        }
        let samples = profile.finish();
        assert!(samples.stacks.len() >= 10, "{}", samples.stacks.len());
        let is_burning = |stack: &Vec<usize>| {
            let mut found = false;
            for address in stack {
                backtrace::resolve(*address as *mut _, |symbol| {
                    found |= symbol.name().is_some_and(|name| name.to_string().contains("burn"));
                });
            }
            found
        };
        assert!(samples.stacks.iter().any(is_burning), "{} samples", samples.stacks.len());
        drop(CpuProfile::start(100).unwrap());
        assert_eq!(stop().stacks.len(), 0);
    }
}
