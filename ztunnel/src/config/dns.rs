// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy. Source: data-plane contract, sections 5.1 to 5.4 and appendix A.

use std::net::SocketAddr;
use std::sync::Arc;

use ztunnel_core::dns::resolv_conf::{self, ResolvConf};
use ztunnel_core::dns::{Settings, name, search_domains};

use super::env::{ConfigError, Env, boolean, number, parsed};
use super::mode::ProxyMode;
use super::proxy_config::ProxyConfig;

/// Where pods' DNS queries are redirected to.
pub const PORT: u16 = 15053;
const RESOLV_CONF: &str = "DNS_RESOLV_CONF";

/// The DNS proxy's settings.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// `DNS_PROXY_ADDR` of the proxy metadata.
    pub listen: Listen,
    /// What answers depend on.
    pub settings: Settings,
    /// Whom to ask about everything else.
    pub resolvers: Arc<ResolvConf>,
    /// The search list of every pod; `None`: it follows from the pod's namespace.
    search: Option<Vec<String>>,
}

/// Where the DNS proxy listens in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// This port on 127.0.0.1 and, where there is one, ::1.
    Localhost(u16),
    /// Only there.
    Addr(SocketAddr),
}

impl Listen {
    /// The port.
    pub fn port(self) -> u16 {
        match self {
            Self::Localhost(port) => port,
            Self::Addr(addr) => addr.port(),
        }
    }
}

impl DnsConfig {
    /// The search domains that a pod of this namespace has.
    pub fn search(&self, namespace: &str) -> Vec<String> {
        self.search.clone().unwrap_or_else(|| search_domains(namespace, &self.settings.domain))
    }
}

/// Whether pods' queries come to us: a value of the proxy metadata, `ISTIO_META_*` in the environment over ProxyConfig's.
pub(super) fn is_captured(env: &impl Env, proxy: &ProxyConfig) -> bool {
    metadata(env, proxy, "DNS_CAPTURE").is_none_or(|capture| capture.trim().eq_ignore_ascii_case("true"))
}

fn metadata(env: &impl Env, proxy: &ProxyConfig, name: &str) -> Option<String> {
    let long = format!("ISTIO_META_{name}");
    let configured = || proxy.proxy_metadata.get(&long).or_else(|| proxy.proxy_metadata.get(name)).cloned();
    env.get(&long).or_else(configured)
}

/// Reads the variables; `None` if queries do not come to us.
pub(super) fn read(
    env: &impl Env,
    proxy: &ProxyConfig,
    mode: &ProxyMode,
    resolvers: &Arc<ResolvConf>,
) -> Result<Option<DnsConfig>, ConfigError> {
    if !is_captured(env, proxy) {
        return Ok(None);
    }
    let resolvers = Arc::clone(resolvers);
    let search = match mode {
        ProxyMode::Shared => None,
        ProxyMode::Dedicated(_) => Some(resolvers.search.clone()),
    };
    let preferred = env.get("PREFERED_SERVICE_NAMESPACE").filter(|namespace| !namespace.is_empty());
    let settings = Settings {
        domain: parsed(env, "CLUSTER_DOMAIN", "cluster.local".into(), domain)?,
        preferred_namespace: preferred.map(Arc::from),
        ipv6: parsed(env, "IPV6_ENABLED", true, boolean)?,
    };
    let listen = match metadata(env, proxy, "DNS_PROXY_ADDR") {
        None => Listen::Localhost(PORT),
        Some(value) => listen(value.trim())
            .map_err(|accepted| ConfigError::new("ISTIO_META_DNS_PROXY_ADDR", value, accepted))?,
    };
    Ok(Some(DnsConfig { listen, settings, resolvers, search }))
}

/// Whom to ask about everything that the mesh does not know.
pub(super) fn resolvers(env: &impl Env) -> Result<ResolvConf, ConfigError> {
    let path = env.get(RESOLV_CONF).unwrap_or_else(|| "/etc/resolv.conf".to_owned());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(resolv_conf::parse(&text)),
        Err(error) => {
            let accepted = format!(
                "cannot read the file: {error}. It names the resolvers that pods' queries are forwarded to, and that \
                 know the addresses of workloads with a host name only"
            );
            Err(ConfigError::new(RESOLV_CONF, path, accepted))
        }
    }
}

fn domain(text: &str) -> Result<Arc<str>, String> {
    let domain = text.trim_matches('.').to_ascii_lowercase();
    match name::encode(&domain) {
        Some(_) => Ok(domain.into()),
        None => Err("expected a DNS domain such as cluster.local".to_owned()),
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    match text.strip_prefix("localhost:") {
        Some(port) => number(port).map(Listen::Localhost),
        None => {
            text.parse().map(Listen::Addr).map_err(|_error| "expected localhost:port or ip:port".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<DnsConfig>, ConfigError> {
        let all: Vec<_> = [(RESOLV_CONF, "/dev/null")].iter().chain(variables).copied().collect();
        let resolvers = Arc::new(resolvers(&&*all)?);
        super::read(&&*all, &ProxyConfig::default(), &ProxyMode::Shared, &resolvers)
    }

    #[test]
    fn it_is_on_unless_it_is_switched_off() {
        let config = read(&[]).unwrap().unwrap();
        assert_eq!(config.listen, Listen::Localhost(15053));
        assert_eq!(&*config.settings.domain, "cluster.local");
        assert_eq!(config.search("a"), ["a.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        for (capture, on) in [("true", true), ("TRUE", true), ("false", false), ("yes", false), ("", false)] {
            assert_eq!(read(&[("ISTIO_META_DNS_CAPTURE", capture)]).unwrap().is_some(), on, "{capture}");
        }
        let mut proxy = ProxyConfig::default();
        proxy.proxy_metadata.insert("DNS_CAPTURE".into(), "false".into());
        assert!(!is_captured(&&[][..], &proxy));
        assert!(is_captured(&&[("ISTIO_META_DNS_CAPTURE", "true")][..], &proxy));
    }

    #[test]
    fn unusable_values_are_refused_by_name() {
        let address =
            |value| read(&[("ISTIO_META_DNS_PROXY_ADDR", value)]).map(|config| config.unwrap().listen);
        assert_eq!(address("localhost:53"), Ok(Listen::Localhost(53)));
        assert_eq!(address("127.0.0.2:53"), Ok(Listen::Addr("127.0.0.2:53".parse().unwrap())));
        for wrong in ["", "53", "localhost", "localhost:x", "example.com:53"] {
            assert_eq!(address(wrong).unwrap_err().name, "ISTIO_META_DNS_PROXY_ADDR", "{wrong}");
        }
        for (name, value) in [("CLUSTER_DOMAIN", "a..b"), ("CLUSTER_DOMAIN", ""), (RESOLV_CONF, "/nowhere")] {
            assert_eq!(read(&[(name, value)]).unwrap_err().name, name);
        }
        let remote = read(&[("CLUSTER_DOMAIN", "Cluster.Remote.")]).unwrap().unwrap();
        assert_eq!(&*remote.settings.domain, "cluster.remote");
    }

    #[test]
    fn a_dedicated_proxy_searches_where_its_own_resolver_does() {
        let mode = ProxyMode::Dedicated(super::super::mode::WorkloadInfo {
            namespace: "a".into(),
            name: "b".into(),
            service_account: "c".into(),
        });
        let config = super::read(&&[][..], &ProxyConfig::default(), &mode, &Arc::default());
        assert!(config.unwrap().unwrap().search("a").is_empty());
    }
}
