// SPDX-License-Identifier: Apache-2.0
//! The rules that istio-cni writes into an enrolled pod, in its words: capture to ztunnel, and the way back of
//! connections that ztunnel opens with the client's address.

use anyhow::Result;

use crate::netns::Netns;

/// The address families, with what differs between them.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("iptables-restore", "127.0.0.1/32", "169.254.7.127"),
    ("ip6tables-restore", "::1/128", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
];

/// Whether DNS queries are captured, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dns {
    /// They go where the pod sends them.
    Direct,
    /// They go to ztunnel.
    Captured,
}

/// Writes the rules into the namespace of a pod.
///
/// # Errors
/// The tools refuse them.
pub fn install(netns: &Netns, dns: Dns) -> Result<()> {
    for (tool, local, probe) in FAMILIES {
        netns.feed(tool, &["--noflush"], &rules(local, probe, dns))?;
    }
    let back =
        "rule add fwmark 0x111/0xfff pref 32764 lookup 100\nroute add local default dev lo table 100\n";
    netns.feed("ip", &["-batch", "-"], back)?;
    netns.feed("ip", &["-6", "-batch", "-"], back)
}

fn rules(local: &str, probe: &str, dns: Dns) -> String {
    let (nat, raw) = match dns {
        Dns::Direct => (String::new(), ""),
        Dns::Captured => (
            format!(
                "-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053\n\
                 -A ISTIO_OUTPUT ! -d {local} -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053\n"
            ),
            "*raw\n\
             :ISTIO_PRERT - [0:0]\n\
             :ISTIO_OUTPUT - [0:0]\n\
             -A PREROUTING -j ISTIO_PRERT\n\
             -A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1\n\
             -A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1\n\
             COMMIT\n",
        ),
    };
    format!(
        "*mangle\n\
         :ISTIO_PRERT - [0:0]\n\
         :ISTIO_OUTPUT - [0:0]\n\
         -A PREROUTING -j ISTIO_PRERT\n\
         -A OUTPUT -j ISTIO_OUTPUT\n\
         -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
         -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
         COMMIT\n\
         *nat\n\
         :ISTIO_PRERT - [0:0]\n\
         :ISTIO_OUTPUT - [0:0]\n\
         -A PREROUTING -j ISTIO_PRERT\n\
         -A OUTPUT -j ISTIO_OUTPUT\n\
         -A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT\n\
         -A ISTIO_PRERT ! -d {local} -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006\n\
         -A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT\n\
         {nat}\
         -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -d {local} -o lo -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -d {local} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\n\
         COMMIT\n\
         {raw}"
    )
}
