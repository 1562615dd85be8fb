// SPDX-License-Identifier: Apache-2.0
//! SPIFFE IDs in the one form that Istio uses: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::Name;

const SCHEME: &str = "spiffe://";

/// Who a workload is: what its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, `cluster.local` by default.
    pub trust_domain: Name,
    /// The Kubernetes namespace.
    pub namespace: Name,
    /// The Kubernetes service account.
    pub service_account: Name,
}

impl Identity {
    /// The identity as policies and metrics spell it: without `spiffe://`.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(f, "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not a SPIFFE ID of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid spiffe identity: {0}")]
pub struct IdentityError(pub String);

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let refuse = || IdentityError(text.to_owned());
        // A peer's certificate may hold anything; what passes here is printed into headers and logs.
        let clean = |segment: &str| segment.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
        let rest = text.strip_prefix(SCHEME).ok_or_else(refuse)?;
        let mut segments = rest.split('/');
        let mut next = || segments.next().filter(|segment| !segment.is_empty() && clean(segment));
        match (next(), next(), next(), next(), next(), segments.next()) {
            (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Ok(Self {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: account.into(),
            }),
            _ => Err(refuse()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_printed() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "spiffe://",
            "cluster.local/ns/shop/sa/web",
            "SPIFFE://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/sa/web/ns/shop",
            "spiffe://cluster.local/ns/shop/sa/we b",
            "spiffe://cluster.local/ns/shop/sa/web\n",
            "spiffe://cluster.local/ns/shop/sa/w\u{e9}b",
        ] {
            assert_eq!(text.parse::<Identity>(), Err(IdentityError(text.to_owned())), "{text}");
        }
    }
}
