// SPDX-License-Identifier: Apache-2.0
//! Network namespaces: enter one, create sockets, come back.
//!
//! A socket belongs to the namespace it was created in, for good. So the switch is needed only around socket
//! creation; it is done on the calling thread and undone before anything else can run on it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, OnceLock};

use nix::sched::{CloneFlags, setns};

use super::sockopt;

/// The namespace of this process, opened once, before any thread enters another.
static HOME: OnceLock<OwnedFd> = OnceLock::new();

/// A network namespace that we hold open.
#[derive(Debug)]
pub struct Netns {
    /// `None`: that of this process, which need not be entered.
    fd: Option<Arc<OwnedFd>>,
    /// (device, inode): equal for two descriptors of one namespace.
    identity: (u64, u64),
    /// The id that the kernel programs see; 0 where the kernel has none (before 5.14).
    cookie: u64,
}

impl Netns {
    /// Takes a descriptor of a network namespace, as the node agent sends it.
    ///
    /// # Errors
    /// The descriptor is not a network namespace, or the process may not enter it.
    pub fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        let identity = identity(&fd)?;
        Self { fd: Some(fd), identity, cookie: 0 }.with_cookie()
    }

    /// The namespace of this process. No privilege is needed: nobody goes anywhere.
    ///
    /// # Errors
    /// The kernel does not say which one it is.
    pub fn own() -> io::Result<Self> {
        let identity = identity(&own()?)?;
        Self { fd: None, identity, cookie: 0 }.with_cookie()
    }

    fn with_cookie(mut self) -> io::Result<Self> {
        self.cookie = self.run(|| {
            let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            Ok::<_, io::Error>(sockopt::netns_cookie(&probe).unwrap_or(0))
        })??;
        Ok(self)
    }

    /// (device, inode) of the namespace.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The kernel's 64-bit id of the namespace; 0 if this kernel has none.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `f` on this thread inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// If the thread cannot return home: anything it would do from there on would happen in the wrong pod.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        /// Returns home even if `f` panics.
        struct Return;
        impl Drop for Return {
            fn drop(&mut self) {
                let home = HOME.get().expect("set before the namespace was entered");
                setns(home.as_fd(), CloneFlags::CLONE_NEWNET).expect("a thread returns to its own namespace");
            }
        }
        let Some(fd) = &self.fd else { return Ok(f()) };
        remember_home()?;
        setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _return = Return;
        Ok(f())
    }
}

/// (device, inode) of a namespace descriptor: what tells two namespaces apart.
///
/// # Errors
/// The descriptor cannot be read.
pub fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let metadata = File::from(fd.try_clone()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Opens the process' own namespace, and proves that `setns` is permitted.
///
/// # Errors
/// `setns` is refused: `CAP_SYS_ADMIN` is missing.
pub fn remember_home() -> io::Result<()> {
    if HOME.get().is_some() {
        return Ok(());
    }
    let home = own()?;
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET)?;
    // Another thread may have been first; both opened the same namespace.
    HOME.get_or_init(|| home);
    Ok(())
}

fn own() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}
