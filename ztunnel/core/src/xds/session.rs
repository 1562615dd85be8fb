// SPDX-License-Identifier: Apache-2.0
//! Subscriptions, the versions that we hold, and the answers to responses. Lives as long as the process; streams
//! come and go beneath it.
//!
//! Invariants: every response is answered once; what we say we hold is in the mesh; a refused resource is never
//! said to be held, so the control plane sends it again; nothing is forgotten because a stream ended.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message as _;

use super::backoff::{Backoff, Ending, Retry};
use super::decode::{Kind, Rejected};
use super::demand::{Asked, Demands};
use super::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use super::push::{Push, Report};
use super::version::Version;
use crate::Name;
use crate::mesh::Change;

/// istiod takes no message beyond 4 MiB unless told otherwise. A list of what we hold that comes near is left out;
/// the answer is then the whole mesh, and what is not in it is gone.
const MAX_HELD_BYTES: usize = 7 << 19;
/// More refusals than this are counted, not listed, in an answer.
const MAX_LISTED: usize = 64;
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// How workloads and services are subscribed to. Policies always come as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of them.
    Wildcard,
    /// Those of this node, and what is asked for by name.
    OnDemand,
}

/// A response, read.
#[derive(Debug)]
pub enum Received {
    /// Apply it, then [`Session::settle`].
    Push(Push),
    /// About something that nobody subscribed to: send the answer, and tell the operator.
    Unknown {
        /// What it is about.
        type_url: String,
        /// The answer.
        answer: DeltaDiscoveryRequest,
    },
}

/// A response, dealt with.
#[derive(Debug)]
pub struct Settled {
    /// What is left to apply, before the answer is sent.
    pub changes: Vec<Change>,
    /// The answer.
    pub answer: DeltaDiscoveryRequest,
    /// What was refused.
    pub rejected: Vec<Rejected>,
    /// Names that somebody may be waiting for.
    pub answered: Vec<Name>,
}

/// One type.
#[derive(Debug, Default)]
struct Subscription {
    /// What is in the mesh, with its version.
    held: HashMap<Name, Version>,
    /// Policies that could not be read and have a stand-in in the mesh.
    stand_ins: HashSet<Name>,
    /// The next response is the whole of it.
    whole: bool,
    /// A first response was dealt with.
    synced: bool,
}

/// The session with the control plane.
#[derive(Debug)]
pub struct Session {
    node: Node,
    mode: Mode,
    address: Subscription,
    authorization: Subscription,
    demands: Demands,
    backoff: Backoff,
    connected: bool,
    /// Something was achieved on the current stream.
    useful: bool,
}

impl Session {
    /// A session that holds nothing yet. `node` is who we say we are.
    #[must_use]
    pub fn new(node: Node, mode: Mode) -> Self {
        Self {
            node,
            mode,
            address: Subscription::default(),
            authorization: Subscription::default(),
            demands: Demands::default(),
            backoff: Backoff::default(),
            connected: false,
            useful: false,
        }
    }

    /// A stream stands: what to send first, in order.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.connected = true;
        self.useful = false;
        self.demands.restart();
        Kind::ALL.into_iter().map(|kind| self.subscribe(kind)).collect()
    }

    /// The stream has ended, or never stood. What we hold stays.
    pub fn ended(&mut self, entropy: u64) -> Retry {
        self.connected = false;
        // Said of one stream, not of the attempts after it.
        if std::mem::take(&mut self.useful) {
            self.backoff.after_success(entropy)
        } else {
            self.backoff.after_failure(entropy)
        }
    }

    /// Reads a response.
    ///
    /// # Errors
    ///
    /// It cannot be read, not even its nonce, so it cannot be answered: end the stream.
    pub fn receive(&mut self, encoded: Bytes) -> Result<Received, Ending> {
        let response = DeltaDiscoveryResponse::decode(encoded)
            .map_err(|error| Ending::Failed(format!("a response that cannot be read: {error}")))?;
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources, .. } = response;
        Ok(match Kind::of(&type_url) {
            Some(kind) => Received::Push(Push::new(kind, nonce, resources, removed_resources, self.mode)),
            None => {
                let answer = DeltaDiscoveryRequest {
                    type_url: type_url.clone(),
                    response_nonce: nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                Received::Unknown { type_url, answer }
            }
        })
    }

    /// A response has been applied, batch by batch: what is left to do, and the answer.
    pub fn settle(&mut self, push: Push) -> Settled {
        let Push { kind, nonce, removed, report: Report { accepted, aliases, rejected }, .. } = push;
        self.useful = true;
        let answered = self.answered(&accepted, &aliases, &removed);
        let subscription = self.subscription(kind);
        let mut changes = Vec::new();
        if std::mem::take(&mut subscription.whole) {
            changes = subscription.strike(kind, &accepted, &rejected);
        }
        for name in &removed {
            subscription.held.remove(name.as_str());
            subscription.stand_ins.remove(name.as_str());
        }
        // Nothing usable in it is no mesh to start with; a policy has its stand-in.
        let usable = kind == Kind::Authorization || !accepted.is_empty() || rejected.is_empty();
        subscription.synced |= usable;
        for (name, version) in accepted {
            subscription.stand_ins.remove(&name);
            subscription.held.insert(name, version);
        }
        for rejected in &rejected {
            if let Some(stand_in) = &rejected.stand_in
                && !subscription.held.contains_key(rejected.name.as_str())
            {
                subscription.stand_ins.insert(rejected.name.as_str().into());
                changes.push(stand_in.clone());
            }
        }
        let answer = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            response_nonce: nonce,
            error_detail: refusal(&rejected),
            ..DeltaDiscoveryRequest::default()
        };
        Settled { changes, answer, rejected, answered }
    }

    /// Asks for a name: `network/ip`, a uid, or `namespace/hostname`. Gives what has to be sent, if anything.
    pub fn ask(&mut self, name: &str) -> (Asked, Option<DeltaDiscoveryRequest>) {
        if self.mode == Mode::Wildcard {
            return (Asked::Refused, None);
        }
        let (asked, subscribe) = self.demands.ask(name);
        // Without a stream the next one begins with it.
        let request = subscribe.filter(|_| self.connected).map(|subscribe| DeltaDiscoveryRequest {
            type_url: Kind::Address.type_url().to_owned(),
            resource_names_subscribe: subscribe.names,
            resource_names_unsubscribe: subscribe.give_up,
            ..DeltaDiscoveryRequest::default()
        });
        (asked, request)
    }

    /// Whether the mesh is known well enough to begin.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        // What is on demand comes when it is asked for.
        (self.mode == Mode::OnDemand || self.address.synced) && self.authorization.synced
    }

    /// How many resources of a kind are held.
    #[must_use]
    pub fn held(&self, kind: Kind) -> usize {
        match kind {
            Kind::Address => self.address.held.len(),
            Kind::Authorization => self.authorization.held.len(),
        }
    }

    fn subscription(&mut self, kind: Kind) -> &mut Subscription {
        match kind {
            Kind::Address => &mut self.address,
            Kind::Authorization => &mut self.authorization,
        }
    }

    /// The first request of a type.
    fn subscribe(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        let mode = if kind == Kind::Address { self.mode } else { Mode::Wildcard };
        let on_demand = mode == Mode::OnDemand;
        // To subscribe to everything and to nothing at once is to subscribe to nothing yet.
        let names = if on_demand { vec!["*".to_owned()] } else { Vec::new() };
        let mut versions = self.subscription(kind).versions(mode);
        if on_demand {
            for name in self.demands.names() {
                versions.entry(name.to_string()).or_default();
            }
        }
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names,
            initial_resource_versions: versions,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The names that were awaited and are answered by a response.
    fn answered(
        &mut self,
        accepted: &[(Name, Version)],
        aliases: &[String],
        removed: &[String],
    ) -> Vec<Name> {
        if self.mode == Mode::Wildcard {
            return Vec::new();
        }
        let demands = &mut self.demands;
        let mut answered: Vec<Name> = Vec::new();
        for (name, _) in accepted {
            answered.extend(demands.is_present(name).then(|| Name::clone(name)));
        }
        answered.extend(
            aliases.iter().filter(|alias| demands.is_present(alias)).map(|alias| alias.as_str().into()),
        );
        answered
            .extend(removed.iter().filter(|name| demands.is_absent(name)).map(|name| name.as_str().into()));
        answered
    }
}

impl Subscription {
    /// What we hold, as the first request says it; nothing if that would be too much to say.
    fn versions(&mut self, mode: Mode) -> HashMap<String, String> {
        let size: usize = self.held.keys().map(|name| name.len() + 24).sum();
        self.whole = size > MAX_HELD_BYTES && mode == Mode::Wildcard;
        if self.whole {
            return HashMap::new();
        }
        let held = self.held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        held.chain(self.stand_ins.iter().map(|name| (name.to_string(), String::new()))).collect()
    }

    /// Strikes what is held and was not in a response that is the whole of it.
    fn strike(&mut self, kind: Kind, accepted: &[(Name, Version)], rejected: &[Rejected]) -> Vec<Change> {
        let mut named: HashSet<&str> = accepted.iter().map(|(name, _)| &**name).collect();
        named.extend(rejected.iter().map(|rejected| rejected.name.as_str()));
        let mut changes = Vec::new();
        let mut keep = |name: &Name| {
            let keep = named.contains(&**name);
            if !keep {
                let name = Name::clone(name);
                changes.push(match kind {
                    Kind::Address => Change::RemoveAddress(name),
                    Kind::Authorization => Change::RemovePolicy(name),
                });
            }
            keep
        };
        self.held.retain(|name, _| keep(name));
        self.stand_ins.retain(|name| keep(name));
        changes
    }
}

/// What a NACK says: every resource with its reason, up to a limit.
fn refusal(rejected: &[Rejected]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut items: Vec<String> = rejected.iter().take(MAX_LISTED).map(Rejected::to_string).collect();
    if rejected.len() > MAX_LISTED {
        items.push(format!("and {} more", rejected.len() - MAX_LISTED));
    }
    Some(Status { code: INVALID_ARGUMENT, message: items.join("; ") })
}
