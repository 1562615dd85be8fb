// SPDX-License-Identifier: Apache-2.0
//! One query, however it came: answered from the mesh at once, or after a while by a resolver.

use std::sync::Arc;
use std::time::Instant;

use tracing::debug;
use ztunnel_core::dns::lookup::NoData;
use ztunnel_core::dns::wire::{Header, MAX_MESSAGE, rcode_text};
use ztunnel_core::dns::{Answer, Client, Query, Rcode, answer, kind, name, respond};
use ztunnel_core::mesh::{Mesh, Workload};

use super::{MAX_WAITING, Place, PodDns, forward};
use crate::entropy::entropy;
use crate::proxy::PodContext;
use crate::telemetry::dns::{Labels, Transport};

/// What becomes of a message.
#[derive(Debug)]
pub enum Served {
    /// This is the response.
    Now(Vec<u8>),
    /// [`later`] has it.
    Later,
    /// There is none, and none to wait for.
    Never,
}

/// Answers a message if nobody has to be waited for.
pub fn now(context: &PodContext, dns: &PodDns, message: &[u8], transport: Transport) -> Served {
    match Query::parse(message) {
        Err(why) => respond::unanswerable(message, why).map_or(Served::Never, Served::Now),
        Ok(query) => from_mesh(context, dns, &query, transport).map_or(Served::Later, Served::Now),
    }
}

/// Answers a message for which [`now`] had no answer.
pub async fn later(
    context: &PodContext,
    dns: &PodDns,
    message: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    let query = Query::parse(message).ok()?;
    let asked = Asked { context, query: &query, transport };
    let Some(_place) = Place::take(&dns.waiting, MAX_WAITING) else {
        let source = context.shared.mesh.find_local(&context.pod);
        asked.count(source.as_deref());
        asked.log(source.as_deref(), "too many queries of this pod are waiting", 0);
        return Some(respond::error(&query, Rcode::ServFail));
    };
    let Ok(source) = context.shared.mesh.local_workload(&context.pod).await else {
        asked.count(None);
        asked.log(None, "the pod's workload is unknown", 0);
        return Some(respond::error(&query, Rcode::ServFail));
    };
    // The workload may have come while we waited, and the names with it.
    if let Some(response) = from_mesh(context, dns, &query, transport) {
        return Some(response);
    }
    asked.count(Some(&source));
    if transport == Transport::Tcp && query.is_transfer() {
        asked.log(Some(&source), "zone transfers are not forwarded", 0);
        return Some(respond::error(&query, Rcode::Refused));
    }
    let start = Instant::now();
    let answered = forward::forward(&context.sockets, dns, &query, transport).await;
    let failure = match &answered {
        Ok(response) => why_no_help(&query, response),
        Err(error) => Some(error.to_string()),
    };
    let labels = asked.labels(Some(&source));
    context.shared.metrics.dns().forwarded(labels, start.elapsed(), failure.is_some());
    match failure {
        None => asked.log(Some(&source), "forwarded", answers(answered.as_deref().unwrap_or_default())),
        Some(why) => asked.log(Some(&source), &format!("forwarding failed ({why})"), 0),
    }
    Some(match answered {
        Ok(response) if transport == Transport::Udp && response.len() > query.udp_limit() => {
            respond::cut(&query, &response)
        }
        Ok(response) => response,
        Err(_) => respond::error(&query, Rcode::ServFail),
    })
}

/// The answer, if the mesh has one.
fn from_mesh(context: &PodContext, dns: &PodDns, query: &Query<'_>, transport: Transport) -> Option<Vec<u8>> {
    let question = query.question.filter(|_| query.is_question())?;
    if !matches!(question.kind, kind::A | kind::AAAA) {
        return None;
    }
    let settings = &dns.config.settings;
    let decide = |mesh: &Mesh| {
        let workload = context.pod.find(mesh)?;
        let client = Client { workload, search: &dns.search };
        match answer(mesh, &question, &client, settings, &mut entropy) {
            Answer::Forward => None,
            known @ (Answer::NoData(_) | Answer::Found(_)) => Some((Arc::clone(workload), known)),
        }
    };
    let (source, answer) = context.shared.mesh.read(decide)?;
    let asked = Asked { context, query, transport };
    asked.count(Some(&source));
    let limit = match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => MAX_MESSAGE,
    };
    let (result, endpoints, response) = match &answer {
        Answer::Forward => return None,
        Answer::NoData(why) => {
            let result = match why {
                NoData::Family => "service does not support this record type",
                NoData::Empty => "no records",
            };
            (result, 0, respond::no_data(query, &settings.domain, limit))
        }
        Answer::Found(records) => ("success", records.addresses.len(), respond::found(query, records, limit)),
    };
    asked.log(Some(&source), result, endpoints);
    Some(response)
}

/// Why a resolver's response is no help, as the metrics have it: a code, or no record at all.
fn why_no_help(query: &Query<'_>, response: &[u8]) -> Option<String> {
    let header = Header::parse(response)?;
    match header.rcode() {
        0 if !query.is_question() || header.counts[1] > 0 => None,
        0 => Some("no records".to_owned()),
        rcode => Some(rcode_text(rcode).to_owned()),
    }
}

fn answers(response: &[u8]) -> usize {
    Header::parse(response).map_or(0, |header| header.counts[1].into())
}

/// A query in metrics and log.
struct Asked<'a> {
    context: &'a PodContext,
    query: &'a Query<'a>,
    transport: Transport,
}

impl Asked<'_> {
    fn kind(&self) -> &'static str {
        self.query.question.map_or("other", |question| kind::label(question.kind))
    }

    fn labels(&self, source: Option<&Workload>) -> Labels {
        Labels::new(self.kind(), self.transport, source)
    }

    fn count(&self, source: Option<&Workload>) {
        self.context.shared.metrics.dns().requested(self.labels(source));
    }

    fn log(&self, source: Option<&Workload>, result: &str, endpoints: usize) {
        if !tracing::enabled!(target: "dns", tracing::Level::DEBUG) {
            return;
        }
        let domain = self.query.question.map_or_else(String::new, |question| name::display(question.name));
        let (workload, namespace) =
            source.map_or(("unknown", "unknown"), |source| (&source.name, &source.namespace));
        debug!(
            target: "dns",
            { src.workload = %workload, src.namespace = %namespace, query = %self.kind().to_ascii_uppercase(),
              domain = %domain, result = ?result, endpoints = endpoints },
            ""
        );
    }
}
