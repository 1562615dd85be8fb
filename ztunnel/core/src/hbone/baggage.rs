// SPDX-License-Identifier: Apache-2.0
//! The `baggage` header: who a workload says it is, for the other side's telemetry.
//!
//! The peers' dialect of W3C Baggage has no escapes and no spaces: elements are split at `,`, then at `=`.
//! A value that would not survive this is left out rather than sent as something else.

use std::fmt;

use http::{HeaderMap, HeaderValue};

use crate::Name;
use crate::mesh::Workload;

/// The header's name.
pub const HEADER: &str = "baggage";

/// Longer values are nobody's name; they would only fill the peers' label sets.
const MAX_VALUE: usize = 256;

/// What a workload is, as the key of its name says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `k8s.deployment.name`
    #[default]
    Deployment,
    /// `k8s.cronjob.name`
    CronJob,
    /// `k8s.pod.name`
    Pod,
    /// `k8s.job.name`
    Job,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    /// The key of a workload's name.
    pub fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }

    /// The kind of a workload type as the mesh has it; whoever says nothing is a deployment.
    fn from_workload_type(text: &str) -> Self {
        match text {
            "cronjob" => Self::CronJob,
            "pod" => Self::Pod,
            "job" => Self::Job,
            _ => Self::Deployment,
        }
    }
}

/// What the header says. An absent element and an empty one are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<Name>,
    /// `k8s.namespace.name`
    pub namespace: Option<Name>,
    /// The owner's name, under the key of its kind.
    pub workload: Option<(Kind, Name)>,
    /// `service.name`: the canonical name.
    pub service_name: Option<Name>,
    /// `service.version`: the canonical revision.
    pub service_version: Option<Name>,
    /// `cloud.region`
    pub region: Option<Name>,
    /// `cloud.availability_zone`
    pub zone: Option<Name>,
}

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE_NAME: &str = "service.name";
const SERVICE_VERSION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

impl Baggage {
    /// What a workload says about itself.
    pub fn of(workload: &Workload) -> Self {
        let known = |name: &Name| (!name.is_empty()).then(|| Name::clone(name));
        let kind = Kind::from_workload_type(&workload.workload_type);
        Self {
            cluster: known(&workload.cluster_id),
            namespace: known(&workload.namespace),
            workload: known(&workload.workload_name).map(|name| (kind, name)),
            service_name: known(&workload.canonical_name),
            service_version: known(&workload.canonical_revision),
            region: known(&workload.locality.region),
            zone: known(&workload.locality.zone),
        }
    }

    fn elements(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let workload = self.workload.as_ref();
        [
            (CLUSTER, self.cluster.as_deref()),
            (NAMESPACE, self.namespace.as_deref()),
            (workload.map_or("", |(kind, _)| kind.key()), workload.map(|(_, name)| name.as_ref())),
            (SERVICE_NAME, self.service_name.as_deref()),
            (SERVICE_VERSION, self.service_version.as_deref()),
            (REGION, self.region.as_deref()),
            (ZONE, self.zone.as_deref()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.filter(|value| is_value(value))?)))
    }

    fn set(&mut self, key: &str, value: &str) {
        let name = || is_value(value).then(|| Name::from(value));
        let known = match key {
            CLUSTER => &mut self.cluster,
            NAMESPACE => &mut self.namespace,
            SERVICE_NAME => &mut self.service_name,
            SERVICE_VERSION => &mut self.service_version,
            REGION => &mut self.region,
            ZONE => &mut self.zone,
            _ => {
                if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.key() == key) {
                    self.workload = name().map(|name| (kind, name));
                }
                return;
            }
        };
        *known = name();
    }
}

/// Reads the values of all `baggage` lines, in order. Later elements replace earlier ones.
pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Baggage {
    let mut baggage = Baggage::default();
    for element in lines.into_iter().flat_map(|line| line.split(',')) {
        let mut pieces = element.split('=');
        if let (Some(key), Some(value)) = (pieces.next(), pieces.next()) {
            baggage.set(key, value);
        }
    }
    baggage
}

/// Reads the header from a request or response. A line that is not ASCII spoils all of it.
pub fn from_headers(headers: &HeaderMap) -> Baggage {
    let lines: Result<Vec<&str>, _> = headers.get_all(HEADER).iter().map(HeaderValue::to_str).collect();
    lines.map(parse).unwrap_or_default()
}

/// Writes the header's value; empty if there is nothing to say.
pub fn print(baggage: &Baggage) -> String {
    baggage.to_string()
}

/// The header's value, ready to be sent: once per workload, not once per stream.
pub fn header(baggage: &Baggage) -> HeaderValue {
    HeaderValue::from_str(&print(baggage)).expect("elements are printable ASCII")
}

/// What comes back from a peer as it was sent.
fn is_value(value: &str) -> bool {
    let plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b',' | b'=');
    !value.is_empty() && value.len() <= MAX_VALUE && value.bytes().all(plain)
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.elements().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}
