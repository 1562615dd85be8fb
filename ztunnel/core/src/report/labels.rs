// SPDX-License-Identifier: Apache-2.0
//! The label set that all per-connection metrics share, resolved once per connection.
//!
//! Names, order and the value `unknown` are Istio's. Values are stored as they are; whoever writes an
//! exposition passes them through [`escape`].

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::Flag;
use crate::Name;
use crate::hbone::Baggage;
use crate::identity::Identity;
use crate::mesh::{Service, Workload};

const UNKNOWN: &str = "unknown";
/// The far workload of connections that are not told apart any more.
const OVERFLOW: &str = "overflow";

/// Every label, in the order of the contract.
pub const NAMES: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

/// Places in [`NAMES`]: the first label of each group.
pub mod place {
    pub(super) const REPORTER: usize = 0;
    pub(super) const SOURCE: usize = 1;
    pub(super) const SERVICE: usize = 9;
    pub(super) const DESTINATION: usize = 12;
    /// How the connection ended.
    pub const FLAGS: usize = 21;
    pub(super) const SECURITY: usize = 22;
    pub(super) const SOURCE_LOCALITY: usize = 23;
    pub(super) const DESTINATION_LOCALITY: usize = 25;
}

/// The labels that the operator wants. The others are left out, and connections that differ only in them are
/// counted together. `reporter` and `response_flags` are always there: without them sums would count twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LabelFilter(u32);

impl LabelFilter {
    /// Every label.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Whether the label at this place of [`NAMES`] is one of them.
    pub fn keeps(self, place: usize) -> bool {
        self.0 >> place & 1 == 1
    }
}

impl Default for LabelFilter {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Debug for LabelFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries((0..NAMES.len()).filter(|place| self.keeps(*place)).map(|place| NAMES[place]))
            .finish()
    }
}

/// A text that is not a list of labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no label `{0}`; expected a list, separated by commas, of {all}", all = NAMES.join(", "))]
pub struct LabelFilterError(pub String);

impl FromStr for LabelFilter {
    type Err = LabelFilterError;

    /// Names separated by commas; nothing is every label.
    fn from_str(text: &str) -> Result<Self, LabelFilterError> {
        let mut kept = 1 << place::REPORTER | 1 << place::FLAGS;
        let mut names = text.split(',').map(str::trim).filter(|name| !name.is_empty()).peekable();
        if names.peek().is_none() {
            return Ok(Self::ALL);
        }
        for name in names {
            match NAMES.iter().position(|known| *known == name) {
                Some(place) => kept |= 1 << place,
                None => return Err(LabelFilterError(name.to_owned())),
            }
        }
        Ok(Self(kept))
    }
}

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

    /// Without what `filter` leaves out, so that connections that differ only in it are equal.
    #[must_use]
    pub fn only(mut self, filter: LabelFilter) -> Self {
        if filter == LabelFilter::ALL {
            return self;
        }
        self.source.only(filter, place::SOURCE, place::SOURCE_LOCALITY);
        self.destination.only(filter, place::DESTINATION, place::DESTINATION_LOCALITY);
        let services = [&mut self.service, &mut self.service_namespace, &mut self.service_name];
        for (offset, name) in services.into_iter().enumerate() {
            name.take_if(|_| !filter.keeps(place::SERVICE + offset));
        }
        if !filter.keeps(place::SECURITY) {
            self.security = Security::Unknown;
        }
        self.locality &= (place::SOURCE_LOCALITY..NAMES.len()).any(|place| filter.keeps(place));
        self
    }

    /// The set that takes what is one too many: only our own side is told apart, whose names no peer makes up.
    #[must_use]
    pub fn overflow(&self) -> Self {
        let far = || Side { workload: Some(OVERFLOW.into()), ..Side::default() };
        let (source, destination) = match self.reporter {
            Reporter::Source => (self.source.clone(), far()),
            Reporter::Destination => (far(), self.destination.clone()),
        };
        Self {
            source,
            destination,
            service: None,
            service_namespace: None,
            service_name: None,
            ..self.clone()
        }
    }

    /// As [`overflow`](Self::overflow), for a node that has too many sets even of its own: who reports, and nothing else.
    #[must_use]
    pub fn overflow_of_all(&self) -> Self {
        let every = || Side { workload: Some(OVERFLOW.into()), ..Side::default() };
        let locality = false;
        Self {
            source: every(),
            destination: every(),
            locality,
            security: Security::Unknown,
            ..self.overflow()
        }
    }

    /// How the connection ended.
    pub fn flag(&self) -> Flag {
        self.flag
    }

    /// Who reports.
    pub fn reporter(&self) -> Reporter {
        self.reporter
    }

    /// Values by their place in [`NAMES`]; none where the label is not shown.
    pub fn values(&self) -> [Option<&str>; NAMES.len()] {
        let (source, destination) = (&self.source, &self.destination);
        let region = |name| self.locality.then(|| value(name));
        [
            Some(self.reporter.as_str()),
            Some(value(&source.workload)),
            Some(value(&source.canonical_service)),
            Some(value(&source.canonical_revision)),
            Some(value(&source.namespace)),
            Some(value(&source.principal)),
            Some(value(&source.app)),
            Some(value(&source.canonical_revision)),
            Some(value(&source.cluster)),
            Some(value(&self.service)),
            Some(value(&self.service_namespace)),
            Some(value(&self.service_name)),
            Some(value(&destination.workload)),
            Some(value(&destination.canonical_service)),
            Some(value(&destination.canonical_revision)),
            Some(value(&destination.namespace)),
            Some(value(&destination.principal)),
            Some(value(&destination.app)),
            Some(value(&destination.canonical_revision)),
            Some(value(&destination.cluster)),
            Some("tcp"),
            Some(self.flag.as_str()),
            Some(self.security.as_str()),
            region(&source.region),
            region(&source.zone),
            region(&destination.region),
            region(&destination.zone),
        ]
    }
}

impl Side {
    /// `first` and `locality` are the places of this side's labels.
    fn only(&mut self, filter: LabelFilter, first: usize, locality: usize) {
        let fields = [
            (&mut self.workload, filter.keeps(first)),
            (&mut self.canonical_service, filter.keeps(first + 1)),
            // The revision is the version, too.
            (&mut self.canonical_revision, filter.keeps(first + 2) || filter.keeps(first + 6)),
            (&mut self.namespace, filter.keeps(first + 3)),
            (&mut self.principal, filter.keeps(first + 4)),
            (&mut self.app, filter.keeps(first + 5)),
            (&mut self.cluster, filter.keeps(first + 7)),
            (&mut self.region, filter.keeps(locality)),
            (&mut self.zone, filter.keeps(locality + 1)),
        ];
        for (field, kept) in fields {
            field.take_if(|_| !kept);
        }
    }

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
    // Bytes, not characters: these three occur in no other character of UTF-8.
    let special = |byte| matches!(byte, b'\\' | b'"' | b'\n');
    // To the end in any case: a loop without a way out looks at many bytes at a time.
    if !value.bytes().fold(false, |found, byte| found | special(byte)) {
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
