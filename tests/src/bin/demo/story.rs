// SPDX-License-Identifier: Apache-2.0
//! What is shown of a round of traffic: who fetched what, what the wire carried, which path each connection took.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use ztunnel_tests::observe::AccessEntry;
use ztunnel_tests::observe::sniffer::{Capture, Sniffer};

use crate::paper::{Cell, Paper, Tone};
use crate::scene::{FILE, SECRET, Scene};
use crate::timing::figure;

/// The port on which ztunnels talk to each other.
const HBONE: u16 = 15008;

/// Who asks whom for what, and whether the mesh lets it.
const FETCHES: &[(&str, &str, &str, bool)] = &[
    ("client", "near", "/", true),
    ("client", "far", "/", true),
    ("client", "near", "/file", true),
    ("client", "far", "/file", true),
    ("guest", "near", "/", false),
];

/// Sends traffic of real programs, and tells what happened to it.
pub(crate) fn round(scene: &Scene, paper: Paper) -> Result<()> {
    let logged: BTreeMap<String, usize> =
        scene.mesh.nodes().map(|node| (node.name().to_owned(), node.access_log().len())).collect();
    let counters: BTreeMap<String, Counters> = scene
        .mesh
        .nodes()
        .map(|node| Ok((node.name().to_owned(), Counters::read(&node.status()?))))
        .collect::<Result<_>>()?;
    let sniffer = Sniffer::start(scene.mesh.wire(), SECRET.as_bytes())?;
    fetch(scene, paper)?;
    let load = scene.load("client", "far", &["rr", "--conns", "4", "--size", "1024"], 0.5)?;
    if load.errors > 0 {
        bail!("the load generator saw {} errors: {:?}", load.errors, load.error_texts);
    }
    paper.say(&format!(
        "load: {} requests of 1 KiB on 4 connections, client to far; every byte checked, none wrong",
        load.ops_total
    ));
    sniffer.wait_for_packets()?;
    wire(paper, &sniffer.stop())?;
    paths(scene, paper, &logged)?;
    counted(scene, paper, &counters)
}

fn fetch(scene: &Scene, paper: Paper) -> Result<()> {
    let mut rows = vec![["from", "to", "curl", "status", "bytes", "ms", ""].map(Cell::text).to_vec()];
    for (from, to, path, allowed) in FETCHES {
        paper.progress(&format!("curl from {from} to {to}{path}"));
        let fetched = scene.curl(from, to, path)?;
        let as_it_should = if *allowed {
            fetched.status == 200 && (*path == "/" || fetched.bytes == FILE)
        } else {
            fetched.status == 0
        };
        let remark = match (allowed, as_it_should) {
            (true, true) => Cell::text(""),
            (false, true) => Cell::text("refused, as policy demo/no-guests says").tone(Tone::Good),
            _ => Cell::text(format!("not as it should be: {}", fetched.complaint)).tone(Tone::Bad),
        };
        rows.push(vec![
            Cell::text(*from),
            Cell::text(*to),
            Cell::text(*path),
            Cell::text(if fetched.status == 0 { "-".to_owned() } else { fetched.status.to_string() }),
            Cell::number(fetched.bytes.to_string()),
            Cell::number(figure(fetched.seconds * 1000.0)),
            remark,
        ]);
        if !as_it_should {
            paper.end_progress();
            paper.table(&rows);
            bail!(
                "{from} to {to}{path}: status {}, {} bytes: {}",
                fetched.status,
                fetched.bytes,
                fetched.complaint
            );
        }
    }
    paper.end_progress();
    paper.table(&rows);
    Ok(())
}

/// Says what crossed between the nodes; anything but TLS on 15008 is the end of the demo.
fn wire(paper: Paper, capture: &Capture) -> Result<()> {
    let tunnel = capture.bytes_with_port(HBONE);
    let total: u64 = capture.flows.values().map(|seen| seen.bytes).sum();
    let is_hbone =
        |flow: &ztunnel_tests::observe::sniffer::Flow| flow.from.port() == HBONE || flow.to.port() == HBONE;
    // Content types of TLS records: 20 to 23, then the version's first byte.
    let is_tls = |head: &[u8]| matches!(head, [20..=23, 3, ..]);
    let odd: Vec<_> =
        capture.flows.iter().filter(|(flow, seen)| !is_hbone(flow) || !is_tls(&seen.head)).collect();
    paper.say(&format!(
        "wire between the nodes: {} flows, {} KiB, of which {} KiB on port {HBONE}",
        capture.flows.len(),
        total / 1024,
        tunnel / 1024
    ));
    if let Some((flow, seen)) = odd.first() {
        bail!("{} -> {} on the wire is not TLS on {HBONE}: {:02x?}", flow.from, flow.to, seen.head);
    }
    if !capture.sightings.is_empty() || tunnel == 0 {
        bail!("plain text was seen between the nodes, or nothing at all was");
    }
    paper.say(&format!(
        "  {}: TLS in every flow, and the pages' text in none",
        paper.tone("nothing in the clear", Tone::Good)
    ));
    Ok(())
}

/// Groups the access log lines of this round by connection and path.
fn paths(scene: &Scene, paper: Paper, before: &BTreeMap<String, usize>) -> Result<()> {
    let mut groups: BTreeMap<[String; 6], (u64, u64)> = BTreeMap::new();
    ztunnel_tests::wait::until("the access log", Duration::from_secs(5), || {
        scene.mesh.nodes().all(|node| node.access_log().len() > before.get(node.name()).copied().unwrap_or(0))
    })?;
    for node in scene.mesh.nodes() {
        let skip = before.get(node.name()).copied().unwrap_or(0);
        for entry in node.access_log().iter().skip(skip) {
            let key = [
                node.name().to_owned(),
                format!("{} -> {}", entry.get("src.workload"), entry.get("dst.workload")),
                entry.get("direction").to_owned(),
                if entry.get("error").is_empty() { "ok".to_owned() } else { "refused".to_owned() },
                or(entry.get("path"), "-"),
                or(entry.get("path.reason"), ""),
            ];
            let group = groups.entry(key).or_default();
            group.0 += 1;
            group.1 += bytes(entry);
        }
    }
    let head = ["node", "connection", "direction", "end", "path", "because", "count", "KiB"];
    let mut rows = vec![head.map(Cell::text).to_vec()];
    for (key, (count, bytes)) in groups {
        let fast = key[4] == "ebpf";
        let mut row: Vec<Cell> = key.into_iter().map(Cell::text).collect();
        if let (true, Some(cell)) = (fast, row.get_mut(4)) {
            *cell = cell.clone().tone(Tone::Good);
        }
        row.push(Cell::number(count.to_string()));
        row.push(Cell::number((bytes / 1024).to_string()));
        rows.push(row);
    }
    println!();
    paper.say("Access log of the two ztunnels, by the path each connection took:");
    paper.table(&rows);
    Ok(())
}

fn or(text: &str, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text.to_owned() }
}

fn bytes(entry: &AccessEntry) -> u64 {
    ["bytes_sent", "bytes_recv"].iter().filter_map(|name| entry.number(name)).sum()
}

/// What the kernel counted on one node.
struct Counters {
    paired: u64,
    messages: u64,
    bytes: u64,
    passed: BTreeMap<String, u64>,
}

impl Counters {
    fn read(status: &Value) -> Self {
        let fastpath = &status["fastpath"];
        let number = |key: &str| fastpath[key].as_u64().unwrap_or(0);
        let passed = fastpath["passed"].as_object().into_iter().flatten();
        Self {
            paired: number("paired"),
            messages: number("redirected_messages"),
            bytes: number("redirected_bytes"),
            passed: passed.map(|(reason, count)| (reason.clone(), count.as_u64().unwrap_or(0))).collect(),
        }
    }
}

/// One line per node from its `/status`: the mode, and what the kernel counted in this round.
fn counted(scene: &Scene, paper: Paper, before: &BTreeMap<String, Counters>) -> Result<()> {
    println!();
    paper.say("What the kernel counted meanwhile, from /status:");
    for node in scene.mesh.nodes() {
        let status = node.status().with_context(|| format!("status of {}", node.name()))?;
        let (now, Some(then)) = (Counters::read(&status), before.get(node.name())) else { continue };
        let mut passed: Vec<(&String, u64)> = now
            .passed
            .iter()
            .map(|(reason, count)| {
                (reason, count - then.passed.get(reason).copied().unwrap_or(0).min(*count))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        passed.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let passed: Vec<String> = passed.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let by_tcp = if passed.is_empty() { "none".to_owned() } else { passed.join(", ") };
        paper.say(&format!(
            "  {}  {}: {} pairs, {} messages ({} KiB) redirected; by TCP: {by_tcp}",
            node.name(),
            mode(&status),
            now.paired.saturating_sub(then.paired),
            now.messages.saturating_sub(then.messages),
            now.bytes.saturating_sub(then.bytes) / 1024,
        ));
    }
    Ok(())
}

fn mode(status: &Value) -> String {
    let mode = &status["mode"];
    let effective = mode["effective"].as_str().unwrap_or("unknown");
    let switched = if mode["on"] == false && effective != "off" { ", switched off" } else { "" };
    format!("{effective}{switched}")
}

/// Why the fast path is what it is, node by node.
pub(crate) fn reasons(scene: &Scene, paper: Paper) -> Result<()> {
    for node in scene.mesh.nodes() {
        let status = node.status().with_context(|| format!("status of {}", node.name()))?;
        let reason = status["mode"]["reason"].as_str().unwrap_or("no reason given");
        paper.say(&format!("{}: fast path {}: {reason}", node.name(), mode(&status)));
    }
    Ok(())
}
