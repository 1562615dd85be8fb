// SPDX-License-Identifier: Apache-2.0
//! Policies that change while connections are open: whom they concern is cut within a second, on whichever path, and
//! nobody else notices.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::print_stdout, reason = "the measured times are shown")]

use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use ztunnel_core::xds::proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match,
};
use ztunnel_core::xds::proto::workload::Workload;
use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_with;
use ztunnel_tests::node::ADMIN;
use ztunnel_tests::observe::AccessEntry;
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);
/// From a change at the control plane to the end of the connections that it concerns.
const AT_ONCE: Duration = Duration::from_secs(1);
const STRICT: &str = "istio-system/istio_converted_static_strict";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("server").on("n1"))
        .pod(PodSpec::mesh("other").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::unknown("stranger").on("n2"))
}

/// An istiod that knows the pods, and signs their certificates.
fn control(mesh: &Mesh) -> Result<Istiod> {
    let istiod = Istiod::start(mesh)?;
    istiod.configure(mesh);
    istiod.certify(mesh);
    istiod.ads().update(|resources| describe::mesh(mesh, resources));
    Ok(istiod)
}

fn settled(mesh: &Mesh, istiod: &Istiod) -> Result<()> {
    istiod.ads().wait_settled(mesh.nodes().count(), SOON)
}

/// A policy of one rule with one match.
fn policy(key: &str, scope: Scope, action: Action, one: Match) -> Authorization {
    let (namespace, name) = key.split_once('/').unwrap();
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        dry_run: false,
    }
}

fn text(match_type: string_match::MatchType) -> Vec<StringMatch> {
    vec![StringMatch { match_type: Some(match_type) }]
}

fn strict(key: &str) -> Authorization {
    let nobody = Match { not_principals: text(string_match::MatchType::Presence(())), ..Match::default() };
    policy(key, Scope::WorkloadSelector, Action::Deny, nobody)
}

/// A connection in use, and whose it is.
struct Open {
    from: &'static str,
    to: SocketAddr,
    conn: Conn,
}

fn open(mesh: &Mesh, from: &'static str, to: SocketAddr) -> Result<Open> {
    let conn = mesh.pod(from).dial(to).with_context(|| format!("{from} to {to}"))?;
    let open = Open { from, to, conn };
    open.works()?;
    Ok(open)
}

impl Open {
    fn works(&self) -> Result<()> {
        let answer =
            self.conn.ask(b"still here?").with_context(|| format!("{} to {}", self.from, self.to))?;
        ensure!(answer == b"still here?", "a wrong byte from {} to {}", self.from, self.to);
        Ok(())
    }

    /// Ends with a reset: what was cut never looks complete.
    fn expect_cut(self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let conn = self.conn.patience(left);
        let mut byte = [0];
        let ended = (&conn).read(&mut byte).map_err(|error| error.kind());
        ensure!(ended == Err(ErrorKind::ConnectionReset), "{} to {}: {ended:?}", self.from, self.to);
        Ok(())
    }
}

/// Makes a change, and expects the end of these connections; the others are in use all the time.
fn cuts(change: impl FnOnce(), concerned: Vec<Open>, others: &[Open]) -> Result<Duration> {
    let started = Instant::now();
    thread::scope(|scope| {
        let in_use: Vec<_> = others
            .iter()
            .map(|open| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        open.works()?;
                        thread::sleep(Duration::from_millis(2));
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        change();
        concerned.into_iter().try_for_each(|open| open.expect_cut(started + AT_ONCE))?;
        let took = started.elapsed();
        for thread in in_use {
            thread.join().unwrap().context("somebody whom it does not concern")?;
        }
        Ok(took)
    })
}

/// Whether a new connection gets an answer.
fn gets_in(mesh: &Mesh, from: &'static str, to: SocketAddr) -> bool {
    open(mesh, from, to).is_ok()
}

/// A server in use from everywhere, while its permissions change.
struct Scene<'a> {
    mesh: &'a Mesh,
    istiod: &'a Istiod,
    to: SocketAddr,
    aside: SocketAddr,
    /// To another pod: they concern nobody.
    elsewhere: Vec<Open>,
    took: Vec<Duration>,
}

impl Scene<'_> {
    fn server(&self, change: impl FnOnce(&mut Workload)) {
        let mut described = describe::workload(self.mesh.pod("server"));
        change(&mut described);
        self.istiod.ads().update(|resources| resources.workload(&described));
    }

    fn from(&self, from: &'static str) -> Result<Open> {
        open(self.mesh, from, self.to)
    }

    /// `concerned` are cut, those to elsewhere and `others` are not.
    fn cuts(&mut self, change: impl FnOnce(&Self), concerned: Vec<Open>, others: Vec<Open>) -> Result<()> {
        let mut all = std::mem::take(&mut self.elsewhere);
        let elsewhere = all.len();
        all.extend(others);
        self.took.push(cuts(|| change(self), concerned, &all)?);
        all.truncate(elsewhere);
        self.elsewhere = all;
        settled(self.mesh, self.istiod)
    }

    /// By what policies say: of an identity, of everybody without one, of a port.
    fn policies_change(&mut self) -> Result<()> {
        let (mesh, istiod, aside) = (self.mesh, self.istiod, self.aside);
        let far = mesh.pod("far").spiffe().replace("spiffe://", "");
        let server = Address { address: bytes_of(mesh.pod("server").ip4()), length: 32 };
        let principals = text(string_match::MatchType::Exact(far));
        let by_name = Match { principals, destination_ips: vec![server], ..Match::default() };
        let denied = policy("demo/not-far", Scope::Namespace, Action::Deny, by_name);
        let publish = |_: &Self| istiod.ads().update(|all| all.policy(&denied));
        let others = vec![self.from("near")?, self.from("stranger")?];
        self.cuts(publish, vec![self.from("far")?, self.from("far")?], others)?;
        ensure!(!gets_in(mesh, "far", self.to), "a new connection of whom the policy names");
        istiod.ads().update(|all| all.remove_policy("demo/not-far"));
        // It is there already, and the pod comes to name it.
        istiod.ads().update(|all| all.policy(&strict(STRICT)));
        settled(mesh, istiod)?;
        let concerned = vec![self.from("stranger")?, open(mesh, "stranger", aside)?];
        let others = vec![self.from("near")?, self.from("far")?];
        let name_it = |this: &Self| this.server(|pod| pod.authorization_policies = vec![STRICT.to_owned()]);
        self.cuts(name_it, concerned, others)?;
        ensure!(!gets_in(mesh, "stranger", self.to), "plaintext under STRICT");
        self.server(|_| {});
        settled(mesh, istiod)?;
        let port = Match { destination_ports: vec![8081], ..Match::default() };
        let closed = policy("istio-system/port", Scope::Global, Action::Deny, port);
        let publish = |_: &Self| istiod.ads().update(|all| all.policy(&closed));
        let to_aside = |from| open(mesh, from, aside);
        let concerned = vec![to_aside("near")?, to_aside("far")?, to_aside("stranger")?];
        let others = vec![self.from("near")?, self.from("far")?, self.from("stranger")?];
        self.cuts(publish, concerned, others)
    }

    /// The pod becomes somebody else, comes back, and is gone.
    fn the_workload_changes(&mut self) -> Result<()> {
        let becomes_another = |this: &Self| this.server(|pod| pod.service_account = "other".to_owned());
        let is_removed = |this: &Self| {
            this.istiod.ads().update(|all| all.remove_address(&describe::uid("demo", "server")));
        };
        let concerned = vec![self.from("near")?, self.from("far")?, self.from("stranger")?];
        self.cuts(becomes_another, concerned, Vec::new())?;
        self.server(|_| {});
        settled(self.mesh, self.istiod)?;
        let concerned = vec![self.from("near")?, self.from("far")?, self.from("stranger")?];
        self.cuts(is_removed, concerned, Vec::new())?;
        self.server(|_| {});
        settled(self.mesh, self.istiod)
    }

    /// The list is a file, which is looked at once a second.
    fn a_certificate_is_revoked(&mut self) -> Result<()> {
        let (mesh, istiod) = (self.mesh, self.istiod);
        let mut concerned = vec![self.from("far")?];
        let near = self.from("near")?;
        let place = self.elsewhere.iter().position(|open| open.from == "far").context("to elsewhere")?;
        concerned.push(self.elsewhere.remove(place));
        let seen = istiod.ca().seen();
        let last = seen.iter().rev().find(|seen| seen.is_for(&mesh.pod("far").spiffe()));
        let serial = last.and_then(|seen| seen.serial).context("a serial number")?;
        let next = mesh.dir().join("crl.next");
        std::fs::write(&next, istiod.ca().revoke(&[serial])?)?;
        std::fs::rename(&next, mesh.dir().join("crl.pem"))?;
        let deadline = Instant::now() + AT_ONCE + Duration::from_secs(2);
        concerned.into_iter().try_for_each(|open| open.expect_cut(deadline))?;
        near.works()?;
        self.elsewhere.iter().try_for_each(Open::works)
    }

    fn is_told(&self) -> Result<()> {
        let node = self.mesh.node("n1");
        let flags = |flag: &str| -> Result<f64> {
            let labels = [("reporter", "destination"), ("response_flags", flag)];
            Ok(node.metrics()?.sum("istio_tcp_connections_closed_total", &labels))
        };
        wait::ok("the flags", SOON, || {
            let (denied, revoked) = (flags("DENY")?, flags("CERT_REVOKED")?);
            // 2 + 2 + 3 + 3 + 3 were cut, and two were not let in.
            ensure!((denied - 15.0).abs() < 0.5 && (revoked - 2.0).abs() < 0.5, "{denied} {revoked}");
            Ok(())
        })?;
        let cut = |entry: &&AccessEntry| entry.get("error") == "connection closed due to policy change";
        wait::until("thirteen lines", SOON, || node.access_log().iter().filter(cut).count() == 13)?;
        let log = node.stdout();
        for reason in [
            "explicitly denied by: demo/not-far",
            "explicitly denied by: istio-system/istio_converted_static_strict",
            "explicitly denied by: istio-system/port",
            "workload not found",
        ] {
            ensure!(log.contains(&format!("closing an open connection: {reason}")), "{reason}: {log}");
        }
        println!("from a change to the last end: {:?}", self.took);
        Ok(())
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_alters_a_verdict_ends_exactly_the_connections_that_it_concerns() {
    let prepare = |mesh: &Mesh| {
        mesh.set_env("CRL_PATH", &mesh.dir().join("crl.pem").to_string_lossy());
        control(mesh)
    };
    in_every_mode_with(mesh, prepare, |mesh, istiod| {
        let (pod, other) = (mesh.pod("server"), mesh.pod("other"));
        let _servers = [Server::echo(pod, 8080)?, Server::echo(pod, 8081)?, Server::echo(other, 8080)?];
        let elsewhere = ["near", "far", "stranger"].map(|from| open(mesh, from, other.addr(8080)));
        let elsewhere = elsewhere.into_iter().collect::<Result<_>>()?;
        let (to, aside) = (pod.addr(8080), pod.addr(8081));
        let mut scene = Scene { mesh, istiod, to, aside, elsewhere, took: Vec::new() };
        scene.policies_change()?;
        scene.the_workload_changes()?;
        scene.a_certificate_is_revoked()?;
        scene.is_told()
    })
    .unwrap();
}

fn bytes_of(ip: std::net::IpAddr) -> bytes::Bytes {
    match ip {
        std::net::IpAddr::V4(ip) => bytes::Bytes::copy_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => bytes::Bytes::copy_from_slice(&ip.octets()),
    }
}

/// An istiod that has the server name a policy which it does not send.
fn forgetful(mesh: &Mesh) -> Result<Istiod> {
    let istiod = control(mesh)?;
    let mut described = describe::workload(mesh.pod("server"));
    described.authorization_policies = vec!["demo/late".to_owned()];
    istiod.ads().update(|resources| resources.workload(&described));
    Ok(istiod)
}

/// What `n1` says of unknown policies: in the metrics, the status and the dump.
fn unknown(mesh: &Mesh, action: &str) -> Result<(f64, Vec<String>, serde_json::Value)> {
    let node = mesh.node("n1");
    let count = node.metrics()?.sum("ztunnel_authz_unknown_policy_connections_total", &[("action", action)]);
    let status = node.status()?;
    let pods = status["pods"].as_array().context("no pods in the status")?;
    let named = pods.iter().flat_map(|pod| pod["unknown_policies"].as_array().into_iter().flatten());
    let names = named.filter_map(|name| name.as_str().map(str::to_owned)).collect();
    let dump: serde_json::Value = serde_json::from_str(&node.get(ADMIN, "/config_dump")?.body)?;
    Ok((count, names, dump["unknownPolicies"].clone()))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_policy_that_has_not_arrived_is_skipped_in_plain_sight_and_enforced_when_it_comes() {
    in_every_mode_with(mesh, forgetful, |mesh, istiod| {
        let _server = Server::echo(mesh.pod("server"), 8080)?;
        let _other = Server::echo(mesh.pod("other"), 8080)?;
        let to = mesh.pod("server").addr(8080);
        let concerned =
            vec![open(mesh, "stranger", to)?, open(mesh, "stranger", to)?, open(mesh, "stranger", to)?];
        let others = [open(mesh, "near", to)?, open(mesh, "stranger", mesh.pod("other").addr(8080))?];
        let (skipped, names, dump) = unknown(mesh, "skipped")?;
        ensure!((skipped - 4.0).abs() < 0.5 && names == ["demo/late"], "{skipped} {names:?}");
        ensure!(dump == json!({ "demo/server": ["demo/late"] }), "{dump}");
        let said = mesh.node("n1").stdout().matches("skipping unknown policy demo/late").count();
        ensure!(said == 1, "said {said} times");
        cuts(|| istiod.ads().update(|all| all.policy(&strict("demo/late"))), concerned, &others)?;
        let (skipped, names, dump) = unknown(mesh, "skipped")?;
        ensure!((skipped - 4.0).abs() < 0.5 && names.is_empty() && dump == json!({}), "{names:?} {dump}");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn fail_closed_nobody_gets_in_or_stays_before_the_policy_has_arrived() {
    let build = || mesh().env("AUTHZ_UNKNOWN_POLICY", "deny");
    in_every_mode_with(build, forgetful, |mesh, istiod| {
        let server = Server::echo(mesh.pod("server"), 8080)?;
        let _other = Server::echo(mesh.pod("other"), 8080)?;
        let to = mesh.pod("server").addr(8080);
        ensure!(!gets_in(mesh, "near", to) && !gets_in(mesh, "far", to) && !gets_in(mesh, "stranger", to));
        ensure!(server.peers().is_empty(), "the application was reached");
        let (denied, names, _) = unknown(mesh, "denied")?;
        ensure!((denied - 3.0).abs() < 0.5 && names == ["demo/late"], "{denied} {names:?}");
        let refused = |entry: &&AccessEntry| {
            entry.get("error")
                == "connection closed due to policy rejection: policy is not known (yet): demo/late"
        };
        wait::until("three lines", SOON, || {
            mesh.node("n1").access_log().iter().filter(refused).count() == 3
        })?;
        // It arrives: who may, gets in; its removal takes the permission back.
        istiod.ads().update(|all| all.policy(&strict("demo/late")));
        settled(mesh, istiod)?;
        let concerned = vec![open(mesh, "near", to)?, open(mesh, "far", to)?];
        ensure!(!gets_in(mesh, "stranger", to));
        let others = [open(mesh, "stranger", mesh.pod("other").addr(8080))?];
        cuts(|| istiod.ads().update(|all| all.remove_policy("demo/late")), concerned, &others)?;
        ensure!(!gets_in(mesh, "near", to));
        Ok(())
    })
    .unwrap();
}
