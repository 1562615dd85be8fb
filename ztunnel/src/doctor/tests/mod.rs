// SPDX-License-Identifier: Apache-2.0
//! Facts in, report out; and one look at the machine that runs the tests.

mod fastpath;

use ztunnel_core::fastpath::Level;

use super::facts::{Bpf, Cgroup, Extent, Facts, Failure, Family, Host, Outcome, Remote, Sockets, Trial};
use super::judge::report;
use super::report::{Line, Need, Report};
use super::{examine, mounts};
use crate::config::Config;
use crate::fastpath::Check;

const SYS_ADMIN: u64 = 1 << 21;
const NET_ADMIN: u64 = 1 << 12;

fn ok() -> Outcome {
    Ok("seen".into())
}

fn errno(errno: i32) -> Outcome {
    Err(std::io::Error::from_raw_os_error(errno).into())
}

fn cgroup(path: &str, root: &str, extent: Extent) -> Cgroup {
    Cgroup { path: path.into(), root: root.into(), extent }
}

fn config(variables: &[(&str, &str)]) -> Config {
    Config::from_env(&variables).unwrap()
}

/// A machine on which everything works.
fn healthy() -> Facts {
    let family = Family { transparent: ok(), freebind: ok(), original_dst: ok() };
    Facts {
        kernel: "6.18.0".into(),
        capabilities: Some(SYS_ADMIN | NET_ADMIN),
        config: config(&[("EBPF_FULL_WORKLOADS", "shop/cart"), ("FAKE_CA", "true")]),
        settings: ok(),
        mesh: Some(ok()),
        sockets: Sockets {
            setns: ok(),
            mark: ok(),
            reuse_port: ok(),
            netns_cookie: ok(),
            v4: family.clone(),
            v6: Ok(family),
        },
        bpf: Bpf {
            embedded: true,
            btf: ok(),
            syscall: ok(),
            types: vec![("program sock_ops", ok()), ("map sockhash", ok())],
            lockdown: Some("none [integrity] confidentiality\n".into()),
            jit: Some("1\n".into()),
            cgroups: vec![cgroup("/sys/fs/cgroup", "/", Extent::Node)],
            foreign: vec![],
            trial: Trial {
                level: Level::Full,
                reason: "self-test passed".into(),
                checks: vec![
                    Check { name: "pinned", ok: true, detail: "no".into() },
                    Check { name: "switch", ok: true, detail: "switches".into() },
                ],
            },
        },
        control_plane: vec![Remote { name: "istiod", reached: ok(), token: ok() }],
        host: Host {
            open_files: Ok(1 << 20),
            uid: 0,
            mounts: mounts::parse("1 0 0:1 / /sys/fs/bpf rw - bpf bpf rw"),
            agent: ok(),
            ports: vec![(15000, "admin", ok())],
        },
    }
}

fn changed(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = healthy();
    change(&mut facts);
    report(&facts)
}

fn line<'a>(report: &'a Report, name: &str) -> &'a Line {
    report.needs.iter().find(|line| line.name == name).unwrap_or_else(|| panic!("no line {name}:\n{report}"))
}

fn without_fast_path(facts: &mut Facts, reason: &str) {
    facts.bpf.trial = Trial { level: Level::Off, reason: reason.into(), checks: vec![] };
}

#[test]
fn where_everything_works_every_line_is_ok_and_none_has_a_fix() {
    let report = report(&healthy());
    assert!(report.needs.iter().all(|line| line.met && line.fix.is_none()), "{report}");
    assert_eq!((report.summary.as_str(), report.exit_code()), ("ztunnel runs here, with fast path", 0));
    assert!(report.needs.iter().all(|line| line.name != "pinned"), "the scratch pin says nothing");
}

#[test]
fn each_required_need_alone_makes_the_exit_code_1_and_is_named_in_the_summary() {
    type Change = fn(&mut Facts);
    let changes: [(&str, Change); 9] = [
        ("settings", |facts| facts.settings = Err(Failure::because("PACKET_MARK=\"x\""))),
        ("mesh", |facts| facts.mesh = Some(Err(Failure::because("line 3")))),
        ("setns", |facts| facts.sockets.setns = errno(libc::EPERM)),
        ("SO_MARK", |facts| facts.sockets.mark = errno(libc::EPERM)),
        ("SO_REUSEPORT", |facts| facts.sockets.reuse_port = errno(libc::ENOPROTOOPT)),
        ("IP_TRANSPARENT", |facts| facts.sockets.v4.transparent = errno(libc::EPERM)),
        ("IP_FREEBIND", |facts| facts.sockets.v4.freebind = errno(libc::ENOPROTOOPT)),
        ("SO_ORIGINAL_DST", |facts| facts.sockets.v4.original_dst = errno(libc::ENOPROTOOPT)),
        ("IPV6_TRANSPARENT", |facts| {
            facts.sockets.v6.as_mut().unwrap().transparent = errno(libc::EPERM);
        }),
    ];
    for (name, change) in changes {
        let report = changed(change);
        assert_eq!(report.exit_code(), 1, "{name}");
        assert_eq!(line(&report, name).mark(), "MISSING");
        assert!(line(&report, name).fix.is_some());
        assert_eq!(report.summary, format!("ztunnel does not work here: missing {name}"));
    }
}

#[test]
fn settings_decide_what_is_required() {
    let report = changed(|facts| {
        facts.config =
            config(&[("PACKET_MARK", "0"), ("ENABLE_ORIG_SRC", "false"), ("IPV6_ENABLED", "false")]);
        facts.sockets.mark = errno(libc::EPERM);
        facts.sockets.v4.transparent = errno(libc::EPERM);
        facts.sockets.v6.as_mut().unwrap().transparent = errno(libc::EPERM);
    });
    assert_eq!(report.exit_code(), 0, "{report}");
    assert_eq!(line(&report, "SO_MARK").mark(), "note");
    assert_eq!(line(&report, "IP_TRANSPARENT").mark(), "note");
    assert!(report.needs.iter().all(|line| line.name != "IPV6_TRANSPARENT"));

    let report = changed(|facts| facts.config = config(&[("EBPF_FASTPATH", "off")]));
    assert_eq!(
        report.summary,
        "ztunnel runs here, without fast path: EBPF_FASTPATH=off (this machine allows: full)"
    );
}

#[test]
fn no_ipv6_is_a_note_and_nothing_is_asked_of_it() {
    let report = changed(|facts| facts.sockets.v6 = Err(Failure::because("Address family not supported")));
    assert_eq!(report.exit_code(), 0);
    assert_eq!(line(&report, "IPv6").mark(), "note");
    assert!(report.needs.iter().all(|line| !line.name.starts_with("IPV6_")));
}

#[test]
fn a_fix_tells_a_missing_capability_from_another_hand() {
    let refused = changed(|facts| {
        facts.capabilities = Some(0);
        facts.sockets.setns = errno(libc::EPERM);
    });
    let fix = line(&refused, "setns").fix.clone();
    assert_eq!(fix.as_deref(), Some("add SYS_ADMIN to securityContext.capabilities.add"));
    let elsewhere = changed(|facts| facts.bpf.syscall = errno(libc::EPERM));
    assert!(line(&elsewhere, "bpf(2)").fix.as_ref().unwrap().contains("seccomp"));
    let unknown = changed(|facts| facts.sockets.v4.original_dst = errno(libc::ENOPROTOOPT));
    assert!(line(&unknown, "SO_ORIGINAL_DST").fix.as_ref().unwrap().contains("nf_conntrack"));
}

#[test]
fn what_is_only_good_to_know_never_fails() {
    let report = changed(|facts| {
        facts.mesh = None;
        facts.config = config(&[]);
        facts.bpf.jit = Some("0".into());
        facts.bpf.foreign = vec!["cil_redir".into()];
        facts.host.open_files = Ok(1024);
        facts.host.uid = 1000;
        facts.host.mounts.clear();
        facts.host.agent = Err(Failure::because("not there"));
        facts.host.ports = vec![(15000, "admin", errno(libc::EADDRINUSE))];
    });
    assert_eq!(report.exit_code(), 0);
    let notes: Vec<&str> =
        report.needs.iter().filter(|line| !line.met).map(|line| line.name.as_str()).collect();
    let expected = [
        "mesh",
        "fast path for",
        "BPF JIT",
        "other sockmap users",
        "open files",
        "user",
        "bpffs",
        "node agent",
        "port 15000",
    ];
    assert_eq!(notes, expected);
    assert!(report.needs.iter().filter(|line| !line.met).all(|line| line.need == Need::Informative));
}

#[test]
fn the_text_form_is_columns_with_the_fix_below_and_the_summary_last() {
    let report = changed(|facts| {
        facts.capabilities = Some(0);
        facts.sockets.mark = errno(libc::EPERM);
    });
    let text = report.to_string();
    assert!(
        text.contains(
            "\n  MISSING   SO_MARK               Operation not permitted (os error 1)\
             \n            fix: add NET_ADMIN or NET_RAW to securityContext.capabilities.add\n"
        ),
        "{text}"
    );
    assert!(text.contains("\n  ok        setns                 seen\n"), "{text}");
    assert!(text.ends_with("\n\nztunnel does not work here: missing SO_MARK\n"), "{text}");
}

#[test]
fn the_json_form_has_the_same_facts() {
    let report = changed(|facts| facts.bpf.embedded = false);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["exit_code"], 0);
    let needs = json["needs"].as_array().unwrap();
    let object = needs.iter().find(|need| need["name"] == "eBPF object").unwrap();
    assert_eq!(object["need"], "fast_path");
    assert_eq!(object["met"], false);
    assert_eq!(object["topic"], "fast path");
    assert!(object["fix"].as_str().unwrap().contains("build-ebpf"));
    assert!(needs[0].get("fix").is_none());
}

/// Works with any privilege: a probe that is refused is a line, not a failure.

#[test]
fn this_machine_can_be_examined() {
    let env: &[(&str, &str)] = &[("INPOD_UDS", "/nonexistent/agent.sock"), ("LOCAL_XDS", "no: mesh")];
    let report = examine(&env);
    assert_eq!(line(&report, "settings").mark(), "ok");
    assert_eq!(line(&report, "mesh").mark(), "MISSING");
    assert_eq!(line(&report, "SO_REUSEPORT").mark(), "ok");
    assert!(line(&report, "node agent").detail.starts_with("/nonexistent/agent.sock: "));
    assert!(line(&report, "CA").detail.contains("no roots of trust"), "{}", line(&report, "CA").detail);
    assert!(line(&report, "token for CA").fix.as_ref().unwrap().contains("AUTH_TOKEN"));
    assert_eq!(report.exit_code(), 1);
    let report = examine(&([("PACKET_MARK", "many")].as_slice()));
    assert!(line(&report, "settings").detail.contains("PACKET_MARK"));
}
