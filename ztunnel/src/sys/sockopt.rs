// SPDX-License-Identifier: Apache-2.0
//! Socket options that `socket2` does not offer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use socket2::SockRef;
use ztunnel_core::addr::canonical;

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h), since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `IPV6_TRANSPARENT` and `IPV6_FREEBIND` (include/uapi/linux/in6.h).
const IPV6_TRANSPARENT: libc::c_int = 75;
const IPV6_FREEBIND: libc::c_int = 78;
/// `IP_BIND_ADDRESS_NO_PORT` (include/uapi/linux/in.h), for both families.
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;

/// Where the application wanted to go before the packet filter redirected it to us.
///
/// `None` when connection tracking knows nothing: the connection was not redirected.
pub fn original_dst(socket: &impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let found = socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok()?;
    found.as_socket().map(canonical)
}

/// Lets an IPv6 socket bind to an address that is not ours (`IPV6_TRANSPARENT`).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn set_ipv6_transparent(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket.as_fd(), libc::SOL_IPV6, IPV6_TRANSPARENT, 1)
}

/// Lets an IPv6 socket bind to an address that does not exist (`IPV6_FREEBIND`).
///
/// # Errors
/// Whatever `setsockopt` answers.
pub fn set_ipv6_freebind(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket.as_fd(), libc::SOL_IPV6, IPV6_FREEBIND, 1)
}

/// Lets `connect` choose the port of a socket that is bound to an address only, so that a port is taken per destination
/// and not for the address as a whole.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 4.2.
pub fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket.as_fd(), libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
}

/// The 64-bit id of the socket's network namespace (`SO_NETNS_COOKIE`), as the kernel programs see it.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut length: libc::socklen_t = 8;
    // SAFETY: both pointers are valid for the call, and the kernel writes at most `length` (8) bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that were written to a TCP socket and that its peer's kernel has not acknowledged (`SIOCOUTQ`).
///
/// # Errors
/// Whatever `ioctl` answers.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which outlives the call. `TIOCOUTQ` is the same number.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or_default()) } else { Err(io::Error::last_os_error()) }
}

fn set_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` outlives the call and the length is its size.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
