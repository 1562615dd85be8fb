// SPDX-License-Identifier: Apache-2.0
//! Upstream's own scenarios, as far as no other file has them: one echo between every pair of ends, what is refused
//! before it does harm, and certificates that come and go with their pods. docs/compatibility.md has the list.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::modes::in_every_mode_alone;
use ztunnel_tests::node::ADMIN;
use ztunnel_tests::observe::Metrics;
use ztunnel_tests::peer::{Answer, Authority, Peer, connect_request};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Node, Pod, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(15);
const HELLO: &[u8] = b"hello world";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
        .pod(PodSpec::plain("plain").on("n2"))
}

/// Answers eleven bytes with twenty-two: what goes one way cannot pass for what goes the other.
fn doubling(pod: &Pod) -> Result<Server> {
    Server::start(pod, 8080, |conn| {
        let mut hello = [0; HELLO.len()];
        (&conn).read_exact(&mut hello)?;
        (&conn).write_all(&[hello, hello].concat())?;
        ensure!(conn.ends_within(SOON), "the client does not close");
        Ok(())
    })
}

/// What a node counts between two workloads, by reporter: opened, closed, received, sent.
fn counted(metrics: &Metrics, reporter: &str, ends: (&str, &str)) -> [f64; 4] {
    let labels = [("reporter", reporter), ("source_workload", ends.0), ("destination_workload", ends.1)];
    ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"]
        .map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels))
}

/// Waits until the node counts exactly this.
fn counts(node: &Node, reporter: &str, ends: (&str, &str), expected: [f64; 4]) -> Result<()> {
    wait::ok(&format!("{reporter} of {ends:?} on {}", node.name()), SOON, || {
        let found = counted(&node.metrics()?, reporter, ends);
        ensure!(found.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 0.5), "{found:?}");
        Ok(())
    })
}

/// Waits for the one line of the access log that has these fields.
fn logged(node: &Node, fields: &[(&str, &str)]) -> Result<()> {
    wait::ok(&format!("a line on {}", node.name()), SOON, || {
        let lines = node.access_log();
        let found = lines.iter().filter(|entry| entry.is(fields)).count();
        ensure!(found == 1, "{found} lines with {fields:?} in {lines:#?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_echo_is_counted_and_logged_alike_between_every_pair_of_ends() {
    in_every_mode(mesh, |mesh| {
        let _servers = ["near", "far", "plain"].map(|name| doubling(mesh.pod(name)));
        for (from, to) in [("client", "near"), ("client", "far"), ("client", "plain"), ("plain", "near")] {
            let (source, destination) = (mesh.pod(from), mesh.pod(to));
            let conn = source.dial(destination.addr(8080))?;
            (&conn).write_all(HELLO)?;
            let mut answer = [0; 2 * HELLO.len()];
            (&conn).read_exact(&mut answer)?;
            ensure!(answer == *[HELLO, HELLO].concat(), "{from} to {to}: another answer");
            drop(conn);
            let tunnel = from != "plain" && to != "plain";
            let (ours, theirs) =
                if tunnel { (source.spiffe(), destination.spiffe()) } else { <_>::default() };
            let ends = [
                ("src.workload", from),
                ("src.namespace", "demo"),
                ("src.identity", ours.as_str()),
                ("dst.workload", to),
                ("dst.namespace", "demo"),
                ("dst.identity", theirs.as_str()),
                ("error", ""),
            ];
            let expected = [1.0, 1.0, 11.0, 22.0];
            if from != "plain" {
                let node = mesh.node(source.node_name());
                counts(node, "source", (from, to), expected)?;
                let bytes = [("direction", "outbound"), ("bytes_sent", "11"), ("bytes_recv", "22")];
                logged(node, &[&ends[..], &bytes].concat())?;
            }
            if to != "plain" {
                let node = mesh.node(destination.node_name());
                counts(node, "destination", (from, to), expected)?;
                let bytes = [("direction", "inbound"), ("bytes_sent", "22"), ("bytes_recv", "11")];
                logged(node, &[&ends[..], &bytes].concat())?;
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_client_of_another_trust_domain_is_reset() {
    let build = || mesh().pod(PodSpec::mesh("foreigner").on("n1").trust_domain("other.domain"));
    // Alone: with TLS 1.3 the refusal meets what the client sends already, and the client's own log has one or the other.
    in_every_mode_alone(build, |mesh| {
        for name in ["near", "far"] {
            let pod = mesh.pod(name);
            let server = Server::echo(pod, 8080)?;
            let answer = mesh.pod("foreigner").dial(pod.addr(8080)).and_then(|conn| conn.ask(HELLO));
            let Err(error) = answer else { bail!("{name} answered") };
            ensure!(error.kind() == ErrorKind::ConnectionReset, "{name}: {error}");
            ensure!(server.peers().is_empty(), "{name}: the application was reached");
            let own = pod.addr(15008).to_string();
            let node = mesh.node(pod.node_name());
            wait::ok("the refusal in the log", SOON, || {
                let lines = node.access_log();
                let refused = lines
                    .iter()
                    .find(|line| line.message == "connection failed" && line.get("dst.addr") == own);
                let error = refused.context("no line")?.get("error").to_owned();
                ensure!(
                    error.starts_with("tls handshake error: ") && error.contains("other.domain"),
                    "{error}"
                );
                Ok(())
            })?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_request_for_another_pod_and_one_that_no_policy_allows_are_answered_and_logged_by_the_letter() {
    const POLICY: &str = "name: nobody\nnamespace: demo\nscope: WorkloadSelector\naction: Allow\ndryRun: false\nrules:\n\
                          - - - principals: [!Exact cluster.local/ns/demo/sa/somebody-else]";
    let build = || mesh().pod(PodSpec::mesh("closed").on("n1").selected_by("demo/nobody")).policy(POLICY);
    in_every_mode(build, |mesh| {
        let (open, closed, stranger) = (mesh.pod("near"), mesh.pod("closed"), mesh.pod("plain"));
        let credentials = Authority::open(&mesh.ca_dir())?.issue(&stranger.spiffe())?;
        let ask = |to: &Pod, authority: SocketAddr| {
            let peer = Peer::connect(stranger, to.addr(15008), Some(&credentials))?;
            peer.request(connect_request(&authority.to_string())?)
        };
        let mismatch = format!("ip mismatch: {} != {}", open.ip4(), closed.ip4());
        let rejection = "connection closed due to policy rejection: allow policies exist, but none allowed";
        for (to, authority, status, error) in
            [(open, closed.addr(8080), 400, mismatch.as_str()), (closed, closed.addr(8080), 401, rejection)]
        {
            ensure!(ask(to, authority)? == Answer::Status(status), "{error}");
            let own = to.addr(15008).to_string();
            logged(mesh.node("n1"), &[("direction", "inbound"), ("dst.addr", &own), ("error", error)])?;
        }
        let denied = [("reporter", "destination"), ("response_flags", "DENY")];
        let denied = mesh.node("n1").metrics()?.sum("istio_tcp_connections_closed_total", &denied);
        ensure!(
            (denied - 1.0).abs() < 0.5,
            "{denied}: a denial counts, a request that names nobody does not"
        );
        Ok(())
    })
    .unwrap();
}

/// The certificates that a node has, by identity and state, with their serial numbers.
fn certificates(node: &Node) -> Result<Vec<(String, String, String)>> {
    let dump: Value = serde_json::from_str(&node.get(ADMIN, "/config_dump")?.body)?;
    let all = dump["certificates"].as_array().context("certificates")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(all
        .iter()
        .map(|one| (text(&one["identity"]), text(&one["state"]), text(&one["certChain"][0]["serialNumber"])))
        .collect())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_certificate_is_there_before_the_traffic_and_gone_with_the_last_pod_of_its_identity() -> Result<()> {
    let mesh = Mesh::builder()
        .pod(PodSpec::mesh("one").service_account("shared").not_enrolled())
        .pod(PodSpec::mesh("two").service_account("shared").not_enrolled())
        .pod(PodSpec::mesh("three").not_enrolled())
        .ztunnels_in_the_mesh(&[])
        .start()?;
    let node = mesh.node("n1");
    let own = "spiffe://cluster.local/ns/istio-system/sa/ztunnel".to_owned();
    let holds = |expected: &[&str]| {
        let mut expected: Vec<String> = expected.iter().map(|&name| mesh.pod(name).spiffe()).collect();
        expected.push(own.clone());
        expected.sort();
        wait::ok("the certificates", SOON, || {
            let found = certificates(node)?;
            let names: Vec<_> = found.iter().map(|(identity, ..)| identity.clone()).collect();
            ensure!(names == expected && found.iter().all(|(_, state, _)| state == "Available"), "{found:?}");
            Ok(found)
        })
    };
    let add = |name: &str| node.agent().add(mesh.pod(name).enrolled());
    let delete = |name: &str| node.agent().delete(&mesh.pod(name).uid());
    holds(&[])?;
    add("one")?;
    let first = holds(&["one"])?;
    add("two")?;
    add("three")?;
    let all = holds(&["one", "three"])?;
    ensure!(first.iter().all(|one| all.contains(one)), "fetched again: {first:?} {all:?}");
    delete("one")?;
    ensure!(holds(&["two", "three"])? == all, "kept for the other pod that has it");
    delete("three")?;
    holds(&["two"])?;
    delete("two")?;
    holds(&[])?;
    mesh.stop()
}
