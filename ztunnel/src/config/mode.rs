// SPDX-License-Identifier: Apache-2.0
//! Whom this process serves: every pod of the node, or one workload; and who it is itself. Source: data-plane contract,
//! sections 0.2 and 3.6.

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

/// Reads who this process is itself, so that peers may reach its metrics over HBONE: `POD_NAMESPACE`, `POD_NAME` and
/// `SERVICE_ACCOUNT`. `None` in dedicated mode, or where one of the three is missing.
pub(super) fn read_self(env: &impl Env, mode: &ProxyMode) -> Option<WorkloadInfo> {
    let get = |name: &str| {
        env.get(name).map(|value| Arc::from(value.trim())).filter(|value: &Arc<str>| !value.is_empty())
    };
    if *mode != ProxyMode::Shared {
        return None;
    }
    Some(WorkloadInfo {
        namespace: get("POD_NAMESPACE")?,
        name: get("POD_NAME")?,
        service_account: get("SERVICE_ACCOUNT")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_proxy_that_knows_its_own_name_is_a_workload_itself() {
        let all =
            [("POD_NAMESPACE", "istio-system"), ("POD_NAME", "ztunnel-x"), ("SERVICE_ACCOUNT", "ztunnel")];
        let own = read_self(&&all[..], &ProxyMode::Shared).unwrap();
        assert_eq!(
            (&*own.namespace, &*own.name, &*own.service_account),
            ("istio-system", "ztunnel-x", "ztunnel")
        );
        for missing in 0..all.len() {
            let rest: Vec<_> =
                all.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, one)| *one).collect();
            assert_eq!(read_self(&&rest[..], &ProxyMode::Shared), None);
        }
        let dedicated = ProxyMode::Dedicated(own);
        assert_eq!(read_self(&&all[..], &dedicated), None);
    }

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
