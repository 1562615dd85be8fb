// SPDX-License-Identifier: Apache-2.0
//! The side doors: readiness (15021), metrics (15020), admin (15000, localhost only).
//!
//! * [`http`]: a small HTTP/1.1 server for all three. [`encoding`]: what it compresses.
//! * [`scrape`]: the metrics.
//! * [`readiness`]: what the node still waits for.
//! * [`dump`]: `/config_dump` and `/status`. [`logging`]: `/logging`. [`profiles`]: `/debug/pprof`.

pub mod dump;
pub mod encoding;
pub mod http;
mod logging;
mod profiles;
pub mod readiness;
mod scrape;

use std::sync::Arc;

use ::http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tracing::info;

use crate::inpod::pods::{Pods, Switch};
use crate::proxy::Shared;
use http::{Body, text};
use readiness::Readiness;

/// Localhost only.
pub const ADMIN_PORT: u16 = 15000;
/// On all addresses.
pub const METRICS_PORT: u16 = 15020;
/// On all addresses.
pub const READINESS_PORT: u16 = 15021;

const HELP: &str = "GET  /config_dump\nGET  /status\nPOST /logging?level=...\nPOST /accel?state=on|off[&pod=namespace/name]\nPOST /quitquitquit\n";

/// What the side doors look at.
#[derive(Debug, Clone)]
pub struct Doors {
    /// The node.
    pub shared: Arc<Shared>,
    /// Its pods.
    pub pods: Pods,
    /// What it waits for.
    pub readiness: Readiness,
    /// Asks the process to end.
    pub quit: mpsc::Sender<()>,
    /// `ISTIO_META_ISTIO_VERSION`.
    pub tag: String,
}

impl Doors {
    /// 15021.
    pub async fn readiness(self, request: Request<Incoming>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz/ready") => match self.readiness.pending() {
                pending if pending.is_empty() => text(StatusCode::OK, "ready\n"),
                pending => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("not ready, pending: {}\n", pending.join(", ")),
                ),
            },
            (_, "/healthz/ready") => text(StatusCode::METHOD_NOT_ALLOWED, ""),
            _ => text(StatusCode::NOT_FOUND, ""),
        }
    }

    /// 15020.
    pub async fn metrics(self, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/metrics" | "/stats/prometheus" => {
                let headers = request.into_parts().0.headers;
                scrape::answer(self, &headers)
            }
            _ => text(StatusCode::NOT_FOUND, ""),
        }
    }

    /// 15000.
    pub async fn admin(self, request: Request<Incoming>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => text(StatusCode::OK, HELP),
            (_, "/config_dump") => dump::config_dump(self),
            (_, "/status") => http::json(&dump::status(&self)),
            (method, "/logging") => logging::answer(method, request.uri().query().unwrap_or_default()),
            (_, "/debug/pprof/profile") => profiles::cpu(request.uri().query().unwrap_or_default()).await,
            (_, "/debug/pprof/heap") => profiles::heap(),
            (_, "/debug/pprof/heap/profiling") => profiles::switch(request.uri().query().unwrap_or_default()),
            (&Method::POST, "/accel") => self.accelerate(request.uri().query().unwrap_or_default()),
            (&Method::POST, "/quitquitquit") => {
                info!("asked to shut down by the admin server");
                // A full channel means that somebody has asked already.
                self.quit.try_send(()).ok();
                text(StatusCode::OK, "shutdown now\n")
            }
            (_, "/accel" | "/quitquitquit") => text(StatusCode::METHOD_NOT_ALLOWED, ""),
            _ => text(StatusCode::NOT_FOUND, ""),
        }
    }

    /// Switches the fast path: `state=on|off`, for the node or for `pod=namespace/name`.
    fn accelerate(&self, query: &str) -> Response<Body> {
        let value = |wanted: &str| {
            query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == wanted)
        };
        let switch = match value("state") {
            Some((_, "on")) => Switch::On,
            Some((_, "off")) => Switch::Off,
            _ => return text(StatusCode::BAD_REQUEST, "expected state=on or state=off\n"),
        };
        let state = if switch == Switch::On { "on" } else { "off" };
        match value("pod") {
            None => {
                self.shared.fastpath.set_node(switch == Switch::On);
                text(StatusCode::OK, format!("fast path of the node: {state}\n"))
            }
            Some((_, pod)) => {
                let pod = pod.replace("%2F", "/").replace("%2f", "/");
                if self.pods.accelerate(&pod, switch) {
                    text(StatusCode::OK, format!("fast path of {pod}: {state}\n"))
                } else {
                    text(StatusCode::NOT_FOUND, format!("no pod {pod} with a fast path is served here\n"))
                }
            }
        }
    }
}
