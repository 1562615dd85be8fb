// SPDX-License-Identifier: Apache-2.0
//! What this process takes of the machine, as `process_*` says it.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// Open descriptors.
///
/// # Errors
/// There is no `/proc`.
pub fn open_fds() -> io::Result<u64> {
    // Since Linux 6.2 the directory knows its size; before, somebody has to count.
    match fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(fs::read_dir("/proc/self/fd")?.count() as u64),
        count => Ok(count),
    }
}

/// The most there may be.
///
/// # Errors
/// The kernel does not say.
pub fn max_fds() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Resident memory, in bytes.
///
/// # Errors
/// There is no `/proc`.
pub fn resident() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok());
    pages
        .zip(page)
        .map(|(pages, page)| pages * page)
        .ok_or_else(|| io::Error::other("unexpected /proc/self/statm"))
}

/// CPU time of all threads.
///
/// # Errors
/// The kernel does not say.
pub fn cpu() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec())
        .iter()
        .sum::<i64>();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_what_it_takes() {
        let before = open_fds().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(open_fds().unwrap() >= before.min(1));
        drop(file);
        assert!(max_fds().unwrap() >= before);
        assert!(resident().unwrap() > 100_000);
        assert!(cpu().is_ok());
    }
}
