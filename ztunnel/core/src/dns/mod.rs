// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy's decisions: what a pod's question is answered with, and what is forwarded.
//!
//! Only addresses of names that the mesh knows are answered here; every other message goes to a resolver as it came, byte
//! for byte but for its id. So this parser reads a header, one question and the EDNS record, and steps over the rest: what
//! it does not understand it cannot break. A DNS library would decode and encode again everything that passes.
//!
//! * [`wire`]: messages. [`name`]: names in them. [`kind`]: record types in words.
//! * [`lookup`]: the answer, a function of question, client and mesh; [`aliases`]: under which names it is sought.
//! * [`respond`]: the answer as a message.
//! * [`exchange`]: how a resolver is asked; which answers are believed. [`resolv_conf`]: which resolvers.
//!
//! Source: data-plane contract, sections 5.1 to 5.6; RFC 1035, RFC 2308, RFC 6891.

pub mod aliases;
pub mod exchange;
pub mod kind;
pub mod lookup;
pub mod name;
pub mod resolv_conf;
pub mod respond;
pub mod wire;

#[cfg(test)]
mod tests;

pub use self::lookup::{Answer, Client, Records, answer};
pub use self::wire::{Edns, Header, Query, Question, Rcode, Unanswerable};

use crate::Name;

/// What answers depend on beside question, client and mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `CLUSTER_DOMAIN`, lower case, without dots at its ends.
    pub domain: Name,
    /// `PREFERED_SERVICE_NAMESPACE`: preferred where several services share a name and nothing else decides.
    pub preferred_namespace: Option<Name>,
    /// `IPV6_ENABLED`: names have IPv6 addresses.
    pub ipv6: bool,
}

/// Where names are sought besides, most specific first: lower case, without dots at their ends.
#[must_use]
pub fn search_domains(namespace: &str, domain: &str) -> Vec<String> {
    vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]
}
