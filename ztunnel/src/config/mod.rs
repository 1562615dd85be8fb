// SPDX-License-Identifier: Apache-2.0
//! What the operator asked for: one struct per subsystem, read once at start.
//!
//! * [`mod@env`]: the environment. * [`proxy_config`]: Istio's mesh configuration.
//! * [`mod@dns`]: the DNS proxy.
//! * [`mode`], [`threads`]: whom we serve, and with how many threads.
//! * [`control_plane`], [`ca`], [`xds`]: the servers of the control plane. [`telemetry`]: what is reported.
//! * [`settings`]: all of them, for the reference.

pub mod ca;
pub mod control_plane;
pub mod dns;
pub mod env;
pub mod mode;
pub mod proxy_config;
pub mod settings;
pub mod telemetry;
mod threads;
pub mod xds;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ztunnel_core::authz::Unknown;
use ztunnel_core::dns::resolv_conf::ResolvConf;
use ztunnel_core::fastpath::{Mode, Pattern};
use ztunnel_core::route::inbound::AppTunnels;

use crate::admin::{ADMIN_PORT, METRICS_PORT};
use crate::fastpath;
pub use ca::CaConfig;
use dns::DnsConfig;
pub use env::ConfigError;
use env::{Env, boolean, duration, number, parsed};
pub use mode::ProxyMode;
use mode::WorkloadInfo;
use proxy_config::ProxyConfig;
use telemetry::TelemetryConfig;
use xds::XdsConfig;

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whom we serve.
    pub mode: ProxyMode,
    /// Who we are ourselves, if peers may reach us over HBONE.
    pub self_proxy: Option<WorkloadInfo>,
    /// `ENABLE_PROXY`: pods' connections come to us; if not, only their DNS queries do.
    pub proxy: bool,
    /// The DNS proxy; `None`: queries do not come to us.
    pub dns: Option<Arc<DnsConfig>>,
    /// `DNS_RESOLV_CONF`: whom to ask about names that the mesh does not know.
    pub resolvers: Arc<ResolvConf>,
    /// `UNSTABLE_ENABLE_SOCKS5`: applications may say where they want to go.
    pub socks5: bool,
    /// Who we are.
    pub node: NodeConfig,
    /// The side doors.
    pub ports: Ports,
    /// `ADMIN_SOCKET`: a unix socket where the admin server listens as well; none if it is not set.
    pub admin_socket: Option<PathBuf>,
    /// Sockets inside the pods.
    pub sockets: SocketConfig,
    /// Tunnels to other proxies.
    pub tunnels: TunnelConfig,
    /// Where the mesh is described without a control plane.
    pub mesh: MeshSource,
    /// The control plane; `None`: there is none.
    pub xds: Option<XdsConfig>,
    /// Where certificates come from.
    pub ca: CaConfig,
    /// `CRL_PATH`: the certificates that are revoked.
    pub crl: Option<PathBuf>,
    /// The node agent's socket.
    pub inpod_uds: PathBuf,
    /// Threads that carry traffic.
    pub workers: usize,
    /// `AUTHZ_POLICY_INFO_LOGGING`: what policies decide is logged at level info, not debug.
    pub log_policies: bool,
    /// Metrics and access log.
    pub telemetry: TelemetryConfig,
    /// `AUTHZ_UNKNOWN_POLICY`: what a policy means that a pod names and that has not arrived.
    pub unknown_policies: Unknown,
    /// How long connections may go on after a stop was asked for.
    pub drain_deadline: Duration,
    /// The fast path.
    pub fastpath: fastpath::Config,
}

/// The node's own facts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `NODE_NAME`: local workloads are those of this node; unset: those of any.
    pub name: Option<String>,
    /// `NETWORK` of this node.
    pub network: String,
}

/// Ports of our own servers. Readiness has none of its choosing: 15021.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// ProxyConfig's `proxyAdminPort`.
    pub admin: u16,
    /// ProxyConfig's `statsPort`.
    pub metrics: u16,
}

/// What every handshake offers, towards peers and towards the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// `TLS12_ENABLED=true`: TLS 1.2 as well as 1.3.
    pub tls12: bool,
    /// `COMPLIANCE_POLICY=pqc`: only post-quantum key exchange.
    pub post_quantum_only: bool,
}

/// Options of the sockets that we make in pods.
#[derive(Debug, Clone, Copy)]
pub struct SocketConfig {
    /// `PACKET_MARK`: exempts our packets from redirection; 0 marks nothing.
    pub mark: u32,
    /// Listeners carry the mark, and what they accept inherits it; if not, only what we open does.
    pub mark_listeners: bool,
    /// `INPOD_PORT_REUSE`: an old and a new ztunnel may listen in one pod.
    pub port_reuse: bool,
    /// `ENABLE_ORIG_SRC`: keep the client's address towards the application; `None` tries.
    pub original_source: Option<bool>,
    /// `IPV6_ENABLED`.
    pub ipv6: bool,
    /// `KEEPALIVE_*`; `None` when disabled.
    pub keepalive: Option<Keepalive>,
    /// `USER_TIMEOUT_ENABLED`: how long sent bytes may go without being acknowledged.
    pub user_timeout: Option<Duration>,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is dead.
    pub retries: u32,
}

/// HTTP/2 and the tunnel pool.
#[derive(Debug, Clone, Copy)]
pub struct TunnelConfig {
    /// `POOL_MAX_STREAMS_PER_CONNECTION`.
    pub max_streams: u16,
    /// `POOL_UNUSED_RELEASE_TIMEOUT`: a tunnel without streams is closed after this long.
    pub idle_release: Duration,
    /// `HTTP2_STREAM_WINDOW_SIZE`, bytes.
    pub stream_window: u32,
    /// `HTTP2_CONNECTION_WINDOW_SIZE`, bytes.
    pub connection_window: u32,
    /// `HTTP2_FRAME_SIZE`, bytes.
    pub frame_size: u32,
    /// `ENABLE_RESPONSE_BAGGAGE`.
    pub response_baggage: bool,
    /// `LOCALHOST_APP_TUNNEL`: where applications take connections with a PROXY header.
    pub app_tunnels: AppTunnels,
    /// What their handshakes offer.
    pub tls: TlsConfig,
}

/// Where the description of the mesh comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshSource {
    /// `LOCAL_XDS_PATH`: a YAML file, read once.
    File(PathBuf),
    /// `LOCAL_XDS`: the same text inline.
    Inline(String),
    /// Neither is set: it comes from the control plane; without one it is empty, and everything is passed through.
    Empty,
}

impl Config {
    /// Reads every setting from `env`.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn from_env(env: &impl Env) -> Result<Self, ConfigError> {
        Self::read(env, &ProxyConfig::read(env)?)
    }

    /// What nobody has set, read from no file: hence without resolvers, and without a DNS proxy. It stands in for
    /// settings that cannot be used.
    ///
    /// # Panics
    /// The defaults are not accepted, which a test excludes.
    pub fn defaults() -> Self {
        let without_files: &[(&str, &str)] =
            &[("ISTIO_META_DNS_CAPTURE", "false"), ("DNS_RESOLV_CONF", "/dev/null")];
        Self::read(&without_files, &ProxyConfig::default()).expect("the defaults are accepted")
    }

    fn read(env: &impl Env, proxy: &ProxyConfig) -> Result<Self, ConfigError> {
        let mode = mode::read(env)?;
        let is_proxy = parsed(env, "ENABLE_PROXY", true, boolean)?;
        let resolvers = Arc::new(dns::resolvers(env)?);
        let dns = dns::read(env, proxy, &mode, &resolvers)?;
        if !is_proxy && dns.is_none() {
            let accepted = "without the proxy and without the DNS proxy (ISTIO_META_DNS_CAPTURE) there is nothing to run";
            return Err(unsupported("ENABLE_PROXY", "false", accepted));
        }
        let mesh = mesh_source(env)?;
        Ok(Self {
            ports: Ports {
                admin: proxy.proxy_admin_port.unwrap_or(ADMIN_PORT),
                metrics: proxy.stats_port.unwrap_or(METRICS_PORT),
            },
            admin_socket: env.get("ADMIN_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from),
            proxy: is_proxy,
            dns: dns.map(Arc::new),
            resolvers,
            socks5: parsed(env, "UNSTABLE_ENABLE_SOCKS5", false, boolean)?,
            node: NodeConfig {
                name: env.get("NODE_NAME").filter(|name| !name.is_empty()),
                network: env.get("NETWORK").unwrap_or_default(),
            },
            sockets: sockets(env, &mode)?,
            tunnels: tunnels(env)?,
            xds: xds::read(env, proxy, &mesh)?,
            mesh,
            ca: ca::read(env)?,
            crl: env.get("CRL_PATH").filter(|path| !path.is_empty()).map(PathBuf::from),
            inpod_uds: path(env, "INPOD_UDS", "/var/run/ztunnel/ztunnel.sock"),
            workers: threads::read(env, proxy)?,
            log_policies: parsed(env, "AUTHZ_POLICY_INFO_LOGGING", false, boolean)?,
            telemetry: telemetry::read(env)?,
            unknown_policies: parsed(env, "AUTHZ_UNKNOWN_POLICY", Unknown::Skip, unknown_policies)?,
            drain_deadline: drain_deadline(env)?,
            fastpath: fastpath_config(env)?,
            self_proxy: mode::read_self(env, &mode),
            mode,
        })
    }
}

fn sockets(env: &impl Env, mode: &ProxyMode) -> Result<SocketConfig, ConfigError> {
    let shared = *mode == ProxyMode::Shared;
    let keepalive = Keepalive {
        time: parsed(env, "KEEPALIVE_TIME", Duration::from_secs(180), duration)?,
        interval: parsed(env, "KEEPALIVE_INTERVAL", Duration::from_secs(180), duration)?,
        retries: parsed(env, "KEEPALIVE_RETRIES", 9, number)?,
    };
    // As long as keepalive would take to notice.
    let user_timeout = keepalive.time.saturating_add(keepalive.interval.saturating_mul(keepalive.retries));
    Ok(SocketConfig {
        mark: parsed(env, "PACKET_MARK", if shared { 1337 } else { 0 }, number)?,
        mark_listeners: shared,
        port_reuse: parsed(env, "INPOD_PORT_REUSE", true, boolean)?,
        original_source: parsed(env, "ENABLE_ORIG_SRC", None, |text| boolean(text).map(Some))?,
        ipv6: parsed(env, "IPV6_ENABLED", true, boolean)?,
        keepalive: parsed(env, "KEEPALIVE_ENABLED", true, boolean)?.then_some(keepalive),
        user_timeout: parsed(env, "USER_TIMEOUT_ENABLED", false, boolean)?.then_some(user_timeout),
    })
}

fn tls(env: &impl Env) -> Result<TlsConfig, ConfigError> {
    Ok(TlsConfig {
        // Exactly `true`: upstream takes anything else for off, and so may somebody's manifest.
        tls12: env.get("TLS12_ENABLED").is_some_and(|value| value == "true"),
        post_quantum_only: parsed(env, "COMPLIANCE_POLICY", false, |text| match text {
            "" => Ok(false),
            "pqc" => Ok(true),
            _ => Err("expected pqc, or nothing".to_owned()),
        })?,
    })
}

fn tunnels(env: &impl Env) -> Result<TunnelConfig, ConfigError> {
    let positive = |text: &str| match number::<u16>(text)? {
        0 => Err("expected at least 1".to_owned()),
        streams => Ok(streams),
    };
    // RFC 9113, section 6.5.2: the limits of the settings.
    let window = |text: &str| match number::<u32>(text)? {
        size @ 65_535..=2_147_483_647 => Ok(size),
        _ => Err("expected 65535 to 2147483647 bytes".to_owned()),
    };
    let frame = |text: &str| match number::<u32>(text)? {
        size @ 16_384..=16_777_215 => Ok(size),
        _ => Err("expected 16384 to 16777215 bytes".to_owned()),
    };
    Ok(TunnelConfig {
        max_streams: parsed(env, "POOL_MAX_STREAMS_PER_CONNECTION", 100, positive)?,
        idle_release: parsed(env, "POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300), duration)?,
        stream_window: parsed(env, "HTTP2_STREAM_WINDOW_SIZE", 4 << 20, window)?,
        connection_window: parsed(env, "HTTP2_CONNECTION_WINDOW_SIZE", 16 << 20, window)?,
        frame_size: parsed(env, "HTTP2_FRAME_SIZE", 1 << 20, frame)?,
        response_baggage: parsed(env, "ENABLE_RESPONSE_BAGGAGE", true, boolean)?,
        app_tunnels: if parsed(env, "LOCALHOST_APP_TUNNEL", true, boolean)? {
            AppTunnels::ToLocalhost
        } else {
            AppTunnels::ToPod
        },
        tls: tls(env)?,
    })
}

fn unknown_policies(text: &str) -> Result<Unknown, String> {
    match text {
        "skip" => Ok(Unknown::Skip),
        "deny" => Ok(Unknown::Deny),
        _ => Err("expected skip or deny".to_owned()),
    }
}

fn mesh_source(env: &impl Env) -> Result<MeshSource, ConfigError> {
    match (env.get("LOCAL_XDS_PATH"), env.get("LOCAL_XDS")) {
        (Some(path), Some(_)) => {
            Err(unsupported("LOCAL_XDS_PATH", &path, "LOCAL_XDS is set as well: set only one of the two"))
        }
        (Some(path), None) => Ok(MeshSource::File(path.into())),
        (None, Some(text)) => Ok(MeshSource::Inline(text)),
        (None, None) => Ok(MeshSource::Empty),
    }
}

/// `CONNECTION_TERMINATION_DEADLINE`, else derived from the pod's grace period, else 5 s.
fn drain_deadline(env: &impl Env) -> Result<Duration, ConfigError> {
    let grace: Option<u64> =
        parsed(env, "TERMINATION_GRACE_PERIOD_SECONDS", None, |text| number(text).map(Some))?;
    let derived = match grace {
        None => 5,
        Some(seconds @ 11..) => seconds - 5,
        Some(seconds) => seconds.saturating_sub(1).max(1),
    };
    parsed(env, "CONNECTION_TERMINATION_DEADLINE", Duration::from_secs(derived), duration)
}

fn fastpath_config(env: &impl Env) -> Result<fastpath::Config, ConfigError> {
    let patterns = |text: &str| {
        text.split(',')
            .map(str::trim)
            .filter(|pattern| !pattern.is_empty())
            .map(|pattern| pattern.parse::<Pattern>().map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(fastpath::Config {
        mode: parsed(env, "EBPF_FASTPATH", Mode::Auto, |text| {
            text.parse().ok().ok_or_else(|| "expected auto, off, half or full".to_owned())
        })?,
        full_workloads: parsed(env, "EBPF_FULL_WORKLOADS", Vec::new(), patterns)?,
        cgroup_root: env.get("EBPF_CGROUP_ROOT").map(PathBuf::from),
        pin_path: path(env, "EBPF_PIN_PATH", "/sys/fs/bpf/ztunnel/v1"),
        max_connections: parsed(env, "EBPF_MAX_CONNECTIONS", fastpath::CONNECTIONS_DEFAULT, connections)?,
        debug: parsed(env, "EBPF_DEBUG", false, boolean)?,
    })
}

/// Pairs in the kernel's tables.
fn connections(text: &str) -> Result<u32, String> {
    let wanted = number(text)?;
    if fastpath::CONNECTIONS.contains(&wanted) {
        return Ok(wanted);
    }
    let (least, most) = (fastpath::CONNECTIONS.start(), fastpath::CONNECTIONS.end());
    Err(format!("expected {least} to {most} connections; what does not fit goes by TCP"))
}

fn path(env: &impl Env, name: &str, default: &str) -> PathBuf {
    env.get(name).unwrap_or_else(|| default.to_owned()).into()
}

fn unsupported(name: &'static str, value: &str, accepted: &str) -> ConfigError {
    ConfigError { name, value: value.to_owned(), accepted: accepted.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_env(&variables)
    }

    #[test]
    fn the_defaults_need_no_file() {
        let config = Config::defaults();
        assert!(config.dns.is_none());
        assert_eq!(config.sockets.mark, 1337);
    }

    #[test]
    fn an_empty_environment_gives_the_contracts_defaults() {
        let config = read(&[]).unwrap();
        assert_eq!(config.sockets.mark, 1337);
        assert_eq!(config.tunnels.max_streams, 100);
        assert_eq!(config.tunnels.stream_window, 4_194_304);
        assert_eq!(config.drain_deadline, Duration::from_secs(5));
        assert!(matches!(config.ca, CaConfig::Remote(_)));
        assert_eq!(config.mode, ProxyMode::Shared);
        assert_eq!(config.ports, Ports { admin: 15000, metrics: 15020 });
        assert_eq!(config.mesh, MeshSource::Empty);
        assert!(config.workers >= 2);
    }

    #[test]
    fn the_drain_deadline_leaves_room_within_the_grace_period() {
        for (grace, seconds) in [("0", 1), ("1", 1), ("10", 9), ("11", 6), ("30", 25)] {
            let config = read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap();
            assert_eq!(config.drain_deadline, Duration::from_secs(seconds), "grace {grace}");
        }
    }

    #[test]
    fn every_unusable_value_is_refused_by_name() {
        for (name, value) in [
            ("XDS_ADDRESS", "http://istiod:15012"),
            ("PROXY_MODE", "both"),
            ("ENABLE_PROXY", "no"),
            ("UNSTABLE_ENABLE_SOCKS5", "1"),
            ("CLUSTER_DOMAIN", "."),
            ("ISTIO_META_DNS_PROXY_ADDR", "15053"),
            ("COMPLIANCE_POLICY", "fips"),
            ("PROXY_CONFIG", "concurrency: many"),
            ("SECRET_TTL", "0"),
            ("CA_ADDRESS", ""),
            ("PACKET_MARK", "-1"),
            ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
            ("HTTP2_FRAME_SIZE", "100"),
            ("AUTHZ_UNKNOWN_POLICY", "allow"),
            ("EBPF_FASTPATH", "yes"),
            ("EBPF_MAX_CONNECTIONS", "63"),
            ("EBPF_MAX_CONNECTIONS", "1048577"),
            ("EBPF_MAX_CONNECTIONS", "many"),
            ("EBPF_DEBUG", "yes"),
            ("METRICS_LABELS", "reporter,port"),
            ("METRICS_MAX_SERIES", "0"),
            ("METRICS_IDLE_TIMEOUT", "soon"),
            ("ACCESS_LOG_OPENED", "1"),
            ("ZTUNNEL_WORKER_THREADS", "101%"),
            ("IPV6_ENABLED", "1"),
            ("CONNECTION_TERMINATION_DEADLINE", "soon"),
        ] {
            assert_eq!(read(&[(name, value)]).unwrap_err().name, name);
        }
        assert!(read(&[("LOCAL_XDS_PATH", "a"), ("LOCAL_XDS", "b")]).is_err());
        let nothing = [("ENABLE_PROXY", "false"), ("ISTIO_META_DNS_CAPTURE", "false")];
        assert_eq!(read(&nothing).unwrap_err().name, "ENABLE_PROXY");
        assert!(!read(&nothing[..1]).unwrap().proxy, "DNS alone is something");
    }

    #[test]
    fn a_dedicated_proxy_marks_nothing_unless_it_is_told_to() {
        let dedicated = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a/b/c"), ("PACKET_MARK", "7")];
        let config = read(&dedicated[..2]).unwrap();
        assert_eq!((config.sockets.mark, config.sockets.mark_listeners), (0, false));
        let config = read(&dedicated).unwrap();
        assert_eq!((config.sockets.mark, config.sockets.mark_listeners), (7, false));
    }
}
