// SPDX-License-Identifier: Apache-2.0
//! Texts that name somebody: SPIFFE identities in certificates and resources, network addresses, authorities.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use ztunnel_core::addr::{Authority, NetworkAddr, canonical_net};
use ztunnel_core::identity::Identity;
use ztunnel_core::mesh::ServiceKey;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    comes_back::<Identity>(text);
    comes_back::<NetworkAddr>(text);
    comes_back::<Authority>(text);
    comes_back::<ServiceKey>(text);
    if let Ok(identity) = Identity::from_str(text) {
        assert_eq!(identity.to_string(), text, "an identity has one spelling");
        assert!(text.ends_with(&identity.principal()));
    }
    if let Ok(net) = text.parse() {
        let net = canonical_net(net);
        assert_eq!(canonical_net(net), net);
    }
}

/// What is accepted is printed as something that is accepted, and means the same.
fn comes_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(read) = T::from_str(text) {
        let again = T::from_str(&read.to_string()).ok();
        assert_eq!(again.as_ref(), Some(&read));
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "spiffe://cluster.local/ns/shop/sa/web",
        "network/10.0.0.1",
        "/fd00::1",
        "/::ffff:10.0.0.1",
        "shop/web.shop.svc.cluster.local",
        "[::ffff:1.2.3.4]:80",
        "web.shop:8080",
        "::ffff:10.0.0.0/104",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
