// SPDX-License-Identifier: Apache-2.0
//! Takes the mesh from the control plane: drives the core's xDS session over one gRPC stream at a time.
//!
//! Decisions are in [`ztunnel_core::xds`]; here is only what waits: the stream, the clock, the thread that reads.
//! Responses are read on a thread of their own and applied in small batches, so that neither the side doors nor a
//! connection of a pod waits for a large one.
//!
//! * [`reader`]: the thread that reads responses. [`demand`]: names that connections ask for.

pub mod demand;
mod reader;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};
use ztunnel_core::Name;
use ztunnel_core::mesh::Change;
use ztunnel_core::xds::proto::METHOD;
use ztunnel_core::xds::proto::discovery::DeltaDiscoveryRequest;
use ztunnel_core::xds::{Asked, Ending, Kind, Received, Session, Settled};

use crate::config::TlsConfig;
use crate::config::xds::XdsConfig;
use crate::entropy::entropy;
use crate::grpc::Server;
use crate::grpc::stream::{Call, Status, requests};
use crate::mesh::SharedMesh;
use crate::sys::memory;
use crate::telemetry::metrics::XdsCounts;
use crate::telemetry::standing::Standing;
use demand::{Answer, Demand};
use reader::{BATCH, Done, Reader, Step};

/// Requests that are on their way. The session answers one response at a time.
const REQUESTS: usize = 64;
/// A call is accepted within this time, or given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// More refused resources than this are counted, not listed, in the log.
const MAX_LOGGED: usize = 16;
/// A response of this many resources leaves enough behind to be worth giving back to the kernel.
const LARGE: usize = 1000;

/// The client. It lives as long as the process.
#[derive(Debug)]
pub struct Client {
    server: Server,
    session: Session,
    reader: Reader,
    /// Resources of the response that is being read.
    reading: Option<usize>,
    mesh: SharedMesh,
    counts: XdsCounts,
    standing: Standing,
    synced: watch::Sender<bool>,
    demands: mpsc::Receiver<Demand>,
    waiting: HashMap<Name, Vec<oneshot::Sender<Answer>>>,
}

/// A stream, as long as it stands.
struct Stream {
    requests: mpsc::Sender<Vec<u8>>,
    call: Call,
}

impl Client {
    /// A client that changes a mesh, and answers what is asked about it. `synced` becomes true once it is known.
    pub fn new(
        config: XdsConfig,
        tls: TlsConfig,
        (mesh, demands): (SharedMesh, mpsc::Receiver<Demand>),
        counts: XdsCounts,
        synced: watch::Sender<bool>,
    ) -> Self {
        let XdsConfig { server, credentials, node, mode } = config;
        let server = Server::new(server, credentials, tls);
        let session = Session::new(node, mode);
        let (reader, waiting) = (Reader::start(), HashMap::new());
        let standing = Standing::default();
        Self { server, session, reader, reading: None, mesh, counts, standing, synced, demands, waiting }
    }

    /// The same, whose state others can look at.
    #[must_use]
    pub fn told_to(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// Keeps a stream to the control plane, for ever.
    ///
    /// # Cancel safety
    /// Dropping the future closes the stream; the mesh stays as it is.
    #[expect(clippy::infinite_loop, reason = "it ends with the process")]
    pub async fn run(mut self) {
        loop {
            let ending = match self.connect().await {
                Ok(stream) => self.serve(stream).await,
                Err(ending) => ending,
            };
            self.standing.disconnected(ending.reason());
            self.finish_reading().await;
            self.counts.terminated(ending.label());
            let after = self.session.ended(entropy()).after;
            let address = self.server.address();
            match &ending {
                Ending::NotConnected(reason) => {
                    warn!(%address, retry = ?after, "cannot reach the control plane: {reason}");
                }
                Ending::Failed(reason) => warn!(%address, retry = ?after, "stream failed: {reason}"),
                Ending::Lost(_) | Ending::Clean => {
                    info!(%address, retry = ?after, "stream ended: {}", ending.reason());
                }
            }
            self.pause(after).await;
        }
    }

    /// Connects, and waits until the call is answered.
    async fn connect(&mut self) -> Result<Stream, Ending> {
        let failed = |reason: String| Ending::NotConnected(reason);
        let metadata = self.server.metadata().map_err(|error| failed(error.to_string()))?;
        let channel = self.server.channel().await.map_err(|error| failed(error.to_string()))?;
        let (requests, body) = requests(REQUESTS);
        // The first requests go out with the call: the server may accept nothing before it has them.
        for request in self.session.connected() {
            requests.try_send(request.encode_to_vec()).map_err(|error| failed(error.to_string()))?;
        }
        let call = Call::start(channel, self.server.address(), METHOD, metadata, body);
        let accepted = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
        let call = accepted
            .map_err(|_elapsed| failed("the call was not accepted in time".to_owned()))?
            .map_err(|status| failed(status.to_string()))?;
        info!(address = %self.server.address(), "connected to the control plane");
        self.standing.connected();
        Ok(Stream { requests, call })
    }

    /// Serves a stream to its end.
    async fn serve(&mut self, mut stream: Stream) -> Ending {
        loop {
            let served = tokio::select! {
                response = stream.call.message(), if self.reading.is_none() => {
                    self.receive(response, &stream.requests).await
                }
                step = self.reader.step(), if self.reading.is_some() => match self.step(step) {
                    Ok(Some(answer)) => send(&stream.requests, &answer).await,
                    Ok(None) => Ok(()),
                    Err(ending) => Err(ending),
                },
                Some(demand) = self.demands.recv() => match self.ask(demand) {
                    Some(request) => send(&stream.requests, &request).await,
                    None => Ok(()),
                },
            };
            if let Err(ending) = served {
                return ending;
            }
        }
    }

    /// What was begun is applied to its end, stream or no stream: what we say we hold must be true.
    async fn finish_reading(&mut self) {
        while self.reading.is_some() {
            let step = self.reader.step().await;
            if let Err(ending) = self.step(step) {
                warn!("{}", ending.reason());
            }
        }
    }

    /// Waits without a stream. Who asks for a name meanwhile waits for the next one.
    async fn pause(&mut self, after: Duration) {
        let until = tokio::time::Instant::now() + after;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                Some(demand) = self.demands.recv() => drop(self.ask(demand)),
            }
        }
    }

    /// A response came, or the end did.
    async fn receive(
        &mut self,
        response: Result<Bytes, Status>,
        requests: &mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Ending> {
        let encoded = response.map_err(|status| Ending::of_status(status.code, &status.message))?;
        let bytes = encoded.len();
        match self.session.receive(encoded)? {
            Received::Push(push) => {
                let kind = push.kind();
                self.counts.received(kind.type_url(), bytes);
                let (resources, removed) = push.size();
                debug!(?kind, resources, removed, bytes, "response received");
                if kind == Kind::Address {
                    self.mesh.make_room(resources);
                }
                self.reading = Some(resources + removed);
                self.reader.read(push);
                Ok(())
            }
            Received::Unknown { type_url, answer } => {
                error!(type_url, "a response of a type that nobody subscribed to");
                self.counts.received(&type_url, bytes);
                send(requests, &answer).await
            }
        }
    }

    /// The reader has done something. Gives the answer to send once it is done with a response.
    fn step(&mut self, step: Option<Step>) -> Result<Option<DeltaDiscoveryRequest>, Ending> {
        match step {
            Some(Step::Batch(changes)) => {
                self.mesh.apply(changes);
                Ok(None)
            }
            Some(Step::Done(done)) => {
                let size = self.reading.take().unwrap_or_default();
                let answer = self.settle(*done);
                if size > LARGE {
                    memory::release_free();
                }
                Ok(Some(answer))
            }
            None => {
                // A bug of ours must not end in silence, nor take the process with it.
                self.reading = None;
                self.reader = Reader::start();
                Err(Ending::Failed("reading a response failed: this is a bug, please report it".into()))
            }
        }
    }

    /// A response has been applied: what is left to do, and the answer.
    fn settle(&mut self, done: Done) -> DeltaDiscoveryRequest {
        let Done { push, took } = done;
        let kind = push.kind();
        let Settled { changes, answer, rejected, answered } = self.session.settle(push);
        self.apply(changes);
        for rejected in rejected.iter().take(MAX_LOGGED) {
            warn!(resource = %rejected.name, "refused: {}", rejected.reason);
        }
        if rejected.len() > MAX_LOGGED {
            warn!(more = rejected.len() - MAX_LOGGED, "more resources were refused");
        }
        debug!(?kind, held = self.session.held(kind), refused = rejected.len(), ?took, "response applied");
        for name in answered {
            for waiting in self.waiting.remove(&name).into_iter().flatten() {
                tell(waiting, Answer::Known);
            }
        }
        if self.session.is_synced() && !*self.synced.borrow() {
            let (addresses, policies) =
                (self.session.held(Kind::Address), self.session.held(Kind::Authorization));
            info!(addresses, policies, ?took, "the mesh is known");
            self.synced.send_replace(true);
        }
        answer
    }

    /// What is left after a response is little, but for the removals after a long outage.
    fn apply(&self, changes: Vec<Change>) {
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            self.mesh.apply(changes.by_ref().take(BATCH).collect());
        }
    }

    fn ask(&mut self, demand: Demand) -> Option<DeltaDiscoveryRequest> {
        let Demand { name, answer } = demand;
        let (asked, request) = self.session.ask(&name);
        match asked {
            Asked::Waiting => {
                let waiting = self.waiting.entry(name).or_default();
                waiting.retain(|waiting| !waiting.is_closed());
                waiting.push(answer);
            }
            Asked::Answered => tell(answer, Answer::Known),
            Asked::Refused => tell(answer, Answer::Refused),
        }
        request
    }
}

/// Answers a question. Whoever has given up is not told.
fn tell(waiting: oneshot::Sender<Answer>, answer: Answer) {
    waiting.send(answer).ok();
}

async fn send(requests: &mpsc::Sender<Vec<u8>>, request: &DeltaDiscoveryRequest) -> Result<(), Ending> {
    let sent = requests.send(request.encode_to_vec()).await;
    sent.map_err(|_closed| Ending::Lost("the stream is closed".to_owned()))
}
