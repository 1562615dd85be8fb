// SPDX-License-Identifier: Apache-2.0
//! Reaches for the control plane as ztunnel would, up to the point where it would say who it is.

use std::time::Duration;

use tokio::runtime;

use super::super::facts::{Failure, Outcome, Remote};
use crate::config::control_plane::{Credentials, ServerConfig, TokenSource};
use crate::config::{CaConfig, Config, TlsConfig};
use crate::grpc::Server;

/// Somebody waits for the report: names that nobody resolves and hosts that swallow packets are given up.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn probe(config: &Config) -> Vec<Remote> {
    let istiod = config.xds.as_ref().map(|xds| ("istiod", &xds.server, &xds.credentials));
    let authority = match &config.ca {
        CaConfig::Remote(remote) => Some(("CA", &remote.server, &remote.credentials)),
        CaConfig::Local(_) => None,
    };
    let servers = istiod.into_iter().chain(authority);
    servers.map(|(name, server, credentials)| remote(name, server, credentials, config.tunnels.tls)).collect()
}

fn remote(name: &'static str, config: &ServerConfig, credentials: &Credentials, tls: TlsConfig) -> Remote {
    let server = Server::new(config.clone(), credentials.clone(), tls);
    let token = match (server.metadata(), &credentials.token) {
        (Err(error), _) => Err(Failure::because(error.to_string())),
        (Ok(_), TokenSource::Mounted(path)) if !path.exists() => {
            Err(Failure::because(format!("{} is not there", path.display())))
        }
        (Ok(_), TokenSource::Mounted(path) | TokenSource::File(path)) => Ok(format!("in {}", path.display())),
        (Ok(_), TokenSource::Literal(_)) => Ok("in AUTH_TOKEN".to_owned()),
    };
    Remote { name, reached: reach(&server), token }
}

fn reach(server: &Server) -> Outcome {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let reached = runtime.block_on(async { tokio::time::timeout(PATIENCE, server.channel()).await });
    // A name may still be looked up on a thread of its own; it is not waited for.
    runtime.shutdown_background();
    match reached {
        Ok(Ok(_channel)) => Ok(format!("{} answers, and its certificate is trusted", server.address())),
        Ok(Err(error)) => Err(Failure::because(format!("{}: {error}", server.address()))),
        Err(_elapsed) => {
            Err(Failure::because(format!("{}: no answer within {PATIENCE:?}", server.address())))
        }
    }
}
