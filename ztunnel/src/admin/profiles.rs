// SPDX-License-Identifier: Apache-2.0
//! `/debug/pprof`: profiles of this process, as `pprof` reads them. Source: data-plane contract, section 7.2.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use ztunnel_core::profile::{Head, Measure, Symbol, encode};

use super::http::{Body, streamed, text};
use super::query::Query;
use crate::sys::cpu_profile::CpuProfile;
use crate::sys::heap_profile::{self, INTERVAL, Switch};

const BINARY: &str = "application/octet-stream";

/// Where the CPU time goes, for the next `seconds`.
pub(super) async fn cpu(query: &Query) -> Response<Body> {
    let (seconds, frequency) =
        match (number(query, "seconds", 10, 300), number(query, "frequency", 100, 1000)) {
            (Ok(seconds), Ok(frequency)) => (seconds, frequency),
            (Err(error), _) | (_, Err(error)) => return text(StatusCode::BAD_REQUEST, error),
        };
    let (begun, clock) = (SystemTime::now(), Instant::now());
    let profile = match CpuProfile::start(frequency) {
        Ok(profile) => profile,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    // Whoever goes away meanwhile drops this, and ends the profile.
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let samples = profile.finish();
    let period = i64::from(1_000_000_000 / frequency);
    let cpu = Measure { kind: "cpu", unit: "nanoseconds" };
    let head = Head {
        measures: vec![Measure { kind: "samples", unit: "count" }, cpu],
        period: (cpu, period),
        time_nanos: nanos(begun.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: nanos(clock.elapsed()),
        comment: format!("{} samples, {} lost", samples.stacks.len(), samples.lost),
    };
    let stacks = samples.stacks.into_iter().map(move |stack| (stack, vec![1, period]));
    written(head, stacks)
}

fn number(query: &Query, name: &str, default: u32, most: u32) -> Result<u32, String> {
    match query.get(name).map(str::parse) {
        None => Ok(default),
        Some(Ok(number)) if (1..=most).contains(&number) => Ok(number),
        Some(_) => Err(format!("invalid {name} value; expected 1-{most}\n")),
    }
}

/// What is allocated and not free, of what was allocated since profiling is on.
pub(super) fn heap() -> Response<Body> {
    let Some(live) = heap_profile::live() else {
        let hint = "heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true\n";
        return text(StatusCode::INTERNAL_SERVER_ERROR, hint);
    };
    let space = Measure { kind: "inuse_space", unit: "bytes" };
    let head = Head {
        measures: vec![Measure { kind: "inuse_objects", unit: "count" }, space],
        period: (Measure { kind: "space", unit: "bytes" }, i64::try_from(INTERVAL).unwrap_or(i64::MAX)),
        time_nanos: nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: 0,
        comment: "allocations since profiling was activated that are not free".to_owned(),
    };
    let stacks = live.into_iter().map(|sample| {
        let (count, bytes) = sample.weight();
        #[expect(clippy::cast_possible_truncation, reason = "an estimate")]
        (sample.stack, vec![count.round() as i64, bytes.round() as i64])
    });
    written(head, stacks)
}

/// Switches the heap profile.
pub(super) fn switch(query: &Query) -> Response<Body> {
    match query.get("activate") {
        Some("true") => heap_profile::switch(Switch::On),
        Some("false") => heap_profile::switch(Switch::Off),
        _ => return text(StatusCode::BAD_REQUEST, "expected activate=true or activate=false\n"),
    }
    text(StatusCode::OK, format!("heap profiling active: {}\n", heap_profile::is_on()))
}

/// Names are looked up, and the answer is made, on a thread of its own: it reads the debug information of this binary.
fn written(
    head: Head,
    samples: impl Iterator<Item = (Vec<usize>, Vec<i64>)> + Send + 'static,
) -> Response<Body> {
    streamed(BINARY, move |mut chunks| {
        let profile = encode(&head, samples, symbols);
        // What was read to find names is large, and seldom wanted again.
        backtrace::clear_symbol_cache();
        chunks.write_all(&profile)?;
        chunks.flush()
    })
}

fn symbols(address: usize) -> Vec<Symbol> {
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        found.push(Symbol {
            name: symbol.name().map(|name| format!("{name:#}")).unwrap_or_default(),
            file: symbol.filename().map(|file| file.display().to_string()).unwrap_or_default(),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    found
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
