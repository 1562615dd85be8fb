// SPDX-License-Identifier: Apache-2.0
//! Whom this process serves: every pod of the node, or one workload. Source: data-plane contract, section 0.2.

use std::sync::Arc;

use super::env::{ConfigError, Env, parsed};

/// Whom this process serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyMode {
    /// The pods that the node agent names, in their namespaces.
    Shared,
    /// One workload, in the namespace of this process.
    Dedicated(WorkloadInfo),
}

/// `PROXY_WORKLOAD_INFO`: `namespace/name/service-account`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// Reads the variables.
pub(super) fn read(env: &impl Env) -> Result<ProxyMode, ConfigError> {
    const INFO: &str = "PROXY_WORKLOAD_INFO";
    let dedicated = parsed(env, "PROXY_MODE", false, |text| match text {
        "shared" => Ok(false),
        "dedicated" => Ok(true),
        _ => Err("expected shared or dedicated".to_owned()),
    })?;
    if !dedicated {
        return Ok(ProxyMode::Shared);
    }
    let value = env.get(INFO).unwrap_or_default();
    let mut parts = value.trim().split('/').map(Arc::from).filter(|part: &Arc<str>| !part.is_empty());
    match (parts.next(), parts.next(), parts.next(), value.matches('/').count()) {
        (Some(namespace), Some(name), Some(service_account), 2) => {
            Ok(ProxyMode::Dedicated(WorkloadInfo { namespace, name, service_account }))
        }
        _ => {
            let accepted = "expected namespace/name/service-account, which PROXY_MODE=dedicated needs";
            Err(ConfigError::new(INFO, value, accepted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dedicated_proxy_is_told_whose_it_is() {
        let mode = |variables: &[(&str, &str)]| read(&variables);
        assert_eq!(mode(&[]), Ok(ProxyMode::Shared));
        let dedicated = ("PROXY_MODE", "dedicated");
        let Ok(ProxyMode::Dedicated(info)) = mode(&[dedicated, ("PROXY_WORKLOAD_INFO", "shop/web-0/web")])
        else {
            panic!("accepted")
        };
        assert_eq!((&*info.namespace, &*info.name, &*info.service_account), ("shop", "web-0", "web"));
        for wrong in ["", "shop", "shop/web-0", "shop//web", "a/b/c/d", "/a/b"] {
            assert_eq!(
                mode(&[dedicated, ("PROXY_WORKLOAD_INFO", wrong)]).unwrap_err().name,
                "PROXY_WORKLOAD_INFO"
            );
        }
        assert_eq!(mode(&[("PROXY_MODE", "both")]).unwrap_err().name, "PROXY_MODE");
    }
}
