// SPDX-License-Identifier: Apache-2.0
//! One scenario, every mode of the fast path: bytes, metrics and log lines must not depend on it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::mesh::{Mesh, MeshBuilder};
use crate::wait;

/// `EBPF_FASTPATH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Userspace only.
    Off,
    /// Application to ztunnel in the kernel.
    Half,
    /// Both directions in the kernel.
    Full,
    /// The product decides.
    Auto,
}

impl Mode {
    /// The modes that a scenario runs in.
    pub const EVERY: [Self; 3] = [Self::Off, Self::Half, Self::Full];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Half => "half",
            Self::Full => "full",
            Self::Auto => "auto",
        })
    }
}

/// What a run left in metrics and logs, node by node, without what differs from run to run.
type Evidence = BTreeMap<String, Vec<String>>;

/// Runs `scenario` on a fresh mesh in every mode, and compares metrics and access logs of the runs.
///
/// # Errors
/// A run failed, a mode is not in effect, or the modes differ.
pub fn in_every_mode(build: impl Fn() -> MeshBuilder, scenario: impl Fn(&Mesh) -> Result<()>) -> Result<()> {
    in_every_mode_with(build, |_| Ok(()), |mesh, ()| scenario(mesh))
}

/// The same with something that `prepare` makes before the ztunnels start, such as a control plane.
///
/// # Errors
/// A run failed, a mode is not in effect, or the modes differ.
pub fn in_every_mode_with<T>(
    build: impl Fn() -> MeshBuilder,
    prepare: impl Fn(&Mesh) -> Result<T>,
    scenario: impl Fn(&Mesh, &T) -> Result<()>,
) -> Result<()> {
    let mut first: Option<Evidence> = None;
    each(build, prepare, |mesh, prepared| {
        scenario(mesh, prepared)?;
        let found = evidence(mesh)?;
        first.as_ref().map_or(Ok(()), |expected| compare(expected, &found))?;
        first.get_or_insert(found);
        Ok(())
    })
}

/// The same for scenarios whose byte counts depend on timing, such as resets: only the scenario's own checks count.
///
/// # Errors
/// A run failed, or a mode is not in effect.
pub fn in_every_mode_alone(
    build: impl Fn() -> MeshBuilder,
    scenario: impl Fn(&Mesh) -> Result<()>,
) -> Result<()> {
    each(build, |_| Ok(()), |mesh, ()| scenario(mesh))
}

/// As [`in_every_mode_with`], where only the scenario's own checks count.
///
/// # Errors
/// A run failed, or a mode is not in effect.
pub fn in_every_mode_alone_with<T>(
    build: impl Fn() -> MeshBuilder,
    prepare: impl Fn(&Mesh) -> Result<T>,
    scenario: impl Fn(&Mesh, &T) -> Result<()>,
) -> Result<()> {
    each(build, prepare, scenario)
}

fn each<T>(
    build: impl Fn() -> MeshBuilder,
    prepare: impl Fn(&Mesh) -> Result<T>,
    mut scenario: impl FnMut(&Mesh, &T) -> Result<()>,
) -> Result<()> {
    // Before a namespace is made: without a binary there is nothing to do.
    crate::ztunnel_binary()?;
    for mode in chosen(&Mode::EVERY)? {
        let context = || format!("with EBPF_FASTPATH={mode}");
        let mesh = build().mode(mode).build().with_context(context)?;
        let prepared = prepare(&mesh).with_context(context)?;
        let result =
            mesh.launch().and_then(|()| in_effect(&mesh, mode)).and_then(|()| scenario(&mesh, &prepared));
        if let Err(error) = result {
            mesh.print_logs();
            return Err(error.context(context()));
        }
        drop(prepared);
        mesh.stop().with_context(context)?;
    }
    Ok(())
}

/// These modes, or those of them that `ZTUNNEL_TESTS_MODES` names (`off,half`), which is said aloud.
///
/// # Errors
/// It names none of them.
#[expect(clippy::print_stderr, reason = "a test that runs less than all of it says so")]
pub fn chosen(modes: &[Mode]) -> Result<Vec<Mode>> {
    let Some(names) = std::env::var_os("ZTUNNEL_TESTS_MODES") else { return Ok(modes.to_vec()) };
    let names = names.to_string_lossy().into_owned();
    eprintln!("NOT in every mode: ZTUNNEL_TESTS_MODES={names}");
    let is_named = |mode: &&Mode| names.split(',').any(|name| name.trim() == mode.to_string());
    let chosen: Vec<Mode> = modes.iter().filter(is_named).copied().collect();
    let all: Vec<String> = modes.iter().map(Mode::to_string).collect();
    anyhow::ensure!(!chosen.is_empty(), "ZTUNNEL_TESTS_MODES={names} names none of {}", all.join(", "));
    Ok(chosen)
}

/// A mode that the product could not bring up must not look like one that works.
///
/// # Errors
/// The product says that another mode is in effect, with its reason.
pub fn in_effect(mesh: &Mesh, mode: Mode) -> Result<()> {
    for node in mesh.nodes() {
        let status = node.status().with_context(|| format!("status of {}", node.name()))?;
        let effective =
            status.pointer("/mode/effective").and_then(serde_json::Value::as_str).unwrap_or("nothing");
        if mode != Mode::Auto && effective != mode.to_string() {
            let reason =
                status.pointer("/mode/reason").and_then(serde_json::Value::as_str).unwrap_or("none given");
            bail!("{}: the fast path is `{effective}`, not `{mode}`: {reason}", node.name());
        }
    }
    Ok(())
}

/// Ends every ztunnel of the mesh: a log line may be a moment behind what it tells about, and is there afterwards.
#[expect(clippy::cast_precision_loss, reason = "a handful of connections")]
fn evidence(mesh: &Mesh) -> Result<Evidence> {
    let mut evidence = Evidence::new();
    for node in mesh.nodes() {
        wait::until("every connection to be closed, and logged", Duration::from_secs(10), || {
            let logged =
                node.access_log().iter().filter(|entry| entry.message == "connection complete").count();
            node.metrics().is_ok_and(|metrics| {
                let closed = metrics.sum("istio_tcp_connections_closed_total", &[]);
                metrics.open_connections().abs() < 0.5 && (closed - logged as f64).abs() < 0.5
            })
        })?;
        evidence.insert(format!("metrics of {}", node.name()), node.metrics()?.tcp());
    }
    for node in mesh.nodes() {
        node.terminate()?;
        let mut lines: Vec<String> = node.access_log().iter().map(|entry| entry.steady()).collect();
        lines.sort();
        evidence.insert(format!("access log of {}", node.name()), lines);
    }
    Ok(evidence)
}

fn compare(expected: &Evidence, found: &Evidence) -> Result<()> {
    for (what, expected) in expected {
        let found = found.get(what).map_or(&[][..], Vec::as_slice);
        if expected == found {
            continue;
        }
        let missing = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}"));
        let extra = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}"));
        let difference: Vec<String> = missing.chain(extra).collect();
        bail!("{what} differ from those of the first mode:\n{}", difference.join("\n"));
    }
    Ok(())
}
