// SPDX-License-Identifier: Apache-2.0
//! How much a thread matters to the scheduler.

/// As `nice`: a tenth of the share of an ordinary thread.
const NICE: libc::c_int = 10;

/// The calling thread runs when others have nothing urgent to do. It must not hold a lock that they need.
pub fn yield_to_others() {
    // 0 is the calling thread: on Linux the priority belongs to the thread, not to the process (setpriority(2)).
    // SAFETY: takes no pointer. To lower one's own priority is always allowed; if not, nothing is lost.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
