// SPDX-License-Identifier: Apache-2.0
//! `config` of the dump: every setting under upstream's name and in its shape, because Kiali reads it as typed JSON, and
//! those of our own. Values of headers, tokens and roots are not shown.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::HeaderName;
use serde_json::{Map, Value, json};
use ztunnel_core::addr::{INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use ztunnel_core::authz::Unknown;
use ztunnel_core::route::inbound::AppTunnels;
use ztunnel_core::socks5;
use ztunnel_core::xds::Mode;

use crate::admin::READINESS_PORT;
use crate::config::control_plane::{RootSource, ServerConfig};
use crate::config::dns::Listen;
use crate::config::{CaConfig, Config, MeshSource, ProxyMode};

/// The settings.
pub(super) fn shown(config: &Config) -> Value {
    let (sockets, tunnels, fastpath) = (&config.sockets, &config.tunnels, &config.fastpath);
    let any = |port: u16| json!({ "SocketAddr": SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)) });
    let localhost = |port: u16| json!({ "Localhost": [sockets.ipv6, port] });
    let mut shown = json!({
        "adminAddr": localhost(config.ports.admin),
        "connectionWindowSize": tunnels.connection_window,
        "fakeCa": matches!(config.ca, CaConfig::Local(_)),
        "frameSize": tunnels.frame_size,
        "inboundAddr": any(INBOUND_HBONE_PORT),
        "inboundPlaintextAddr": any(INBOUND_PLAINTEXT_PORT),
        "inpodPortReuse": sockets.port_reuse,
        "inpodUds": config.inpod_uds,
        "ipv6Enabled": sockets.ipv6,
        "localNode": config.node.name,
        "network": config.node.network,
        "numWorkerThreads": config.workers,
        "outboundAddr": any(OUTBOUND_PORT),
        "packetMark": sockets.mark,
        "poolMaxStreamsPerConn": tunnels.max_streams,
        "poolUnusedReleaseTimeout": duration(tunnels.idle_release),
        "proxy": config.proxy,
        "proxyMode": if config.mode == ProxyMode::Shared { "Shared" } else { "Dedicated" },
        "readinessAddr": any(READINESS_PORT),
        "requireOriginalSource": sockets.original_source,
        "responseBaggageEnabled": tunnels.response_baggage,
        "selfTerminationDeadline": duration(config.drain_deadline),
        "socketConfig": {
            "keepaliveEnabled": sockets.keepalive.is_some(),
            "keepaliveInterval": sockets.keepalive.map(|keepalive| duration(keepalive.interval)),
            "keepaliveRetries": sockets.keepalive.map(|keepalive| keepalive.retries),
            "keepaliveTime": sockets.keepalive.map(|keepalive| duration(keepalive.time)),
            "userTimeoutEnabled": sockets.user_timeout.is_some(),
        },
        "localhostAppTunnel": tunnels.app_tunnels == AppTunnels::ToLocalhost,
        "socks5Addr": config.socks5.then(|| format!("127.0.0.1:{}", socks5::PORT)),
        "statsAddr": any(config.ports.metrics),
        "windowSize": tunnels.stream_window,
        // Ours.
        "adminSocket": config.admin_socket,
        "authzUnknownPolicy": if config.unknown_policies == Unknown::Deny { "deny" } else { "skip" },
        "accessLogOpened": config.telemetry.log_opened,
        "authzPolicyInfoLogging": config.log_policies,
        "crlPath": config.crl,
        "ebpf": {
            "cgroupRoot": fastpath.cgroup_root,
            "debug": fastpath.debug,
            "fastpath": fastpath.mode.to_string(),
            "fullWorkloads": fastpath.full_workloads.iter().map(|it| format!("{it:?}")).collect::<Vec<_>>(),
            "maxConnections": fastpath.max_connections,
            "pinPath": fastpath.pin_path,
        },
        "metrics": {
            "idleTimeout": duration(config.telemetry.series.idle),
            "labels": format!("{:?}", config.telemetry.series.labels),
            "maxSeries": config.telemetry.series.max,
        },
        "postQuantumOnly": tunnels.tls.post_quantum_only,
        "tls12Enabled": tunnels.tls.tls12,
    });
    if let Value::Object(all) = &mut shown {
        dns(config, all);
        control_plane(config, all);
    }
    shown
}

fn dns(config: &Config, all: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    put("dnsProxy", config.dns.is_some().into());
    if let Some(dns) = &config.dns {
        let listen = match dns.listen {
            Listen::Localhost(port) => json!({ "Localhost": [config.sockets.ipv6, port] }),
            Listen::Addr(addr) => json!({ "SocketAddr": addr }),
        };
        put("dnsProxyAddr", listen);
        put("clusterDomain", json!(dns.settings.domain));
        put("preferedServiceNamespace", json!(dns.settings.preferred_namespace));
    }
}

fn control_plane(config: &Config, all: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    if let Some(xds) = &config.xds {
        put("clusterId", xds.credentials.cluster_id.clone().into());
        put("xdsAddress", xds.server.address.to_string().into());
        put("xdsRootCert", roots(&xds.server));
        put("altXdsHostname", json!(xds.server.alternative_name));
        put("xdsHeaders", headers(&xds.server));
    }
    let on_demand = config.xds.as_ref().is_some_and(|xds| xds.mode == Mode::OnDemand);
    put("xdsOnDemand", on_demand.into());
    put("proxyMetadata", config.xds.as_ref().map(|xds| xds.metadata()).unwrap_or_default().into());
    match &config.ca {
        CaConfig::Remote(remote) => {
            put("caAddress", remote.server.address.to_string().into());
            put("caRootCert", roots(&remote.server));
            put("altCaHostname", json!(remote.server.alternative_name));
            put("caHeaders", headers(&remote.server));
            put("secretTtl", duration(remote.lifetime));
        }
        CaConfig::Local(directory) => {
            put("fakeCaDir", json!(directory));
        }
    }
    let local = match &config.mesh {
        MeshSource::File(path) => json!({ "File": path }),
        MeshSource::Inline(_) => json!("Inline"),
        MeshSource::Empty => Value::Null,
    };
    put("localXds", local);
}

/// As upstream's serializer writes durations.
fn duration(duration: Duration) -> Value {
    json!({ "secs": duration.as_secs(), "nanos": duration.subsec_nanos() })
}

fn roots(server: &ServerConfig) -> Value {
    match &server.roots {
        RootSource::File(path) => json!({ "File": path }),
        RootSource::System => json!("Default"),
        RootSource::Inline(_) => json!("Static"),
    }
}

/// Names alone: upstream shows values, which are credentials more often than not.
fn headers(server: &ServerConfig) -> Value {
    let shown = |name: &HeaderName| json!([name.as_str(), "(not shown)"]);
    server.headers.iter().map(|(name, _)| shown(name)).collect()
}
