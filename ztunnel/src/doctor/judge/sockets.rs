// SPDX-License-Identifier: Apache-2.0
//! Privileges and sockets: what no ztunnel can do without.

use super::super::facts::{Facts, Failure, Family, Outcome};
use super::super::report::{Line, Need, Topic};
use super::refusal::{self, Capability, NET_ADMIN, NET_RAW, SYS_ADMIN};

/// The lines, in the order in which ztunnel needs them.
pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    let sockets = &facts.sockets;
    let fix = |any_of: &'static [Capability], lacking: &'static str| {
        move |failure: &Failure| refusal::fix(facts.capabilities, failure, any_of, || lacking.to_owned())
    };
    let mut lines = vec![
        line(
            "setns",
            Need::Required,
            &sockets.setns,
            &fix(&[SYS_ADMIN], "the kernel needs CONFIG_NET_NS, the container /proc"),
        ),
        line(
            "SO_MARK",
            if facts.config.sockets.mark == 0 { Need::Informative } else { Need::Required },
            &sockets.mark,
            &fix(&[NET_ADMIN, NET_RAW], "use a kernel that knows SO_MARK"),
        ),
        line(
            "SO_REUSEPORT",
            Need::Required,
            &sockets.reuse_port,
            &fix(&[], "every worker has its own listener on one port: use a kernel that knows SO_REUSEPORT"),
        ),
    ];
    lines.extend(family(facts, &sockets.v4, &V4));
    match &sockets.v6 {
        Ok(v6) => {
            let seen = Ok("sockets can be made and bound".to_owned());
            lines.push(line("IPv6", Need::Informative, &seen, &|_| String::new()));
            if facts.config.sockets.ipv6 {
                lines.extend(family(facts, v6, &V6));
            }
        }
        Err(failure) => {
            let without = |_: &Failure| {
                "nothing, if no pod has an IPv6 address; else load the ipv6 module (ipv6.disable=0)"
                    .to_owned()
            };
            lines.push(line("IPv6", Need::Informative, &Err(failure.clone()), &without));
        }
    }
    lines.push(line(
        "SO_NETNS_COOKIE",
        Need::FastPath,
        &sockets.netns_cookie,
        &fix(&[], "the kernel programs tell pods apart by it: use a newer kernel"),
    ));
    lines
}

/// Names and hints of an address family.
struct Names {
    transparent: &'static str,
    freebind: &'static str,
    original_dst: &'static str,
}

const V4: Names =
    Names { transparent: "IP_TRANSPARENT", freebind: "IP_FREEBIND", original_dst: "SO_ORIGINAL_DST" };
const V6: Names = Names {
    transparent: "IPV6_TRANSPARENT",
    freebind: "IPV6_FREEBIND",
    original_dst: "IP6T_SO_ORIGINAL_DST",
};

fn family(facts: &Facts, family: &Family, names: &Names) -> [Line; 3] {
    // By default ztunnel starts without them, but then applications and policies no longer see the client's address,
    // which users of the contract rely on.
    let original_source =
        if facts.config.sockets.original_source == Some(false) { Need::Informative } else { Need::Required };
    let privilege = |failure: &Failure| {
        refusal::fix(facts.capabilities, failure, &[NET_ADMIN, NET_RAW], || {
            "applications would not see their client's address: use a kernel that knows this option, or set \
             ENABLE_ORIG_SRC=false"
                .to_owned()
        })
    };
    let conntrack = |failure: &Failure| {
        refusal::fix(facts.capabilities, failure, &[NET_ADMIN], || {
            "connection tracking is not loaded: `modprobe nf_conntrack` on the node (rules of istio-cni or kube-proxy \
             normally bring it)"
                .to_owned()
        })
    };
    [
        line(names.transparent, original_source, &family.transparent, &privilege),
        line(names.freebind, original_source, &family.freebind, &privilege),
        line(names.original_dst, Need::Required, &family.original_dst, &conntrack),
    ]
}

fn line(name: &str, need: Need, outcome: &Outcome, fix: &dyn Fn(&Failure) -> String) -> Line {
    super::line(Topic::Sockets, name, need, outcome, fix)
}
