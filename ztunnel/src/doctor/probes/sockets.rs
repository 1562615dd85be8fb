// SPDX-License-Identifier: Apache-2.0
//! Privileges and sockets, tried with sockets of our own that are closed at once.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::super::facts::{Failure, Family, Outcome, Sockets};
use crate::sys::{netns, sockopt};

/// Used where the settings mark nothing: the privilege is worth knowing anyway.
const DEFAULT_MARK: u32 = 1337;

pub(super) fn probe(mark: u32) -> Sockets {
    let mark = if mark == 0 { DEFAULT_MARK } else { mark };
    Sockets {
        setns: outcome(netns::remember_home(), "network namespaces can be entered"),
        mark: outcome(
            tcp(Domain::IPV4).and_then(|socket| socket.set_mark(mark)),
            &format!("packets can carry mark {mark}"),
        ),
        reuse_port: outcome(reuse_port(), "two listeners share a port"),
        netns_cookie: tcp(Domain::IPV4)
            .and_then(|socket| sockopt::netns_cookie(&socket))
            .map(|cookie| format!("this namespace is {cookie}"))
            .map_err(Failure::from),
        v4: v4(),
        v6: bound_v6().map(|_| v6()).map_err(Failure::from),
    }
}

fn v4() -> Family {
    let socket = || tcp(Domain::IPV4);
    Family {
        transparent: outcome(socket().and_then(|socket| socket.set_ip_transparent_v4(true)), CLIENT_ADDRESS),
        freebind: outcome(socket().and_then(|socket| socket.set_freebind_v4(true)), FOREIGN_ADDRESS),
        original_dst: conntrack(socket().and_then(|socket| socket.original_dst_v4().map(drop))),
    }
}

fn v6() -> Family {
    let socket = || tcp(Domain::IPV6);
    Family {
        transparent: outcome(
            socket().and_then(|socket| sockopt::set_ipv6_transparent(&socket)),
            CLIENT_ADDRESS,
        ),
        freebind: outcome(socket().and_then(|socket| sockopt::set_ipv6_freebind(&socket)), FOREIGN_ADDRESS),
        original_dst: conntrack(socket().and_then(|socket| socket.original_dst_v6().map(drop))),
    }
}

const CLIENT_ADDRESS: &str = "applications see their client's address";
const FOREIGN_ADDRESS: &str = "sockets bind to addresses that are not ours";

fn tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

fn bound_v6() -> io::Result<Socket> {
    let socket = tcp(Domain::IPV6)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
    Ok(socket)
}

fn reuse_port() -> io::Result<()> {
    let first = tcp(Domain::IPV4)?;
    first.set_reuse_port(true)?;
    first.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    first.listen(1)?;
    let second = tcp(Domain::IPV4)?;
    second.set_reuse_port(true)?;
    second.bind(&first.local_addr()?)?;
    second.listen(1)
}

/// Connection tracking that has never seen this socket says `ENOENT`; where there is none, nobody knows the option.
fn conntrack(asked: io::Result<()>) -> Outcome {
    match asked {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error.into()),
        Ok(()) | Err(_) => Ok("connection tracking answers".to_owned()),
    }
}

fn outcome(result: io::Result<()>, seen: &str) -> Outcome {
    result.map(|()| seen.to_owned()).map_err(Failure::from)
}
