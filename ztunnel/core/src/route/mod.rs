// SPDX-License-Identifier: Apache-2.0
//! Where a connection goes: the vocabulary of [`outbound`] and [`inbound`].

mod gateway;
pub mod inbound;
mod need;
pub mod outbound;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::Name;
use crate::addr::Authority;
use crate::identity::Identity;
use crate::mesh::{Service, Workload};

pub use self::inbound::{Inbound, InboundTarget};
pub use self::need::{Known, Need};
pub use self::outbound::Outbound;

/// The answer for one outbound connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Take it there.
    Go(Route),
    /// Find this out, and ask again.
    Need(Need),
    /// Close it.
    Refuse(Refusal),
}

/// Where one outbound connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What to dial.
    pub kind: RouteKind,
    /// The workload that is dialed, if the mesh knows it: the destination, or a waypoint or gateway on the way there.
    pub destination: Option<Arc<Workload>>,
    /// The service that the application asked for, if it asked for one.
    pub service: Option<Arc<Service>>,
}

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// The original destination, untouched: the mesh does not know it.
    Passthrough(SocketAddr),
    /// A known workload that does not speak HBONE.
    Plaintext(SocketAddr),
    /// A tunnel to the destination's proxy, or to its waypoint.
    Hbone(Hop),
    /// A tunnel to another network's gateway, and in it one to the destination's proxy.
    DoubleHbone(DoubleHop),
}

impl RouteKind {
    /// The address to dial.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::Passthrough(addr) | Self::Plaintext(addr) => *addr,
            Self::Hbone(hop) => hop.addr,
            Self::DoubleHbone(hops) => hops.outer.addr,
        }
    }

    /// The hop that is dialed, if it is a tunnel.
    #[must_use]
    pub fn hop(&self) -> Option<&Hop> {
        match self {
            Self::Passthrough(_) | Self::Plaintext(_) => None,
            Self::Hbone(hop) => Some(hop),
            Self::DoubleHbone(hops) => Some(&hops.outer),
        }
    }
}

/// The next hop of a tunneled connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The proxy's HBONE listener.
    pub addr: SocketAddr,
    /// What to ask it for.
    pub authority: Authority,
    /// Who it may be: one of these, sorted, never empty.
    pub expected: Vec<Identity>,
}

/// The next hop of a connection to another network. Both tunnels have the same authority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DoubleHop {
    /// The network's gateway.
    pub outer: Hop,
    /// Who may be behind it: one of these, sorted. Nobody can be if the service vouches for nobody.
    pub expected: Vec<Identity>,
}

/// Why a connection is not routed. Each one is an expected outcome, and its text is a diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It would come back to one of our own listeners.
    LoopToSelf,
    /// The control plane has not told us about the pod we serve.
    LocalWorkloadUnknown {
        /// The pod's name.
        name: Name,
        /// Its namespace.
        namespace: Name,
        /// Its service account.
        service_account: Name,
    },
    /// The service has no endpoint for this address that may be chosen.
    NoHealthyUpstream(SocketAddr),
    /// The destination is in another network, and only services are reachable there.
    NoServiceForTarget(SocketAddr),
    /// The chosen workload has no usable address.
    NoValidDestination(Name),
    /// The chosen workload is known by its host name, which has no address.
    NotResolved(Name),
    /// The waypoint cannot be used; never bypassed.
    UnknownWaypoint(String),
    /// The network gateway cannot be used; never bypassed.
    UnknownGateway(String),
    /// The request is for another pod.
    IpMismatch {
        /// The pod we serve.
        pod: IpAddr,
        /// The pod that was asked for.
        authority: IpAddr,
    },
    /// The requested host name is no service that we know.
    NoServiceForHostname(Name),
    /// The requested service does not lead to a port of this pod.
    CannotResolvePort {
        /// The requested host name.
        host: Name,
        /// The requested service port.
        port: u16,
    },
    /// The application wants to know the requested address, and the requested service has none.
    NoServiceAddress(Name),
    /// The control plane was asked what this is, and did not answer.
    NoAnswer(Name),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoopToSelf => f.write_str("attempted recursive call to ourselves"),
            Self::LocalWorkloadUnknown { name, namespace, service_account } => write!(
                f,
                "failed to fetch information about local workload: {service_account}.{namespace} ({name})"
            ),
            Self::NoHealthyUpstream(addr) => write!(f, "no healthy upstream: {addr}"),
            Self::NoServiceForTarget(addr) => write!(f, "no service for target address: {addr}"),
            Self::NoValidDestination(workload) => {
                write!(f, "no valid routing destination for workload: {workload}")
            }
            Self::NotResolved(workload) => {
                write!(f, "no ip addresses were resolved for workload: {workload}")
            }
            Self::UnknownWaypoint(which) => write!(f, "unknown waypoint: {which}"),
            Self::UnknownGateway(which) => write!(f, "unknown network gateway: {which}"),
            Self::IpMismatch { pod, authority } => write!(f, "ip mismatch: {pod} != {authority}"),
            Self::NoServiceForHostname(host) => {
                write!(f, "no service or workload for hostname: {host}")
            }
            Self::CannotResolvePort { host, port } => {
                write!(f, "requested service {host}:{port} found, but cannot resolve port")
            }
            Self::NoAnswer(name) => write!(f, "the control plane does not say what {name} is"),
            Self::NoServiceAddress(host) => {
                write!(f, "requested service {host} found, but has no IP addresses")
            }
        }
    }
}

impl std::error::Error for Refusal {}
