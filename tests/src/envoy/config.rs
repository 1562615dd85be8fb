// SPDX-License-Identifier: Apache-2.0
//! The pieces that Istio's proxies are made of, with Istio's names for them: `connect_terminate` takes streams out of
//! HBONE, `main_internal` does something with them, `connect_originate` puts streams into HBONE.
//!
//! Between them are internal listeners; where a stream wants to go travels as the metadata that the listener filter
//! `original_dst` reads, and HBONE's port replaces the port on the way out, as in Istio's clusters.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::Files;

/// HBONE.
const HBONE: u16 = 15008;
/// Takes streams out of HBONE.
const CONNECT_TERMINATE: &str = "connect_terminate";
/// What is done with them.
pub const MAIN_INTERNAL: &str = "main_internal";
/// Puts streams into HBONE.
pub const CONNECT_ORIGINATE: &str = "connect_originate";
/// Where a stream wants to go, for [`CONNECT_ORIGINATE`].
const DESTINATION: &str = "envoy.filters.listener.original_dst";

/// A name in Envoy's API.
fn kind(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

/// All of it.
pub(super) fn bootstrap(node: &str, admin: u16, listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "node": {"id": node, "cluster": node},
        "admin": {"address": at(SocketAddr::from(([127, 0, 0, 1], admin)))},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {"@type": kind("extensions.bootstrap.internal_listener.v3.InternalListener")},
        }],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// An ordinary listener that hands bytes to a cluster.
#[must_use]
pub fn tcp_listener(address: SocketAddr, cluster: &str) -> Value {
    json!({"name": "outbound", "address": at(address), "filter_chains": [{"filters": [tcp_proxy(cluster, None)]}]})
}

/// The HBONE port: mutual TLS with anybody of the trust domain, then CONNECT, then `main_internal`.
#[must_use]
pub fn connect_terminate(files: &Files) -> Value {
    let route = json!({
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": MAIN_INTERNAL,
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    });
    let line = "%DOWNSTREAM_PEER_URI_SAN%\t%REQ(:AUTHORITY)%\t%RESPONSE_CODE%\t%REQ(BAGGAGE)%\t\
                %REQ(FORWARDED)%\t%REQ(TRACEPARENT)%\n";
    let manager = json!({
        "@type": kind("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": CONNECT_TERMINATE,
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "default", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router()],
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": kind("extensions.access_loggers.file.v3.FileAccessLog"),
                "path": files.served,
                "log_format": {"text_format_source": {"inline_string": line}},
            },
        }],
    });
    let anybody = json!([{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]);
    json!({
        "name": CONNECT_TERMINATE,
        "address": at(SocketAddr::from(([0, 0, 0, 0], HBONE))),
        "filter_chains": [{
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": kind("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
                    "require_client_certificate": true,
                    "common_tls_context": tls(files, &anybody),
                },
            },
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    })
}

/// `main_internal` that hands bytes to a cluster as they are.
#[must_use]
pub fn main_internal_tcp(cluster: &str) -> Value {
    internal_listener(MAIN_INTERNAL, &[], &tcp_proxy(cluster, None))
}

/// `main_internal` that looks into HTTP/1.1, with these routes.
#[must_use]
pub fn main_internal_http(routes: &[Value]) -> Value {
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": kind("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": MAIN_INTERNAL,
            "codec_type": "AUTO",
            "route_config": {"virtual_hosts": [{"name": "default", "domains": ["*"], "routes": routes}]},
            "http_filters": [router()],
        },
    });
    internal_listener(MAIN_INTERNAL, &[], &manager)
}

/// Puts what it gets into HBONE, to where its metadata says; `headers` are added to CONNECT.
#[must_use]
pub fn connect_originate(headers: &[(&str, &str)]) -> Value {
    let original = json!({
        "name": DESTINATION,
        "typed_config": {"@type": kind("extensions.filters.listener.original_dst.v3.OriginalDst")},
    });
    internal_listener(CONNECT_ORIGINATE, &[original], &tcp_proxy(CONNECT_ORIGINATE, Some(headers)))
}

/// The tunnels of [`connect_originate`], to whoever has one of the `expected` identities.
#[must_use]
pub fn connect_originate_cluster(files: &Files, expected: &[String]) -> Value {
    let exact = |identity: &String| json!({"san_type": "URI", "matcher": {"exact": identity}});
    let expected = Value::Array(expected.iter().map(exact).collect());
    json!({
        "name": CONNECT_ORIGINATE,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "cleanup_interval": "60s",
        "original_dst_lb_config": {"upstream_port_override": HBONE},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": kind("extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
            },
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": kind("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": tls(files, &expected),
            },
        },
    })
}

/// Endpoints behind HBONE: each goes to [`connect_originate`], which is told where it is.
#[must_use]
pub fn tunneled_cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoint = |address: &SocketAddr| {
        json!({
            "endpoint": {"address": {"envoy_internal_address": {
                "server_listener_name": CONNECT_ORIGINATE,
                "endpoint_id": address.to_string(),
            }}},
            "metadata": {"filter_metadata": {DESTINATION: {"local": address.to_string()}}},
        })
    };
    internal_cluster(name, endpoints.iter().map(endpoint).collect())
}

/// The way from [`connect_terminate`] to `main_internal`.
#[must_use]
pub fn main_internal_cluster() -> Value {
    let endpoint = json!({"endpoint": {"address": {"envoy_internal_address": {
        "server_listener_name": MAIN_INTERNAL,
    }}}});
    internal_cluster(MAIN_INTERNAL, vec![endpoint])
}

/// One endpoint in plain TCP: an application beside a sidecar, or what a gateway hands bytes to.
#[must_use]
pub fn plain_cluster(name: &str, address: SocketAddr) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(address)}}]}],
        },
    })
}

/// An HTTP route to clusters by weight, for requests that have the header if one is named.
#[must_use]
pub fn route(header: Option<(&str, &str)>, clusters: &[(&str, u32)]) -> Value {
    let headers: Vec<Value> =
        header.iter().map(|(name, value)| json!({"name": name, "string_match": {"exact": value}})).collect();
    let clusters: Vec<Value> =
        clusters.iter().map(|(name, weight)| json!({"name": name, "weight": weight})).collect();
    json!({
        "match": {"prefix": "/", "headers": headers},
        "route": {"weighted_clusters": {"clusters": clusters}, "timeout": "0s"},
    })
}

fn internal_cluster(name: &str, endpoints: Vec<Value>) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "transport_socket": {
            "name": "envoy.transport_sockets.internal_upstream",
            "typed_config": {
                "@type": kind("extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
                "passthrough_metadata": [{"kind": {"host": {}}, "name": DESTINATION}],
                "transport_socket": {
                    "name": "envoy.transport_sockets.raw_buffer",
                    "typed_config": {"@type": kind("extensions.transport_sockets.raw_buffer.v3.RawBuffer")},
                },
            },
        },
    })
}

fn internal_listener(name: &str, listener_filters: &[Value], filter: &Value) -> Value {
    json!({
        "name": name,
        "internal_listener": {},
        "listener_filters": listener_filters,
        "filter_chains": [{"filters": [filter]}],
    })
}

/// Copies bytes; in a CONNECT stream with these headers, if there are any to be.
fn tcp_proxy(cluster: &str, tunneled: Option<&[(&str, &str)]>) -> Value {
    let mut config = json!({
        "@type": kind("extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": cluster,
        "cluster": cluster,
    });
    if let Some(headers) = tunneled {
        let header = |(key, value): &(&str, &str)| json!({"header": {"key": key, "value": value}});
        config["tunneling_config"] = json!({
            "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "headers_to_add": headers.iter().map(header).collect::<Vec<_>>(),
        });
    }
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": config})
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": kind("extensions.filters.http.router.v3.Router")},
    })
}

fn tls(files: &Files, names: &Value) -> Value {
    let file = |path: &Path| json!({"filename": path});
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file(&files.chain), "private_key": file(&files.key)}],
        "validation_context": {
            "trusted_ca": file(&files.roots),
            "match_typed_subject_alt_names": names,
        },
    })
}

fn at(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
