// SPDX-License-Identifier: Apache-2.0
//! Settings, files, ports and limits.

use ztunnel_core::fastpath::Mode;

use super::super::facts::{Facts, Failure, Outcome};
use super::super::mounts;
use super::super::report::{Line, Need, Topic};
use crate::config::CaConfig;

/// Descriptors that a busy node can use: each connection takes two, a tunnel one more.
const OPEN_FILES: u64 = 65_536;

/// What the operator wrote.
pub(super) fn settings(facts: &Facts) -> Vec<Line> {
    let line = |name, need, outcome: &Outcome, fix: &str| {
        super::line(Topic::Settings, name, need, outcome, |_| fix.to_owned())
    };
    let mut lines = vec![line(
        "settings",
        Need::Required,
        &facts.settings,
        "correct this variable; the lines below assume the defaults",
    )];
    lines.push(match &facts.mesh {
        Some(outcome) => line("mesh", Need::Required, outcome, "correct the description of the mesh"),
        None => {
            let empty = Err(Failure::because("empty: every connection is passed through"));
            line("mesh", Need::Informative, &empty, "set LOCAL_XDS_PATH (or LOCAL_XDS)")
        }
    });
    let (certificates, fix) = match &facts.config.ca {
        CaConfig::Local(directory) => {
            (Ok(format!("local authority in {}, not for production", directory.display())), "")
        }
        CaConfig::Remote(remote) => (Ok(format!("from {}", remote.server.address)), ""),
    };
    lines.push(line("certificates", Need::Informative, &certificates, fix));
    let workloads = workloads(facts);
    lines.push(line(
        "fast path for",
        Need::Informative,
        &workloads,
        "name workloads with event-driven sockets in EBPF_FULL_WORKLOADS, such as `shop/cart,web/*`",
    ));
    lines
}

/// Who would take the fast path if the kernel allows it.
fn workloads(facts: &Facts) -> Outcome {
    let fastpath = &facts.config.fastpath;
    match (fastpath.mode, fastpath.full_workloads.len()) {
        (Mode::Off, _) => Ok("nobody: EBPF_FASTPATH=off".to_owned()),
        (Mode::Half | Mode::Full, _) => Ok(format!("every workload: EBPF_FASTPATH={}", fastpath.mode)),
        (Mode::Auto, 0) => {
            Err(Failure::because("nobody: EBPF_FASTPATH=auto, and EBPF_FULL_WORKLOADS names no workload"))
        }
        (Mode::Auto, patterns) => Ok(format!("workloads of {patterns} pattern(s) in EBPF_FULL_WORKLOADS")),
    }
}

/// What is around the process.
pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    let line = |name: &str, outcome: &Outcome, fix: &str| {
        super::line(Topic::Surroundings, name, Need::Informative, outcome, |_| fix.to_owned())
    };
    let host = &facts.host;
    let files = match &host.open_files {
        Ok(hard) if *hard >= OPEN_FILES => Ok(format!("up to {hard}")),
        Ok(hard) => Err(Failure::because(format!("at most {hard}: a busy node runs out of descriptors"))),
        Err(failure) => Err(failure.clone()),
    };
    let user = if host.uid == 0 {
        Ok("root".to_owned())
    } else {
        Err(Failure::because(format!("uid {}: cannot share ports with a ztunnel of another user", host.uid)))
    };
    let fix_agent = "ztunnel waits for it: is istio-cni running on this node, and is /var/run/ztunnel mounted? \
                     (INPOD_UDS)";
    let mut lines = vec![
        line("open files", &files, &format!("raise the hard limit of RLIMIT_NOFILE to {OPEN_FILES} or more")),
        line("user", &user, "runAsUser: 0, as Istio's chart has it"),
        line(
            "bpffs",
            &bpffs(facts),
            "hostPath volume /sys/fs/bpf; without it, bytes that an application has not read \
             are lost when ztunnel stops",
        ),
        line("node agent", &host.agent, fix_agent),
    ];
    for remote in &facts.control_plane {
        let fix = "ztunnel waits for it: is istiod up, and are its root and the right address in the pod? \
                   (XDS_ADDRESS, XDS_ROOT_CA, CA_ADDRESS, CA_ROOT_CA)";
        lines.push(line(remote.name, &remote.reached, fix));
        let fix =
            "mount the service account's token with audience istio-ca, as Istio's chart does (AUTH_TOKEN)";
        lines.push(line(&format!("token for {}", remote.name), &remote.token, fix));
    }
    for (port, purpose, outcome) in &host.ports {
        let name = format!("port {port}");
        let outcome = match outcome {
            Ok(_) => Ok(format!("free ({purpose})")),
            Err(failure) => Err(Failure::because(format!("{failure} ({purpose})"))),
        };
        lines.push(line(
            &name,
            &outcome,
            "nothing, if a ztunnel is running here; else stop what listens there: the port cannot be changed",
        ));
    }
    lines
}

/// Whether pins would outlive the process.
fn bpffs(facts: &Facts) -> Outcome {
    let path = &facts.config.fastpath.pin_path;
    match mounts::holding(&facts.host.mounts, path) {
        Some(mount) if mount.kind == "bpf" => Ok(format!("mounted at {}", mount.point.display())),
        Some(_) | None => Err(Failure::because(format!("{} is not on a bpffs", path.display()))),
    }
}
