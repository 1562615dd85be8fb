// SPDX-License-Identifier: Apache-2.0
//! Every variable that is read, for the reference. A test holds the table against what the parser asks for.

/// One variable.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name; with `*` at the end: every variable that begins so.
    pub name: &'static str,
    /// What holds if it is not set.
    pub default: &'static str,
    /// What it means, and what it may be.
    pub meaning: &'static str,
}

/// Settings that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// The settings.
    pub settings: &'static [Setting],
}

const fn setting(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting { name, default, meaning }
}

/// All of them, in the order of the reference.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Whom it serves",
        settings: &[
            setting("ENABLE_PROXY", "`true`", "nothing but `true` makes sense"),
            setting(
                "PROXY_MODE",
                "`shared`",
                "`shared`: every pod of the node; `dedicated`: one workload, in this namespace",
            ),
            setting(
                "PROXY_WORKLOAD_INFO",
                "",
                "the workload of dedicated mode: `namespace/name/service-account`",
            ),
            setting(
                "NODE_NAME",
                "",
                "the node; local workloads are those of this node, or of any if it is not set",
            ),
            setting("NETWORK", "", "the network that this node is in"),
            setting("INPOD_UDS", "`/var/run/ztunnel/ztunnel.sock`", "the node agent's socket"),
            setting(
                "ADMIN_SOCKET",
                "",
                "a unix socket where the admin server listens as well, for its owner alone",
            ),
            setting("INPOD_PORT_REUSE", "`true`", "an old and a new ztunnel may listen in one pod"),
            setting("POD_NAME", "", "our own pod: part of the node id, and of our own HBONE listener"),
            setting("POD_NAMESPACE", "", "its namespace"),
            setting("SERVICE_ACCOUNT", "", "its service account"),
            setting("INSTANCE_IP", "`1.1.1.1`", "its address, for the node id"),
        ],
    },
    Group {
        title: "Control plane",
        settings: &[
            setting("XDS_ADDRESS", "istiod", "where the mesh comes from, `host:port`; empty: from nowhere"),
            setting(
                "XDS_ROOT_CA",
                "`./var/run/secrets/istio/root-cert.pem`",
                "what its certificate must chain to: a file, `SYSTEM`, or PEM text",
            ),
            setting(
                "ALT_XDS_HOSTNAME",
                "",
                "a name that its certificate may have instead of the address' host",
            ),
            setting("XDS_HEADER_*", "", "headers of every request, by the rest of the variable's name"),
            setting("XDS_ON_DEMAND", "`false`", "ask for what connections need, instead of the whole mesh"),
            setting("LOCAL_XDS_PATH", "", "the mesh as a YAML file, instead"),
            setting("LOCAL_XDS", "", "the same text inline"),
            setting("CA_ADDRESS", "istiod", "the certificate authority, `host:port`"),
            setting("CA_ROOT_CA", "`./var/run/secrets/istio/root-cert.pem`", "as `XDS_ROOT_CA`"),
            setting("ALT_CA_HOSTNAME", "", "as `ALT_XDS_HOSTNAME`"),
            setting("CA_HEADER_*", "", "as `XDS_HEADER_*`"),
            setting("SECRET_TTL", "`24h`", "how long certificates should live"),
            setting("FAKE_CA", "`false`", "certificates from a local root. Not for production"),
            setting("FAKE_CA_DIR", "`/tmp/ztunnel-local-ca`", "where that root is, shared by the nodes"),
            setting("CRL_PATH", "", "revocation lists; empty: nothing is revoked"),
            setting(
                "AUTH_TOKEN",
                "`./var/run/secrets/tokens/istio-token`",
                "the token for both servers: a file, read for every call, or the token itself",
            ),
            setting("CLUSTER_ID", "`Kubernetes`", "the cluster whose token it is"),
            setting("ISTIO_META_CLUSTER_ID", "", "the same, and it wins"),
            setting(
                "KUBERNETES_SERVICE_HOST",
                "",
                "set inside of a cluster: istiod is `istiod.istio-system.svc:15012` then, else `localhost:15012`",
            ),
            setting("ISTIO_META_ISTIO_VERSION", "`unknown`", "the label `tag` of `istio_build`"),
            setting("ISTIO_META_*", "", "metadata of this node, for istiod"),
            setting("ISTIO_METAJSON_*", "", "the same, as JSON"),
            setting(
                "PROXY_CONFIG",
                "",
                "Istio's ProxyConfig as YAML, over `defaultConfig` of `./etc/istio/config/mesh`",
            ),
        ],
    },
    Group {
        title: "Connections",
        settings: &[
            setting(
                "PACKET_MARK",
                "`1337`; dedicated: `0`",
                "the mark that exempts our packets from redirection",
            ),
            setting("ENABLE_ORIG_SRC", "tries", "applications see the client's own address: `true`, `false`"),
            setting("IPV6_ENABLED", "`true`", "listen on IPv6 as well"),
            setting("KEEPALIVE_ENABLED", "`true`", "TCP keepalive"),
            setting("KEEPALIVE_TIME", "`180s`", "idle time before the first probe"),
            setting("KEEPALIVE_INTERVAL", "`180s`", "time between probes"),
            setting("KEEPALIVE_RETRIES", "`9`", "probes without an answer before the connection is dead"),
            setting(
                "USER_TIMEOUT_ENABLED",
                "`false`",
                "unacknowledged bytes end a connection after as long as keepalive would take",
            ),
            setting("POOL_MAX_STREAMS_PER_CONNECTION", "`100`", "connections in one tunnel"),
            setting(
                "POOL_UNUSED_RELEASE_TIMEOUT",
                "`5m`",
                "a tunnel without connections is closed after this long",
            ),
            setting("HTTP2_STREAM_WINDOW_SIZE", "`4194304`", "bytes, 65535 to 2147483647"),
            setting("HTTP2_CONNECTION_WINDOW_SIZE", "`16777216`", "bytes, 65535 to 2147483647"),
            setting("HTTP2_FRAME_SIZE", "`1048576`", "bytes, 16384 to 16777215"),
            setting("TLS12_ENABLED", "`false`", "TLS 1.2 as well as 1.3"),
            setting("COMPLIANCE_POLICY", "", "`pqc`: only post-quantum key exchange"),
            setting(
                "ENABLE_RESPONSE_BAGGAGE",
                "`true`",
                "tell peers who answered them, and believe what they say they are where the mesh does not know them",
            ),
            setting(
                "AUTHZ_UNKNOWN_POLICY",
                "`skip`",
                "a policy that a pod names and that has not arrived: `skip` it, or `deny` everybody",
            ),
            setting(
                "LOCALHOST_APP_TUNNEL",
                "`true`",
                "applications that take a PROXY header take it on localhost; `false`: on the pod's address",
            ),
            setting("UNSTABLE_ENABLE_SOCKS5", "`false`", "SOCKS5 on port 15080"),
            setting(
                "TERMINATION_GRACE_PERIOD_SECONDS",
                "",
                "the pod's grace period, from which the next follows",
            ),
            setting(
                "CONNECTION_TERMINATION_DEADLINE",
                "`5s`, or what leaves room within the grace period",
                "how long connections may go on after a stop",
            ),
            setting(
                "ZTUNNEL_WORKER_THREADS",
                "a quarter of the CPUs, at least 2",
                "threads that carry traffic: a number, `n%`, or `0` for all CPUs",
            ),
            setting("ZTUNNEL_CPU_LIMIT", "as found", "how many CPUs there are"),
            setting("ZTUNNEL_RESOURCE_CPU_LIMIT", "", "the container's limit: as many threads"),
            setting("ZTUNNEL_RESOURCE_CPU_REQUEST", "", "the container's request: at least as many threads"),
        ],
    },
    Group {
        title: "DNS",
        settings: &[
            setting("ISTIO_META_DNS_CAPTURE", "`true`", "pods' queries come to us"),
            setting("ISTIO_META_DNS_PROXY_ADDR", "port 15053 of localhost", "where they come"),
            setting("CLUSTER_DOMAIN", "`cluster.local`", "the domain of the cluster's services"),
            setting(
                "PREFERED_SERVICE_NAMESPACE",
                "",
                "of services that share a name, the one of this namespace",
            ),
            setting("DNS_RESOLV_CONF", "`/etc/resolv.conf`", "whom to ask about everything else"),
        ],
    },
    Group {
        title: "What is reported",
        settings: &[
            setting(
                "RUST_LOG",
                "`info`",
                "levels of the log: `level`, or `target=level`, separated by commas; `/logging` changes them at run time",
            ),
            setting("LOG_FORMAT", "text", "`json`: one object per line"),
            setting(
                "ACCESS_LOG_OPENED",
                "`false`",
                "a connection is logged when it opens as well, at level info instead of debug",
            ),
            setting(
                "AUTHZ_POLICY_INFO_LOGGING",
                "`false`",
                "what policies decide is logged at level info, not debug",
            ),
            setting(
                "METRICS_LABELS",
                "all",
                "the labels of connections that are kept, separated by commas; what differs only in others is counted together. `reporter` and `response_flags` are always kept",
            ),
            setting(
                "METRICS_MAX_SERIES",
                "`65536`",
                "label sets of connections, 1 to 1048576; what does not fit is counted under the workload `overflow`",
            ),
            setting(
                "METRICS_IDLE_TIMEOUT",
                "`1h`",
                "a label set without connections is dropped after this long; after 5m if a workload that it is about has left the mesh",
            ),
        ],
    },
    Group {
        title: "Fast path",
        settings: &[
            setting(
                "EBPF_FASTPATH",
                "`auto`",
                "`off`; `half`: application to ztunnel; `full`: both directions; `auto`: `full` for who qualifies, everyone else stays out",
            ),
            setting(
                "EBPF_FULL_WORKLOADS",
                "",
                "who qualifies: `namespace/service-account`, with `*`, separated by commas",
            ),
            setting(
                "EBPF_MAX_CONNECTIONS",
                "`65536`",
                "local hops on the fast path at the same time, 64 to 1048576",
            ),
            setting(
                "EBPF_DEBUG",
                "`false`",
                "the programs say in the log which connections stay out, and why",
            ),
            setting("EBPF_CGROUP_ROOT", "found", "where the programs are attached"),
            setting("EBPF_PIN_PATH", "`/sys/fs/bpf/ztunnel/v1`", "where the map of sockets is pinned"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;
    use crate::config::env::Env;

    /// Remembers what it was asked for.
    struct Asked<'a> {
        variables: &'a [(&'a str, &'a str)],
        names: RefCell<BTreeSet<String>>,
    }

    impl Env for Asked<'_> {
        fn get(&self, name: &str) -> Option<String> {
            self.names.borrow_mut().insert(name.to_owned());
            Env::get(&self.variables, name)
        }

        fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
            self.names.borrow_mut().insert(format!("{prefix}*"));
            Env::with_prefix(&self.variables, prefix)
        }
    }

    #[test]
    fn every_variable_that_is_read_is_in_the_table_and_no_other() {
        let mut read = BTreeSet::new();
        let starts: [&[(&str, &str)]; 4] = [
            &[("POD_NAME", "z"), ("POD_NAMESPACE", "istio-system"), ("SERVICE_ACCOUNT", "ztunnel")],
            &[],
            &[
                ("FAKE_CA", "true"),
                ("XDS_ADDRESS", "istiod:15012"),
                ("XDS_ON_DEMAND", "true"),
                ("ISTIO_META_DNS_CAPTURE", "false"),
            ],
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a/b/c")],
        ];
        for variables in starts {
            let asked = Asked { variables, names: RefCell::default() };
            Config::from_env(&asked).unwrap();
            read.extend(asked.names.into_inner());
        }
        // What `telemetry::log` and `app` read themselves, the log before there are settings.
        read.extend(["RUST_LOG", "LOG_FORMAT", "ISTIO_META_ISTIO_VERSION"].map(str::to_owned));
        let table: BTreeSet<String> =
            GROUPS.iter().flat_map(|group| group.settings).map(|setting| setting.name.to_owned()).collect();
        let missing: Vec<_> = read.difference(&table).collect();
        let stale: Vec<_> = table.difference(&read).collect();
        assert!(missing.is_empty() && stale.is_empty(), "not in the table: {missing:?}; not read: {stale:?}");
    }
}
