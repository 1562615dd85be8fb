// SPDX-License-Identifier: Apache-2.0
//! What the fast path asks of the kernel, and how it behaved when it was tried.

use ztunnel_core::fastpath::Level;

use super::super::facts::{Bpf, Cgroup, Extent, Facts, Failure, Outcome};
use super::super::report::{Line, Need, Topic};
use super::refusal::{self, SYS_ADMIN};

/// The step whose outcome says nothing here: the doctor leaves no pin on purpose.
const PINNING: &str = "pinned";

/// One line per kernel feature.
pub(super) fn needs(facts: &Facts) -> Vec<Line> {
    let bpf = &facts.bpf;
    let line = |name, outcome: &Outcome, fix: &dyn Fn(&Failure) -> String| {
        super::line(Topic::FastPath, name, Need::FastPath, outcome, fix)
    };
    let object = if bpf.embedded {
        Ok("the programs are in this binary".to_owned())
    } else {
        Err(Failure::because("built without eBPF object"))
    };
    let config = |option: &'static str| move |_: &Failure| format!("use a kernel with {option}");
    let mut lines = vec![
        line("eBPF object", &object, &|_| "run `cargo xtask build-ebpf` before `cargo build`".to_owned()),
        line(
            "BTF",
            &bpf.btf,
            &config("CONFIG_DEBUG_INFO_BTF=y, and show its /sys/kernel/btf to the container"),
        ),
        line("bpf(2)", &bpf.syscall, &|failure| {
            let lacking = || "use a kernel with CONFIG_BPF_SYSCALL=y".to_owned();
            refusal::fix(facts.capabilities, failure, &[SYS_ADMIN], lacking)
        }),
        line("lockdown", &lockdown(bpf.lockdown.as_deref()), &|_| {
            "boot the node with lockdown=integrity or none: programs may not read kernel memory otherwise"
                .to_owned()
        }),
    ];
    // Each of them fails for the same reason if bpf(2) itself does.
    if bpf.syscall.is_ok() {
        for (name, outcome) in &bpf.types {
            lines.push(line(name, outcome, &|failure| {
                let lacking = || {
                    "use a kernel with CONFIG_CGROUP_BPF=y, CONFIG_BPF_STREAM_PARSER=y (and new enough to know this)"
                        .to_owned()
                };
                refusal::fix(facts.capabilities, failure, &[SYS_ADMIN], lacking)
            }));
        }
    }
    let (cgroup, hint) = cgroup(facts.config.fastpath.cgroup_root.is_some(), &bpf.cgroups);
    lines.push(line("cgroup v2 root", &cgroup, &|_| hint.clone()));
    lines.extend(informative(bpf));
    lines
}

fn informative(bpf: &Bpf) -> Vec<Line> {
    let line = |name, outcome: &Outcome, fix: &str| {
        super::line(Topic::FastPath, name, Need::Informative, outcome, |_| fix.to_owned())
    };
    let mut lines = Vec::new();
    match bpf.jit.as_deref().map(str::trim) {
        // Hidden from other network namespaces than the first.
        None => {}
        Some("0") => lines.push(line(
            "BPF JIT",
            &Err(Failure::because("programs are interpreted, which is slower")),
            "sysctl net.core.bpf_jit_enable=1",
        )),
        Some(_) => lines.push(line("BPF JIT", &Ok("on".to_owned()), "")),
    }
    if bpf.syscall.is_ok() {
        let alone = if bpf.foreign.is_empty() {
            Ok("no other program claims sockets".to_owned())
        } else {
            Err(Failure::because(format!("also loaded: {}", bpf.foreign.join(", "))))
        };
        let fix = "nothing: a socket that another program has claimed stays on TCP";
        lines.push(line("other sockmap users", &alone, fix));
    }
    lines
}

/// `none [integrity] confidentiality`: the active mode is in brackets. No such file: no lockdown.
fn lockdown(file: Option<&str>) -> Outcome {
    let Some(file) = file else { return Ok("not in this kernel".to_owned()) };
    let mode = file.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("unknown");
    if mode == "confidentiality" {
        Err(Failure::because("confidentiality: eBPF may not read kernel memory"))
    } else {
        Ok(mode.to_owned())
    }
}

/// Where `sock_ops` would be attached, and what to do if it would not see the pods.
fn cgroup(named: bool, cgroups: &[Cgroup]) -> (Outcome, String) {
    let node = cgroups.iter().find(|cgroup| cgroup.extent == Extent::Node);
    // The one that the loader takes: named by the operator, else the first that is mounted whole.
    let taken = if named { cgroups.first() } else { cgroups.iter().find(|cgroup| cgroup.root == "/") };
    let outcome = match taken {
        Some(Cgroup { path, extent: Extent::Node, .. }) => Ok(path.display().to_string()),
        Some(Cgroup { path, extent: Extent::Subtree, .. }) if named => {
            Ok(format!("{} by EBPF_CGROUP_ROOT: pods outside of it stay on TCP", path.display()))
        }
        Some(Cgroup { path, extent: Extent::Subtree, .. }) => {
            Err(Failure::because(format!("{} is this container's own: no pod is in it", path.display())))
        }
        Some(Cgroup { path, extent: Extent::None, .. }) => {
            Err(Failure::because(format!("{} is no cgroup v2 directory", path.display())))
        }
        None => Err(Failure::because("no cgroup v2 root in /proc/self/mountinfo")),
    };
    let hint = match node {
        Some(node) => format!("set EBPF_CGROUP_ROOT={}", node.path.display()),
        None => "give the container the node's cgroup v2 mount (hostPath /sys/fs/cgroup; on a hybrid host \
                 /sys/fs/cgroup/unified) and set EBPF_CGROUP_ROOT to where it is mounted"
            .to_owned(),
    };
    (outcome, hint)
}

/// One line per step of the fast path's self-test, and its verdict.
pub(super) fn trial(facts: &Facts) -> Vec<Line> {
    let trial = &facts.bpf.trial;
    let steps = trial.checks.iter().filter(|check| check.name != PINNING).map(|check| {
        let detail = if check.name == "kernel_layout" && check.ok { "known" } else { &check.detail };
        let outcome = if check.ok { Ok(detail.to_owned()) } else { Err(Failure::because(detail)) };
        super::line(Topic::SelfTest, check.name, Need::FastPath, &outcome, |_| remedy(check.name).to_owned())
    });
    let mut lines: Vec<Line> = steps.collect();
    let verdict = match trial.level {
        Level::Full => Ok(format!("full: {}", trial.reason)),
        level => Err(Failure::because(format!("{}: {}", super::level(level), trial.reason))),
    };
    lines.push(super::line(Topic::SelfTest, "highest level", Need::FastPath, &verdict, |_| {
        "meet what is marked `optional` above; nothing depends on it but speed".to_owned()
    }));
    lines
}

fn remedy(step: &str) -> &'static str {
    match step {
        "stage" => "the self-test needs a network namespace of its own: SYS_ADMIN and NET_ADMIN",
        "member_fionread" | "redirected_fionread" => {
            "do not name workloads in EBPF_FULL_WORKLOADS that ask for the number of unread bytes (FIONREAD)"
        }
        _ => "this kernel behaves differently: ztunnel limits itself accordingly; another kernel may pass",
    }
}
