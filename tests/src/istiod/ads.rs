// SPDX-License-Identifier: Apache-2.0
//! The ADS part of an istiod: delta xDS for every connected ztunnel, with faults.
//!
//! It does what istiod does where ztunnel can tell: names the removed, skips what the client has already, answers
//! every first request of a type, looks up on demand by name and alias, ignores stale nonces, never repeats what was
//! refused, and takes no request beyond 4 MiB. Everything that a ztunnel says is kept, for the test to look at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
use ztunnel_core::xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use ztunnel_core::xds::proto::workload::{Address, address};
use ztunnel_core::xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::grpc::{self, Call, Requests, Responses, TooLarge};
use super::resources::{Entry, Resources};
use crate::wait;

/// What the control plane knows, what it does wrong, and what it was told.
#[derive(Debug)]
pub struct Ads {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    resources: Resources,
    faults: Faults,
    seen: Vec<Seen>,
    streams: usize,
    /// By number of the stream.
    open: BTreeMap<usize, Standing>,
}

/// How far a connected ztunnel is.
#[derive(Debug, Default)]
struct Standing {
    revision: u64,
    subscribed: BTreeSet<String>,
    unanswered: BTreeSet<String>,
}

/// What goes wrong. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Refuses every new stream with this status and message.
    pub refuse: Option<(u32, String)>,
    /// Ends every stream cleanly after this long.
    pub end_after: Option<Duration>,
    /// Cuts the connection once, after this many bytes of the next response that is longer.
    pub cut_next_push_after: Option<usize>,
    /// Sends these bytes once instead of the next response.
    pub next_response: Option<Bytes>,
}

/// A request, with the stream that it came on (from 1) and the stream's metadata.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Number of the stream.
    pub stream: usize,
    /// The headers with which the stream began.
    pub metadata: http::HeaderMap,
    /// The request.
    pub request: DeltaDiscoveryRequest,
}

impl Seen {
    /// True for a first request of a type on its stream.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        self.request.node.is_some()
    }

    /// What was refused and why, if it is a NACK.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.request.error_detail.as_ref().map(|status| status.message.as_str())
    }
}

impl Default for Ads {
    fn default() -> Self {
        Self { state: Mutex::default(), revision: watch::Sender::new(1) }
    }
}

/// For tests.
impl Ads {
    /// Changes what the control plane knows. Every connected ztunnel is told, in one response per type.
    pub fn update<T>(&self, change: impl FnOnce(&mut Resources) -> T) -> T {
        let result = change(&mut self.state.lock().resources);
        self.revision.send_modify(|revision| *revision += 1);
        result
    }

    /// Resources that are not known to anybody yet.
    #[must_use]
    pub fn prepare(&self, change: impl FnOnce(&mut Resources)) -> Resources {
        let mut resources = Resources::default();
        change(&mut resources);
        resources
    }

    /// Adds prepared resources to what the control plane knows.
    pub fn publish(&self, prepared: Resources) {
        self.update(|resources| {
            for (type_url, prepared) in prepared.0 {
                resources.0.entry(type_url).or_default().extend(prepared);
            }
        });
    }

    /// Changes what goes wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().faults);
    }

    /// Everything that ztunnels have said so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// Streams so far, those that were refused among them.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.state.lock().streams
    }

    /// Waits until `find` finds something among what ztunnels have said.
    ///
    /// # Errors
    /// The deadline passed.
    pub fn wait_seen<T>(
        &self,
        what: &str,
        within: Duration,
        find: impl Fn(&[Seen]) -> Option<T>,
    ) -> Result<T> {
        wait::some(what, within, || find(&self.state.lock().seen))
    }

    /// Waits until `count` ztunnels are connected and have answered for everything that is known now.
    ///
    /// # Errors
    /// The deadline passed.
    pub fn wait_settled(&self, count: usize, within: Duration) -> Result<()> {
        let settled = || {
            let latest = *self.revision.borrow();
            let state = self.state.lock();
            let done = |stream: &&Standing| {
                stream.revision == latest && stream.subscribed.len() == 2 && stream.unanswered.is_empty()
            };
            state.open.values().filter(done).count() == count
        };
        wait::until("every ztunnel to know everything", within, settled)
            .with_context(|| format!("streams: {:?}", self.state.lock().open))
    }
}

/// A stream, as long as it stands.
struct Open<'a> {
    ads: &'a Ads,
    number: usize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.ads.state.lock().open.remove(&self.number);
    }
}

/// One stream.
struct Stream<'a> {
    ads: &'a Ads,
    number: usize,
    subscriptions: HashMap<String, Subscription>,
    nonces: u64,
    /// `NODE_NAME` of the client.
    node: Option<String>,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name to version of what the client has.
    held: HashMap<String, String>,
}

impl Ads {
    pub(super) async fn serve(&self, call: Call) {
        let (number, faults) = {
            let mut state = self.state.lock();
            state.streams += 1;
            (state.streams, state.faults.clone())
        };
        if let Some((status, message)) = faults.refuse {
            return call.refuse(status, &message);
        }
        let metadata = call.metadata().clone();
        let Ok((requests, mut responses)) = call.accept() else { return };
        self.state.lock().open.insert(number, Standing::default());
        // Forgotten at its end, and when the connection is cut beneath it.
        let _open = Open { ads: self, number };
        let end = async {
            match faults.end_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let mut stream = Stream { ads: self, number, subscriptions: HashMap::new(), nonces: 0, node: None };
        let ended = tokio::select! {
            ended = stream.run(&metadata, requests, &mut responses) => ended,
            () = end => Ok(()),
        };
        match ended {
            Ok(()) => responses.finish(grpc::OK, ""),
            Err(error) if error.is::<TooLarge>() => {
                responses.finish(grpc::RESOURCE_EXHAUSTED, &error.to_string());
            }
            Err(error) => responses.finish(grpc::INVALID_ARGUMENT, &format!("{error:#}")),
        }
    }
}

impl Stream<'_> {
    async fn run(
        &mut self,
        metadata: &http::HeaderMap,
        mut requests: Requests,
        responses: &mut Responses,
    ) -> Result<()> {
        let mut changes = self.ads.revision.subscribe();
        changes.mark_unchanged();
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request? else { return Ok(()) };
                    let request = DeltaDiscoveryRequest::decode(request).context("not a request")?;
                    self.record(metadata, &request);
                    if let Some(response) = self.handle(request)? {
                        self.send(response, responses).await?;
                    }
                }
                _ = changes.changed() => {
                    let revision = *changes.borrow_and_update();
                    // What the workloads need comes before the policies, as in istiod.
                    for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
                        if let Some(response) = self.delta(type_url) {
                            self.send(response, responses).await?;
                        }
                    }
                    self.standing(|standing| standing.revision = revision);
                }
            }
        }
    }

    fn record(&self, metadata: &http::HeaderMap, request: &DeltaDiscoveryRequest) {
        let seen = Seen { stream: self.number, metadata: metadata.clone(), request: request.clone() };
        self.ads.state.lock().seen.push(seen);
    }

    fn standing(&self, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.ads.state.lock().open.get_mut(&self.number) {
            change(standing);
        }
    }

    fn handle(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<DeltaDiscoveryResponse>> {
        if let Some(node) = &request.node {
            anyhow::ensure!(node.id.split('~').count() == 4, "node id {:?}", node.id);
            anyhow::ensure!(node.id.starts_with("ztunnel~"), "node id {:?}", node.id);
            self.node = Some(node_name(node));
        }
        anyhow::ensure!(self.node.is_some(), "missing node information");
        let type_url = request.type_url.clone();
        let Some(subscription) = self.subscriptions.get_mut(&type_url) else {
            return Ok(Some(self.subscribe(request)));
        };
        if !request.response_nonce.is_empty() {
            // Also one that a later response has overtaken: it is answered all the same.
            self.standing(|standing| {
                standing.unanswered.remove(&request.response_nonce);
            });
            return Ok(None);
        }
        let names: Vec<String> = request
            .resource_names_subscribe
            .into_iter()
            .filter(|name| subscription.names.insert(name.clone()))
            .collect();
        Ok((!names.is_empty()).then(|| self.lookup(&type_url, &names)))
    }

    /// The first request of a type: all that the client does not have yet, and the names that are gone.
    fn subscribe(&mut self, request: DeltaDiscoveryRequest) -> DeltaDiscoveryResponse {
        let DeltaDiscoveryRequest { type_url, initial_resource_versions: held, .. } = request;
        let subscribe = request.resource_names_subscribe;
        let wildcard = subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        let names = subscribe.into_iter().filter(|name| name != "*").collect();
        let subscription = Subscription { wildcard, names, held };
        self.subscriptions.insert(type_url.clone(), subscription);
        let revision = *self.ads.revision.borrow();
        self.standing(|standing| {
            standing.subscribed.insert(type_url.clone());
            standing.revision = revision;
        });
        self.delta(&type_url).unwrap_or_else(|| DeltaDiscoveryResponse { type_url, ..Default::default() })
    }

    /// What the client has to learn about what it is subscribed to; nothing if it knows it all.
    fn delta(&mut self, type_url: &str) -> Option<DeltaDiscoveryResponse> {
        let subscription = self.subscriptions.get_mut(type_url)?;
        let state = self.ads.state.lock();
        let mut response = DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..Default::default() };
        let mut current = HashMap::new();
        for (name, entry) in state.resources.of(type_url) {
            // The pods of the client's own node are never left to be asked for.
            let own = !entry.node.is_empty() && self.node.as_ref() == Some(&entry.node);
            let wanted = subscription.wildcard
                || own
                || subscription.names.contains(name)
                || subscription.held.contains_key(name)
                || entry.aliases.iter().any(|alias| subscription.names.contains(alias));
            if !wanted {
                continue;
            }
            let known = subscription.held.get(name);
            // Without a version there is no telling: policies are sent whenever anything changes.
            if entry.version.is_empty() || known != Some(&entry.version) {
                response.resources.push(entry.encoded.clone());
            }
            current.insert(name.clone(), entry.version.clone());
        }
        let gone = subscription.held.keys().filter(|name| !current.contains_key(*name));
        response.removed_resources = gone.cloned().collect();
        response.removed_resources.sort();
        subscription.held = current;
        let empty = response.resources.is_empty() && response.removed_resources.is_empty();
        (!empty).then_some(response)
    }

    /// What was asked for by name or alias; a service brings its endpoints.
    fn lookup(&mut self, type_url: &str, names: &[String]) -> DeltaDiscoveryResponse {
        let state = self.ads.state.lock();
        let mut response = DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..Default::default() };
        let Some(subscription) = self.subscriptions.get_mut(type_url) else { return response };
        for asked in names {
            let mut found = Vec::new();
            for (name, entry) in state.resources.of(type_url) {
                if name == asked || entry.aliases.contains(asked) {
                    found.push(name.clone());
                }
            }
            if found.is_empty() {
                response.removed_resources.push(asked.clone());
            }
            let members: Vec<String> =
                found.iter().flat_map(|service| members(&state.resources, service)).collect();
            found.extend(members);
            for name in found {
                let Some(entry) = state.resources.0.get(type_url).and_then(|all| all.get(&name)) else {
                    continue;
                };
                response.resources.push(entry.encoded.clone());
                subscription.held.insert(name, entry.version.clone());
            }
        }
        response
    }

    async fn send(&mut self, mut response: DeltaDiscoveryResponse, responses: &mut Responses) -> Result<()> {
        self.nonces += 1;
        response.nonce = format!("{}-{}", self.number, self.nonces);
        let nonce = response.nonce.clone();
        self.standing(|standing| {
            standing.unanswered.insert(nonce);
        });
        let mut bytes = Bytes::from(response.encode_to_vec());
        let cut = {
            let mut state = self.ads.state.lock();
            if let Some(instead) = state.faults.next_response.take() {
                bytes = instead;
            }
            state.faults.cut_next_push_after.take_if(|after| *after < bytes.len())
        };
        match cut {
            Some(after) => responses.send_part_and_cut(&bytes, after).await,
            None => responses.send(&bytes).await,
        }
    }
}

/// `NODE_NAME` of the metadata.
fn node_name(node: &Node) -> String {
    let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME"));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}

/// The uids of the workloads of a service.
fn members(resources: &Resources, service: &str) -> Vec<String> {
    let member = |(uid, entry): (&String, &Entry)| {
        let resource = Resource::decode(entry.encoded.clone()).ok()?;
        let address = Address::decode(resource.resource?.value).ok()?;
        match address.r#type? {
            address::Type::Workload(workload) => workload.services.contains_key(service).then(|| uid.clone()),
            address::Type::Service(_) => None,
        }
    };
    resources.of(ADDRESS_TYPE).filter_map(member).collect()
}
