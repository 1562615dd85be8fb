// SPDX-License-Identifier: Apache-2.0
//! Every family of metrics: its name, type, unit, help and labels. The exposition and the reference are made of it, and
//! what asks for metrics is held against it.
//!
//! Names, help and labels of `process_*`, `tokio_*`, `istio_*` and `workload_manager_*` are Istio's (data-plane contract,
//! section 6.2); `ztunnel_*` and what `process_*` has beside descriptors is ours. Names are without `_total`.

use super::labels::NAMES;

/// The labels of DNS queries.
const DNS: [&str; 4] =
    ["request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"];

/// The labels of uses of a host name.
const ON_DEMAND: [&str; 9] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "hostname",
];

/// What the values of a family mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up; samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    /// The word in the exposition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Family {
    /// The names of its samples, and a label that they have beside [`Family::labels`].
    pub fn samples(&self) -> impl Iterator<Item = (String, Option<&'static str>)> {
        let endings: &[_] = match self.kind {
            Kind::Counter => &[("_total", None)],
            Kind::Gauge => &[("", None)],
            Kind::Histogram => &[("_bucket", Some("le")), ("_sum", None), ("_count", None)],
        };
        endings.iter().map(|(ending, label)| (format!("{}{ending}", self.name), *label))
    }
}

/// One family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name, with the unit and without `_total`.
    pub name: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// Its unit, if it has one.
    pub unit: Option<&'static str>,
    /// Its help, as exposed.
    pub help: &'static str,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal $([$unit:literal])? ($labels:expr) $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Family = Family {
                name: $name,
                kind: Kind::$kind,
                unit: families!(@unit $($unit)?),
                help: $help,
                labels: &$labels,
            };
        )+

        /// Every family, in the order of the exposition.
        pub const ALL: &[Family] = &[$($constant),+];
    };
    (@unit) => { None };
    (@unit $unit:literal) => { Some($unit) };
}

families! {
    OPEN_FDS Gauge "process_open_fds" ([]) "Number of open file descriptors";
    MAX_FDS Gauge "process_max_fds" ([]) "Maximum number of file descriptors";
    RESIDENT Gauge "process_resident_memory_bytes" ["bytes"] ([]) "Resident memory";
    CPU Counter "process_cpu_seconds" ["seconds"] ([]) "CPU time of all threads";

    TOKIO_WORKERS Gauge "tokio_num_workers" ([]) "Number of worker threads that carry traffic";
    TOKIO_TASKS Gauge "tokio_num_alive_tasks" ([]) "Number of connections, streams and tunnels that are being served";
    TOKIO_QUEUE Gauge "tokio_global_queue_depth" ([]) "Number of tasks in the queues that other threads put them into";
    TOKIO_BUSY Counter "tokio_worker_total_busy_duration_seconds" ["seconds"] (["worker"]) "Time that a worker has been busy";
    TOKIO_PARKS Counter "tokio_worker_park_count" (["worker"]) "Times that a worker has gone to sleep";
    TOKIO_PARK_UNPARKS Counter "tokio_worker_park_unpark_count" (["worker"]) "Times that a worker has gone to sleep or woken up";

    BUILD Gauge "istio_build" (["component", "tag"]) "Istio component build info.";
    OPENED Counter "istio_tcp_connections_opened" (NAMES) "The total number of TCP connections opened.";
    CLOSED Counter "istio_tcp_connections_closed" (NAMES) "The total number of TCP connections closed.";
    FAILED Counter "istio_tcp_connections_failed" (NAMES) "The total number of TCP connections that failed (unstable).";
    RECEIVED Counter "istio_tcp_received_bytes" (NAMES) "The size of total bytes received during request in case of a TCP connection.";
    SENT Counter "istio_tcp_sent_bytes" (NAMES) "The size of total bytes sent during response in case of a TCP connection.";
    SOCKETS Gauge "istio_tcp_sockets_open" (["reporter"]) "The number of accepted sockets that are open (unstable).";
    REVOKED Counter "istio_crl_policy_rejections" (["reporter"]) "The total number of connections refused or closed because of a revoked certificate (unstable).";
    DNS_REQUESTS Counter "istio_dns_requests" (DNS) "Total number of DNS requests (unstable).";
    DNS_FORWARDED Counter "istio_dns_upstream_requests" (DNS) "Total number of DNS requests forwarded to upstream (unstable).";
    DNS_FAILED Counter "istio_dns_upstream_failures" (DNS) "Total number of DNS requests forwarded to upstream that failed (unstable).";
    DNS_DURATION Histogram "istio_dns_upstream_request_duration_seconds" ["seconds"] (DNS) "Total time in seconds to forward a request to upstream (unstable).";
    RESOLVED Counter "istio_on_demand_dns" (ON_DEMAND) "The total number of on-demand DNS requests (unstable).";
    XDS_ENDS Counter "istio_xds_connection_terminations" (["reason"]) "The total number of completed connections to xds server (unstable).";
    XDS_MESSAGES Counter "istio_xds_message" (["url"]) "The total number of messages received (unstable).";
    XDS_BYTES Counter "istio_xds_message_bytes" ["bytes"] (["url"]) "The total number of bytes received (unstable).";

    PODS_ACTIVE Gauge "workload_manager_active_proxy_count" ([]) "The total number of active pod proxies (unstable).";
    PODS_PENDING Gauge "workload_manager_pending_proxy_count" ([]) "The total number of pending pod proxies (unstable).";
    PODS_STARTED Counter "workload_manager_proxies_started" ([]) "The total number of pod proxies started (unstable).";
    PODS_STOPPED Counter "workload_manager_proxies_stopped" ([]) "The total number of pod proxies stopped (unstable).";

    READY Gauge "ztunnel_ready" ([]) "Whether the node is ready: 1, or 0 while it waits for something.";
    WAITING Gauge "ztunnel_waiting_for" (["task"]) "What the node waits for before it is ready, one series each.";
    SESSIONS Gauge "ztunnel_session_connected" (["session"]) "Whether the session with the control plane (xds) or the node agent (zds) stands: 1, or 0.";
    CERTIFICATES Gauge "ztunnel_certificates" (["state"]) "Identities of this node by the state of their certificate.";
    EXPIRY Gauge "ztunnel_certificate_expiration_timestamp_seconds" ["seconds"] ([]) "When the first of the certificates in use expires, as seconds since 1970.";
    UNKNOWN_POLICY Counter "ztunnel_authz_unknown_policy_connections" (["action"]) "Inbound connections that were judged without a policy that their pod names.";
    SERIES Gauge "ztunnel_metrics_label_sets" ([]) "Label sets of connections that are kept.";
    SERIES_OVERFLOW Counter "ztunnel_metrics_overflow" ([]) "Connections counted under the workload overflow, because there were METRICS_MAX_SERIES label sets.";
    SERIES_EXPIRED Counter "ztunnel_metrics_expired" ([]) "Label sets dropped because nobody used them any more.";

    EBPF_ENABLED Gauge "ztunnel_ebpf_enabled" ([]) "Whether the fast path is on: 1, or 0.";
    EBPF_CONNECTIONS Counter "ztunnel_ebpf_accelerated_connections" ([]) "Connections between an application and ztunnel that were joined in the kernel.";
    EBPF_MESSAGES Counter "ztunnel_ebpf_messages" (["path"]) "Messages of joined connections by path: ebpf, or tcp.";
    EBPF_BYTES Counter "ztunnel_ebpf_bytes" ["bytes"] (["path"]) "Bytes of joined connections by path: ebpf, or tcp.";
    EBPF_FALLBACK Counter "ztunnel_ebpf_fallback" (["scope", "reason"]) "Connections that were not joined, and messages of joined ones that took TCP, by reason.";
    EBPF_LEFT Counter "ztunnel_ebpf_left" ([]) "Sockets that left the fast path again, unpaired or turned to bulk.";
    EBPF_MAP_ENTRIES Gauge "ztunnel_ebpf_map_entries" (["map"]) "Entries of a map in the kernel.";
    EBPF_MAP_MAX Gauge "ztunnel_ebpf_map_max_entries" (["map"]) "The most entries that a map in the kernel takes.";
    EBPF_ERRORS Counter "ztunnel_ebpf_load_errors" ([]) "Steps of loading and testing the programs that failed at start.";
}
