// SPDX-License-Identifier: Apache-2.0
//! 15020: every family, in order, compressed if the client asks for it.
//!
//! The answer is made on a thread of its own while the client reads it. Source: data-plane contract, section 6.1.

use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, VARY};
use http::{HeaderMap, HeaderValue, Response};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use ztunnel_core::report::families;

use super::Doors;
use super::encoding::Encoding;
use super::http::{Body, Chunks, streamed};
use crate::certs::store::State;
use crate::telemetry::metrics::exposition::Exposition;
use crate::telemetry::{process, standing};
use crate::tls::revocation::Usage;

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// What a compressor is given at a time, in bytes.
const PIECE: usize = 32 << 10;

/// The same text whatever the client accepts; only its name differs.
pub(super) fn answer(doors: Doors, headers: &HeaderMap) -> Response<Body> {
    let accepts = |header, wanted: &str| {
        headers.get_all(header).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(wanted)))
    };
    let kind = if accepts(ACCEPT, "application/openmetrics-text") { OPEN_METRICS } else { TEXT };
    let offered = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let encoding = Encoding::choose(offered);
    let mut response = streamed(kind, move |chunks| compressed(&doors, encoding, chunks));
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if let Some(name) = encoding.name() {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    response
}

fn compressed(doors: &Doors, encoding: Encoding, chunks: Chunks) -> io::Result<()> {
    // Label sets repeat themselves: the fastest level finds nearly as much as the best. A compressor takes its input
    // in large pieces: each call costs as much as a few lines.
    let fast = Compression::fast();
    let mut chunks = match encoding {
        Encoding::Identity => write(doors, chunks)?,
        Encoding::Gzip => write(doors, BufWriter::with_capacity(PIECE, GzEncoder::new(chunks, fast)))?
            .into_inner()?
            .finish()?,
        Encoding::Deflate => write(doors, BufWriter::with_capacity(PIECE, ZlibEncoder::new(chunks, fast)))?
            .into_inner()?
            .finish()?,
    };
    chunks.flush()
}

/// Writes every family to `out`.
fn write<W: Write>(doors: &Doors, out: W) -> io::Result<W> {
    let mut out = Exposition::new(out);
    process_families(&mut out)?;
    runtime(doors, &mut out)?;
    out.named(&families::BUILD, [(["ztunnel", &doors.tag], 1)])?;
    doors.shared.metrics.expose_istio(&mut out)?;
    if let Some(revocations) = &doors.shared.certs.tls().revocations {
        let rejections = [("source", Usage::Server), ("destination", Usage::Client)]
            .map(|(reporter, usage)| ([reporter], revocations.rejections(usage)));
        out.family(&families::REVOKED, rejections)?;
    }
    doors.shared.metrics.expose_pods(&mut out)?;
    node(doors, &mut out)?;
    doors.shared.metrics.expose_own(&mut out)?;
    fastpath(doors, &mut out)?;
    out.end()
}

fn process_families(out: &mut Exposition<impl Write>) -> io::Result<()> {
    // What the kernel does not say is left out.
    out.family(&families::OPEN_FDS, process::open_fds().ok().map(|count| ([], count)))?;
    out.family(&families::MAX_FDS, process::max_fds().ok().map(|count| ([], count)))?;
    out.family(&families::RESIDENT, process::resident().ok().map(|bytes| ([], bytes)))?;
    out.family(&families::CPU, process::cpu().ok().map(|time| ([], time.as_secs_f64())))
}

/// The runtimes of the workers: each is a runtime of its own.
fn runtime(doors: &Doors, out: &mut Exposition<impl Write>) -> io::Result<()> {
    let workers: Vec<_> = doors.pods.runtimes().iter().map(|runtime| runtime.metrics()).collect();
    let each = || workers.iter().enumerate().map(|(index, metrics)| (index.to_string(), metrics));
    out.value(&families::TOKIO_WORKERS, workers.len())?;
    out.value(&families::TOKIO_TASKS, doors.pods.busy())?;
    let queued: usize = workers.iter().map(|metrics| metrics.global_queue_depth()).sum();
    out.value(&families::TOKIO_QUEUE, queued)?;
    let busy = each().map(|(index, metrics)| ([index], metrics.worker_total_busy_duration(0).as_secs_f64()));
    out.named(&families::TOKIO_BUSY, busy)?;
    let parks = each().map(|(index, metrics)| ([index], metrics.worker_park_count(0)));
    out.named(&families::TOKIO_PARKS, parks)?;
    let unparks = each().map(|(index, metrics)| ([index], metrics.worker_park_unpark_count(0)));
    out.named(&families::TOKIO_PARK_UNPARKS, unparks)
}

/// Readiness and certificates.
fn node(doors: &Doors, out: &mut Exposition<impl Write>) -> io::Result<()> {
    let pending = doors.readiness.pending();
    out.value(&families::READY, u8::from(pending.is_empty()))?;
    out.family(&families::WAITING, pending.into_iter().map(|task| ([task], 1)))?;
    let sessions = [("xds", &doors.shared.standings.xds), ("zds", &doors.shared.standings.agent)]
        .map(|(name, standing)| (name, standing.look().state))
        .into_iter()
        // What is not wanted is not missed.
        .filter(|(_, state)| *state != standing::State::Idle)
        .map(|(name, state)| ([name], u8::from(state == standing::State::Connected)));
    out.family(&families::SESSIONS, sessions)?;
    let (mut states, mut first) = ([("available", 0), ("initializing", 0), ("unavailable", 0)], None::<u64>);
    for (_, state) in doors.shared.certs.all() {
        let index = match &state {
            State::Available(certificate) => {
                let end = certificate.key.cert.first().and_then(|leaf| not_after(leaf));
                first = first.into_iter().chain(end).min();
                0
            }
            State::Initializing => 1,
            State::Unavailable(_) => 2,
        };
        states[index].1 += 1;
    }
    out.family(&families::CERTIFICATES, states.map(|(state, count)| ([state], count)))?;
    out.family(&families::EXPIRY, first.map(|seconds| ([], seconds)))?;
    let unknown = doors.shared.unknown_policies.counts();
    out.family(&families::UNKNOWN_POLICY, [(["skipped"], unknown.skipped), (["denied"], unknown.denied)])
}

/// Seconds since 1970.
fn not_after(leaf: &[u8]) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

fn fastpath(doors: &Doors, out: &mut Exposition<impl Write>) -> io::Result<()> {
    let status = doors.shared.fastpath.status();
    let (traffic, maps) = (&status.fastpath, doors.shared.fastpath.maps());
    out.value(&families::EBPF_ENABLED, u8::from(status.mode.on))?;
    out.value(&families::EBPF_CONNECTIONS, traffic.paired)?;
    let passed = traffic.passed.values().sum();
    out.family(&families::EBPF_MESSAGES, [(["ebpf"], traffic.redirected_messages), (["tcp"], passed)])?;
    out.family(
        &families::EBPF_BYTES,
        [(["ebpf"], traffic.redirected_bytes), (["tcp"], traffic.passed_bytes)],
    )?;
    let connections = traffic.not_paired.iter().map(|(reason, count)| (["connection", reason], *count));
    let messages = traffic.passed.iter().map(|(reason, count)| (["message", reason], *count));
    out.family(&families::EBPF_FALLBACK, connections.chain(messages))?;
    out.value(&families::EBPF_LEFT, traffic.left)?;
    out.family(&families::EBPF_MAP_ENTRIES, maps.iter().map(|map| ([map.name], map.entries)))?;
    out.family(&families::EBPF_MAP_MAX, maps.iter().map(|map| ([map.name], map.max_entries)))?;
    out.value(&families::EBPF_ERRORS, doors.shared.fastpath.load_errors())
}
