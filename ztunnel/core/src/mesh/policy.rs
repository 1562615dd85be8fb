// SPDX-License-Identifier: Apache-2.0
//! An authorization policy as the control plane describes it. What it means is decided in [`crate::authz`].
//!
//! Serializes to the shape of the admin API's `config_dump`: rules are lists of lists of matches.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Name;

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Every workload.
    Global,
    /// The workloads of the policy's namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a policy does to a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Admits it. Where there is such a policy, what none of them matches is refused.
    Allow,
    /// Refuses it, whatever else admits it.
    Deny,
}

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Its name.
    pub name: Name,
    /// Its namespace.
    pub namespace: Name,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What it does.
    pub action: Action,
    /// Any of them may match; a policy without rules never matches.
    pub rules: Vec<Rule>,
    /// Only report what it would do.
    pub dry_run: bool,
}

impl Policy {
    /// Its key, `namespace/name`.
    #[must_use]
    pub fn key(&self) -> Name {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// All clauses must match; a rule without clauses matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// Any of the matches must match; a clause without matches matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// All fields that are not empty must match; a match without any matches nothing.
///
/// A positive field matches if any of its values does, a `not_` field if none of its values does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// The namespace of the source's identity; the empty text without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    /// See [`Match::namespaces`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// The namespace and service account of the source's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// See [`Match::service_accounts`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The source's identity without `spiffe://`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    /// See [`Match::principals`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// The address of the TCP peer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// See [`Match::source_ips`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// The address that the application is reached at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    /// See [`Match::destination_ips`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// The port that the application is reached at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    /// See [`Match::destination_ports`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

/// How a text is compared; case counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatch {
    /// It is this.
    Exact(Name),
    /// It begins with this.
    Prefix(Name),
    /// It ends with this.
    Suffix(Name),
    /// It is not empty.
    Presence(),
}

/// A service account of any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Name,
    /// Its name.
    pub service_account: Name,
}
