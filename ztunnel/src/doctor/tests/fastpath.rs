// SPDX-License-Identifier: Apache-2.0
//! What is said about the fast path, and that its absence never fails the node.

use ztunnel_core::fastpath::Level;

use super::super::facts::Extent;
use super::{cgroup, changed, config, errno, line, without_fast_path};
use crate::fastpath::Check;

#[test]
fn a_missing_fast_path_need_is_optional_and_the_summary_says_why() {
    let report = changed(|facts| {
        facts.bpf.btf = errno(libc::ENOENT);
        without_fast_path(facts, "cannot read /sys/kernel/btf/vmlinux");
    });
    assert_eq!(report.exit_code(), 0);
    assert_eq!(line(&report, "BTF").mark(), "optional");
    assert_eq!(
        report.summary,
        "ztunnel runs here, without fast path: cannot read /sys/kernel/btf/vmlinux (see BTF, highest level)"
    );
}

#[test]
fn half_is_said_as_such() {
    let report = changed(|facts| {
        facts.bpf.trial.level = Level::Half;
        facts.bpf.trial.reason = "half at most: redirected_peek (no)".into();
        facts.bpf.trial.checks.push(Check { name: "redirected_peek", ok: false, detail: "no".into() });
    });
    assert_eq!(report.exit_code(), 0);
    assert_eq!(line(&report, "redirected_peek").mark(), "optional");
    assert!(report.summary.contains("from applications only"), "{}", report.summary);
}

#[test]
fn a_fast_path_that_nobody_may_use_is_not_promised() {
    let report = changed(|facts| facts.config = config(&[]));
    assert!(report.summary.ends_with("names no workload for it"), "{}", report.summary);
    let report = changed(|facts| facts.config = config(&[("EBPF_FASTPATH", "full")]));
    assert_eq!(report.summary, "ztunnel runs here, with fast path");
}

#[test]
fn types_are_not_listed_where_bpf_itself_is_refused() {
    let report = changed(|facts| facts.bpf.syscall = errno(libc::EPERM));
    assert!(
        report.needs.iter().all(|line| line.name != "map sockhash" && line.name != "other sockmap users")
    );
}

#[test]
fn the_cgroup_must_be_the_nodes_unless_the_operator_says_otherwise() {
    let own = || cgroup("/sys/fs/cgroup", "/", Extent::Subtree);
    let node = || cgroup("/host/cgroup", "/../../..", Extent::Node);
    let named = |extent| cgroup("/named", "", extent);
    for (root, cgroups, mark, hint) in [
        (None, vec![], "optional", Some("hostPath")),
        (None, vec![own()], "optional", Some("hostPath")),
        (None, vec![own(), node()], "optional", Some("EBPF_CGROUP_ROOT=/host/cgroup")),
        (None, vec![node()], "optional", Some("EBPF_CGROUP_ROOT=/host/cgroup")),
        (Some("/named"), vec![named(Extent::Node)], "ok", None),
        (Some("/named"), vec![named(Extent::Subtree)], "ok", None),
        (Some("/named"), vec![named(Extent::None)], "optional", Some("hostPath")),
    ] {
        let shown = format!("{root:?} {cgroups:?}");
        let report = changed(|facts| {
            facts.config.fastpath.cgroup_root = root.map(Into::into);
            facts.bpf.cgroups = cgroups;
        });
        let line = line(&report, "cgroup v2 root");
        assert_eq!(line.mark(), mark, "{shown}");
        let fix = line.fix.clone().unwrap_or_default();
        assert!(
            fix.contains(hint.unwrap_or_default()) && hint.is_some() == line.fix.is_some(),
            "{shown}: {fix}"
        );
    }
}

#[test]
fn a_fast_path_that_does_not_reach_the_pods_is_not_promised() {
    let report = changed(|facts| facts.bpf.cgroups = vec![cgroup("/sys/fs/cgroup", "/", Extent::Subtree)]);
    assert_eq!(report.exit_code(), 0);
    assert_eq!(
        report.summary,
        "ztunnel runs here; the fast path works, but not for pods: see cgroup v2 root"
    );
}

#[test]
fn lockdown_matters_in_its_strictest_form_only() {
    for (file, mark) in [
        (None, "ok"),
        (Some("[none] integrity confidentiality\n"), "ok"),
        (Some("none [integrity] confidentiality\n"), "ok"),
        (Some("none integrity [confidentiality]\n"), "optional"),
        (Some("gibberish"), "ok"),
    ] {
        let report = changed(|facts| facts.bpf.lockdown = file.map(str::to_owned));
        assert_eq!(line(&report, "lockdown").mark(), mark, "{file:?}");
    }
}
