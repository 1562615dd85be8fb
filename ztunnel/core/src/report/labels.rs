// SPDX-License-Identifier: Apache-2.0
//! The label set that all per-connection metrics share, resolved once per connection.
//!
//! Names, order and the value `unknown` are Istio's. Values are stored as they are; whoever writes an
//! exposition passes them through [`escape`].

use std::borrow::Cow;

use super::Flag;
use crate::Name;
use crate::hbone::Baggage;
use crate::identity::Identity;
use crate::mesh::{Service, Workload};

const UNKNOWN: &str = "unknown";

/// Which side of a connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The source's proxy: outbound.
    Source,
    /// The destination's proxy: inbound.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The access log's `direction`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// Whether the mesh protects the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Security {
    /// HBONE.
    MutualTls,
    /// Anything else.
    #[default]
    Unknown,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => UNKNOWN,
        }
    }
}

/// What is known about a connection when it opens.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who reports.
    pub reporter: Reporter,
    /// The source, if the mesh knows it.
    pub source: Option<&'a Workload>,
    /// What the source says it is; used only where the mesh does not know it.
    pub derived_source: Option<&'a Baggage>,
    /// The source's identity, only if mTLS proved it.
    pub source_principal: Option<&'a Identity>,
    /// The destination, if the mesh knows it.
    pub destination: Option<&'a Workload>,
    /// What the destination says it is; used only where the mesh does not know it.
    pub derived_destination: Option<&'a Baggage>,
    /// The destination's identity where it is not the destination workload's own.
    pub destination_principal: Option<&'a Identity>,
    /// The service that the source addressed.
    pub service: Option<&'a Service>,
    /// Whether the mesh protects the connection.
    pub security: Security,
}

impl Facts<'_> {
    /// Nothing is known but who reports.
    pub fn new(reporter: Reporter) -> Self {
        Self {
            reporter,
            source: None,
            derived_source: None,
            source_principal: None,
            destination: None,
            derived_destination: None,
            destination_principal: None,
            service: None,
            security: Security::Unknown,
        }
    }
}

/// One side's labels. Nothing stands for `unknown`; no value is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Side {
    workload: Option<Name>,
    canonical_service: Option<Name>,
    canonical_revision: Option<Name>,
    namespace: Option<Name>,
    principal: Option<Name>,
    app: Option<Name>,
    cluster: Option<Name>,
    region: Option<Name>,
    zone: Option<Name>,
}

/// The labels of one connection, a key for metric families.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    reporter: Reporter,
    source: Side,
    service: Option<Name>,
    service_namespace: Option<Name>,
    service_name: Option<Name>,
    destination: Side,
    flag: Flag,
    security: Security,
    locality: bool,
}

impl Labels {
    /// The labels of a connection that has just opened; the flag is `-`.
    pub fn new(facts: &Facts<'_>) -> Self {
        let mut source = Side::of(facts.source, facts.derived_source);
        source.principal = facts.source_principal.map(principal);
        let mut destination = Side::of(facts.destination, facts.derived_destination);
        destination.principal = match (facts.destination_principal, facts.destination) {
            (Some(identity), _) => Some(principal(identity)),
            (None, Some(workload)) => Some(principal(&workload.identity())),
            (None, None) => None,
        };
        let service = |field: fn(&Service) -> &Name| facts.service.and_then(|service| known(field(service)));
        Self {
            reporter: facts.reporter,
            source,
            service: service(|service| &service.hostname),
            service_namespace: service(|service| &service.namespace),
            service_name: service(|service| &service.name),
            destination,
            flag: Flag::None,
            security: facts.security,
            locality: facts.source.is_some()
                || facts.derived_source.is_some()
                || facts.destination.is_some()
                || facts.derived_destination.is_some(),
        }
    }

    /// The same connection with its final flag.
    #[must_use]
    pub fn with_flag(&self, flag: Flag) -> Self {
        Self { flag, ..self.clone() }
    }

    /// How the connection ended.
    pub fn flag(&self) -> Flag {
        self.flag
    }

    /// Who reports.
    pub fn reporter(&self) -> Reporter {
        self.reporter
    }

    /// Names and values in the order of the contract.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (source, destination) = (&self.source, &self.destination);
        let fixed = [
            ("reporter", self.reporter.as_str()),
            ("source_workload", value(&source.workload)),
            ("source_canonical_service", value(&source.canonical_service)),
            ("source_canonical_revision", value(&source.canonical_revision)),
            ("source_workload_namespace", value(&source.namespace)),
            ("source_principal", value(&source.principal)),
            ("source_app", value(&source.app)),
            ("source_version", value(&source.canonical_revision)),
            ("source_cluster", value(&source.cluster)),
            ("destination_service", value(&self.service)),
            ("destination_service_namespace", value(&self.service_namespace)),
            ("destination_service_name", value(&self.service_name)),
            ("destination_workload", value(&destination.workload)),
            ("destination_canonical_service", value(&destination.canonical_service)),
            ("destination_canonical_revision", value(&destination.canonical_revision)),
            ("destination_workload_namespace", value(&destination.namespace)),
            ("destination_principal", value(&destination.principal)),
            ("destination_app", value(&destination.app)),
            ("destination_version", value(&destination.canonical_revision)),
            ("destination_cluster", value(&destination.cluster)),
            ("request_protocol", "tcp"),
            ("response_flags", self.flag.as_str()),
            ("connection_security_policy", self.security.as_str()),
        ];
        let locality = [
            ("source_region", value(&source.region)),
            ("source_zone", value(&source.zone)),
            ("destination_region", value(&destination.region)),
            ("destination_zone", value(&destination.zone)),
        ];
        fixed.into_iter().chain(locality.into_iter().filter(|_| self.locality))
    }
}

impl Side {
    fn of(workload: Option<&Workload>, derived: Option<&Baggage>) -> Self {
        match (workload, derived) {
            (Some(workload), _) => Self::known(workload),
            (None, Some(baggage)) => Self::derived(baggage),
            (None, None) => Self::default(),
        }
    }

    /// What the mesh knows wins over what a peer says, even where the mesh knows nothing.
    fn known(workload: &Workload) -> Self {
        let canonical_service = known(&workload.canonical_name);
        Self {
            workload: known(&workload.workload_name),
            app: canonical_service.clone(),
            canonical_service,
            canonical_revision: known(&workload.canonical_revision),
            namespace: known(&workload.namespace),
            principal: None,
            cluster: known(&workload.cluster_id),
            region: known(&workload.locality.region),
            zone: known(&workload.locality.zone),
        }
    }

    fn derived(baggage: &Baggage) -> Self {
        let workload = baggage.workload.as_ref().map(|(_, name)| Name::clone(name));
        Self {
            app: workload.clone(),
            workload,
            canonical_service: baggage.service_name.clone(),
            canonical_revision: baggage.service_version.clone(),
            namespace: baggage.namespace.clone(),
            principal: None,
            cluster: baggage.cluster.clone(),
            region: baggage.region.clone(),
            zone: baggage.zone.clone(),
        }
    }
}

/// A label value as OpenMetrics wants it between quotes.
pub fn escape(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn principal(identity: &Identity) -> Name {
    identity.to_string().into()
}

fn known(name: &Name) -> Option<Name> {
    (!name.is_empty()).then(|| Name::clone(name))
}

fn value(name: &Option<Name>) -> &str {
    name.as_deref().filter(|name| !name.is_empty()).unwrap_or(UNKNOWN)
}
