// SPDX-License-Identifier: Apache-2.0
//! Istio's ProxyConfig: `defaultConfig` of the mesh configuration file, overlaid by `PROXY_CONFIG`.
//!
//! Source: control-plane contract, section 7.3.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;

use super::env::{ConfigError, Env};

/// The mesh configuration, relative to the working directory.
pub const MESH_FILE: &str = "./etc/istio/config/mesh";

/// What we take from it; other keys are for other programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Where istiod is, unless `XDS_ADDRESS` says so.
    pub discovery_address: Option<String>,
    /// The admin server's port.
    pub proxy_admin_port: Option<u16>,
    /// The metrics server's port.
    pub stats_port: Option<u16>,
    /// Worker threads; 0: one per CPU.
    pub concurrency: Option<u16>,
    /// Described to istiod as metadata of this node.
    pub proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshFile {
    default_config: Option<ProxyConfig>,
}

impl ProxyConfig {
    /// Reads the mesh file, if there is one, and `PROXY_CONFIG`.
    ///
    /// # Errors
    /// One of them cannot be understood, or the file cannot be read.
    pub fn read(env: &impl Env) -> Result<Self, ConfigError> {
        let file = match std::fs::read_to_string(MESH_FILE) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ConfigError::new(MESH_FILE, "", format!("cannot read the file: {error}")));
            }
        };
        Self::merge(file.as_deref(), env.get("PROXY_CONFIG").as_deref())
    }

    fn merge(file: Option<&str>, variable: Option<&str>) -> Result<Self, ConfigError> {
        let file: MeshFile = parse(MESH_FILE, file)?.unwrap_or_default();
        let below = file.default_config.unwrap_or_default();
        let above: Self = parse("PROXY_CONFIG", variable)?.unwrap_or_default();
        let mut proxy_metadata = below.proxy_metadata;
        proxy_metadata.extend(above.proxy_metadata);
        Ok(Self {
            discovery_address: above.discovery_address.or(below.discovery_address),
            proxy_admin_port: above.proxy_admin_port.or(below.proxy_admin_port),
            stats_port: above.stats_port.or(below.stats_port),
            concurrency: above.concurrency.or(below.concurrency),
            proxy_metadata,
        })
    }
}

/// YAML that may be absent or empty.
fn parse<T: for<'de> Deserialize<'de>>(
    name: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    serde_saphyr::from_str(text).map(Some).map_err(|error| {
        let shown: String = text.chars().take(80).collect();
        ConfigError::new(name, shown, format!("expected a ProxyConfig in YAML: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_goes_over_the_file_field_by_field() {
        let file = "rootNamespace: istio-system\ndefaultConfig:\n  discoveryAddress: istiod:15012\n  concurrency: 3\n  \
                    proxyMetadata: {A: '1', B: '1'}\n  tracing: {}\n";
        let variable = "concurrency: 0\nproxyAdminPort: 16000\nproxyMetadata:\n  B: '2'\n";
        let config = ProxyConfig::merge(Some(file), Some(variable)).unwrap();
        assert_eq!(config.discovery_address.as_deref(), Some("istiod:15012"));
        assert_eq!(
            (config.concurrency, config.proxy_admin_port, config.stats_port),
            (Some(0), Some(16000), None)
        );
        let metadata: Vec<_> = config.proxy_metadata.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(metadata, [("A", "1"), ("B", "2")]);
    }

    #[test]
    fn nothing_is_fine_and_nonsense_is_named() {
        assert_eq!(ProxyConfig::merge(None, Some("")).unwrap(), ProxyConfig::default());
        assert_eq!(ProxyConfig::merge(Some("{}"), None).unwrap(), ProxyConfig::default());
        assert_eq!(ProxyConfig::merge(None, Some("concurrency: many")).unwrap_err().name, "PROXY_CONFIG");
        assert_eq!(ProxyConfig::merge(Some("defaultConfig: 7"), None).unwrap_err().name, MESH_FILE);
        assert!(ProxyConfig::merge(None, Some("statsPort: 70000")).is_err());
    }
}
