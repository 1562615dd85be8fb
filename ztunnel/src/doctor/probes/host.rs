// SPDX-License-Identifier: Apache-2.0
//! Files, ports and limits around the process.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::facts::{Failure, Host, Outcome};
use super::super::mounts::{self, Mount};
use super::read;
use crate::admin::{ADMIN_PORT, METRICS_PORT, READINESS_PORT};

const PORTS: [(u16, &str, Ipv4Addr); 3] = [
    (ADMIN_PORT, "admin", Ipv4Addr::LOCALHOST),
    (METRICS_PORT, "metrics", Ipv4Addr::UNSPECIFIED),
    (READINESS_PORT, "readiness", Ipv4Addr::UNSPECIFIED),
];

pub(super) fn probe(agent: &Path, mounts: Vec<Mount>) -> Host {
    let limits = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Failure::from(io::Error::from(errno)));
    Host {
        open_files: limits.map(|(_soft, hard)| hard),
        uid: nix::unistd::geteuid().as_raw(),
        mounts,
        agent: self::agent(agent),
        ports: PORTS
            .into_iter()
            .map(|(port, purpose, ip)| (port, purpose, free(SocketAddr::from((ip, port)))))
            .collect(),
    }
}

pub(super) fn mounts() -> Vec<Mount> {
    read("/proc/self/mountinfo").map(|text| mounts::parse(&text)).unwrap_or_default()
}

/// The `CapEff` line of the process' status.
pub(super) fn capabilities() -> Option<u64> {
    let status = read("/proc/thread-self/status")?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

/// Looked at, not connected to: the agent takes the latest connection for the ztunnel in charge.
fn agent(path: &Path) -> Outcome {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(format!("{shown} is there")),
        Ok(_) => Err(Failure::because(format!("{shown} is no socket"))),
        Err(error) => Err(Failure::because(format!("{shown}: {error}"))),
    }
}

/// Bound as the servers do, but never listened on.
fn free(address: SocketAddr) -> Outcome {
    let bound = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    });
    bound.map(|()| String::new()).map_err(Failure::from)
}
