// SPDX-License-Identifier: Apache-2.0
//! The system calls that the standard library and `socket2` lack. The only `unsafe` of this process.
//!
//! * [`sockopt`]: original destination, cookies, transparent sockets.
//! * [`netns`]: run code inside another network namespace.
//! * [`seqpacket`]: the node agent's socket, with file descriptors in flight.
//! * [`memory`]: the allocator. * [`priority`]: the scheduler. * [`timer`]: short sleeps. * [`sock_diag`]: the kernel's socket tables.
//! * [`cpu_profile`], [`heap_profile`]: samples of what this process does, and of what it keeps.
//! * [`bpf`]: what the fast path asks of the kernel beside `aya`.
#![expect(
    unsafe_code,
    reason = "this module exists to hold it: one operation per block, each with its SAFETY reason"
)]

pub mod bpf;
pub mod cpu_profile;
pub mod heap_profile;
pub mod memory;
pub mod netns;
pub mod priority;
pub mod seqpacket;
pub mod sock_diag;
pub mod sockopt;
pub mod timer;
