// SPDX-License-Identifier: Apache-2.0
//! What a ztunnel exposes: sample names and their labels. `deploy/` may ask for nothing else; a scenario holds this
//! table against a running node.
//!
//! Source: data-plane contract, sections 5.5, 6.2 and 6.3.

use std::collections::{BTreeMap, BTreeSet};

use ztunnel_core::report::{Facts, Labels, Reporter};

/// Labels that Prometheus gives to every series of a target.
pub const TARGET: &[&str] = &["instance", "job"];

/// Series that Prometheus itself makes for a target.
pub const SCRAPE: &[&str] = &["up", "scrape_duration_seconds", "scrape_samples_scraped"];

/// Families that carry the labels of a connection.
const CONNECTION: &[&str] = &[
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_connections_failed_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
];

/// Labels of a connection of which at least one end is known.
const LOCALITY: &[&str] = &["source_region", "source_zone", "destination_region", "destination_zone"];

const DNS: &[&str] =
    &["request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"];

/// Families with labels of their own, or none.
const OTHERS: &[(&str, &[&str])] = &[
    ("istio_build", &["component", "tag"]),
    ("istio_tcp_sockets_open", &["reporter"]),
    ("istio_crl_policy_rejections_total", &["reporter"]),
    ("istio_dns_requests_total", DNS),
    ("istio_dns_upstream_requests_total", DNS),
    ("istio_dns_upstream_failures_total", DNS),
    ("istio_xds_connection_terminations_total", &["reason"]),
    ("istio_xds_message_total", &["url"]),
    ("istio_xds_message_bytes_total", &["url"]),
    ("workload_manager_active_proxy_count", &[]),
    ("workload_manager_pending_proxy_count", &[]),
    ("workload_manager_proxies_started_total", &[]),
    ("workload_manager_proxies_stopped_total", &[]),
    ("process_open_fds", &[]),
    ("process_max_fds", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_cpu_seconds_total", &[]),
    ("tokio_num_workers", &[]),
    ("tokio_num_alive_tasks", &[]),
    ("tokio_global_queue_depth", &[]),
    ("tokio_worker_total_busy_duration_seconds_total", &["worker"]),
    ("tokio_worker_park_count_total", &["worker"]),
    ("tokio_worker_park_unpark_count_total", &["worker"]),
    ("ztunnel_ready", &[]),
    ("ztunnel_waiting_for", &["task"]),
    ("ztunnel_session_connected", &["session"]),
    ("ztunnel_certificates", &["state"]),
    ("ztunnel_certificate_expiration_timestamp_seconds", &[]),
    ("ztunnel_metrics_label_sets", &[]),
    ("ztunnel_metrics_overflow_total", &[]),
    ("ztunnel_metrics_expired_total", &[]),
    ("ztunnel_ebpf_enabled", &[]),
    ("ztunnel_ebpf_accelerated_connections_total", &[]),
    ("ztunnel_ebpf_messages_total", &["path"]),
    ("ztunnel_ebpf_bytes_total", &["path"]),
    ("ztunnel_ebpf_fallback_total", &["scope", "reason"]),
    ("ztunnel_ebpf_left_total", &[]),
    ("ztunnel_ebpf_map_entries", &["map"]),
    ("ztunnel_ebpf_map_max_entries", &["map"]),
    ("ztunnel_ebpf_load_errors_total", &[]),
];

/// The one histogram: its buckets have a label more.
const DURATION: &str = "istio_dns_upstream_request_duration_seconds";

/// Every sample name with its labels.
#[must_use]
pub fn all() -> BTreeMap<String, BTreeSet<&'static str>> {
    let labels = Labels::new(&Facts::new(Reporter::Source));
    let connection: BTreeSet<&str> =
        labels.iter().map(|(name, _)| name).chain(LOCALITY.iter().copied()).collect();
    let mut all: BTreeMap<String, BTreeSet<&str>> = OTHERS
        .iter()
        .map(|(name, labels)| ((*name).to_owned(), labels.iter().copied().collect()))
        .chain(CONNECTION.iter().map(|name| ((*name).to_owned(), connection.clone())))
        .collect();
    for (ending, extra) in [("bucket", Some("le")), ("sum", None), ("count", None)] {
        all.insert(format!("{DURATION}_{ending}"), DNS.iter().copied().chain(extra).collect());
    }
    all
}
