// SPDX-License-Identifier: Apache-2.0
//! Where certificates come from.

use std::path::PathBuf;
use std::time::Duration;

use super::control_plane::{CA, Credentials, ServerConfig};
use super::env::{ConfigError, Env, boolean, duration, parsed};
use super::path;

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaConfig {
    /// `FAKE_CA=true`: a root made once in this directory (`FAKE_CA_DIR`), shared by the nodes of a local run. Not for production.
    Local(PathBuf),
    /// istiod's, or another one that speaks its protocol.
    Remote(Box<RemoteCaConfig>),
}

/// An authority that is asked over gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteCaConfig {
    /// Where it is.
    pub server: ServerConfig,
    /// Who asks.
    pub credentials: Credentials,
    /// `SECRET_TTL`: how long certificates should live.
    pub lifetime: Duration,
}

/// Reads the variables.
pub(super) fn read(env: &impl Env) -> Result<CaConfig, ConfigError> {
    // Longer than this does not fit the request.
    let lifetime = parsed(env, "SECRET_TTL", Duration::from_secs(24 * 3600), |text| match duration(text)? {
        zero if zero.as_secs() == 0 => Err("expected at least 1s".to_owned()),
        long if i64::try_from(long.as_secs()).is_err() => Err("expected less".to_owned()),
        lifetime => Ok(lifetime),
    })?;
    let server = ServerConfig::read(env, &CA)?;
    if parsed(env, "FAKE_CA", false, boolean)? {
        return Ok(CaConfig::Local(path(env, "FAKE_CA_DIR", "/tmp/ztunnel-local-ca")));
    }
    let Some(server) = server else {
        let accepted =
            "expected the authority's host:port; FAKE_CA=true makes certificates without one, for trials";
        return Err(ConfigError::new("CA_ADDRESS", "", accepted));
    };
    let credentials = Credentials::read(env)?;
    Ok(CaConfig::Remote(Box::new(RemoteCaConfig { server, credentials, lifetime })))
}
