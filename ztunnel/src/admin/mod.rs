// SPDX-License-Identifier: Apache-2.0
//! The side doors: readiness (15021), metrics (15020), admin (15000, localhost only).
//!
//! * [`http`]: a small HTTP/1.1 server for all three; [`guests`]: how many places a client has. [`encoding`]: what it compresses.
//! * [`scrape`]: the metrics.
//! * [`readiness`]: what the node still waits for.
//! * [`dump`]: `/config_dump`, for istioctl. [`logging`]: `/logging`. [`profiles`]: `/debug/pprof`.
//! * [`page`]: what a person looks at; it asks [`status`] and [`connections`]. [`problems`]: what is wrong.
//! * [`denials`]: who was turned away, and by which policy. [`mod@query`]: how requests are read. [`origin`]: which browsers' are not answered. [`unix`]: the other way in.

pub mod connections;
pub mod denials;
pub mod dump;
pub mod encoding;
mod guests;
pub mod http;
mod logging;
mod origin;
pub mod page;
pub mod problems;
mod profiles;
mod query;
pub mod readiness;
mod scrape;
pub mod status;
pub mod unix;

use std::io::Write as _;
use std::sync::Arc;

use ::http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::info;

use crate::inpod::pods::{Pods, Switch};
use crate::proxy::Shared;
use connections::Wanted;
use http::{Body, text};
use query::Query;
use readiness::Readiness;

/// Localhost only.
pub const ADMIN_PORT: u16 = 15000;
/// On all addresses.
pub const METRICS_PORT: u16 = 15020;
/// On all addresses.
pub const READINESS_PORT: u16 = 15021;

const HELP: &str = "GET  /\nGET  /config_dump\nGET  /status\nGET  /connections[?pod=namespace/name&peer=text&path=ebpf|tcp&limit=n]\nGET  /denials[?pod=namespace/name]\nPOST /logging[?level=...][&reset]\nGET  /debug/pprof/profile[?seconds=n&frequency=hz]\nGET  /debug/pprof/heap\nPOST /debug/pprof/heap/profiling?activate=true|false\nPOST /accel?state=on|off[&pod=namespace/name]\nPOST /quitquitquit\n";

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
        if let Some(reason) = origin::refuse(request.headers()) {
            return text(StatusCode::FORBIDDEN, reason);
        }
        match (request.method(), request.uri().path()) {
            (_, "/") => page::answer(),
            (_, "/help") => text(StatusCode::OK, HELP),
            (_, "/config_dump") => dump::config_dump(self),
            (method, "/logging") => logging::answer(method, &query(&request)),
            (_, "/debug/pprof/profile") => profiles::cpu(&query(&request)).await,
            (_, "/debug/pprof/heap") => profiles::heap(),
            (_, "/debug/pprof/heap/profiling") => profiles::switch(&query(&request)),
            (_, "/status") => shown(move || status::status(&self)),
            (_, "/connections") => match Wanted::parse(&query(&request)) {
                Ok(wanted) => shown(move || connections::answer(&self, &wanted)),
                Err(error) => text(StatusCode::BAD_REQUEST, error + "\n"),
            },
            (_, "/denials") => {
                let query = query(&request);
                shown(move || {
                    let refusals = self.shared.refusals.list();
                    denials::list(&self.shared, refusals, query.get("pod"))
                })
            }
            (&Method::POST, "/accel") => self.accelerate(&query(&request)),
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
    fn accelerate(&self, query: &Query) -> Response<Body> {
        let switch = match query.get("state") {
            Some("on") => Switch::On,
            Some("off") => Switch::Off,
            _ => return text(StatusCode::BAD_REQUEST, "expected state=on or state=off\n"),
        };
        let state = if switch == Switch::On { "on" } else { "off" };
        match query.get("pod") {
            None => {
                self.shared.fastpath.set_node(switch == Switch::On);
                text(StatusCode::OK, format!("fast path of the node: {state}\n"))
            }
            Some(pod) => {
                if self.pods.accelerate(pod, switch) {
                    text(StatusCode::OK, format!("fast path of {pod}: {state}\n"))
                } else {
                    text(StatusCode::NOT_FOUND, format!("no pod {pod} with a fast path is served here\n"))
                }
            }
        }
    }
}

fn query(request: &Request<Incoming>) -> Query {
    Query::parse(request.uri().query().unwrap_or_default())
}

/// What is asked for as JSON. Made on a thread of its own: to look at every connection may take a while, and the thread of
/// the side doors has the mesh to keep.
fn shown<T: Serialize>(make: impl FnOnce() -> T + Send + 'static) -> Response<Body> {
    http::streamed("application/json", move |mut chunks| {
        serde_json::to_writer_pretty(&mut chunks, &make())?;
        chunks.write_all(b"\n")?;
        chunks.flush()
    })
}
