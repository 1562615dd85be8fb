// SPDX-License-Identifier: Apache-2.0
//! What people see of a node: the page in a real browser, and the command line against a running node.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztunnel_tests::browser::Browser;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::node::{ADMIN, Node};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, Mode, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(20);
const PAGE: &str = "http://127.0.0.1:15000/";
/// A namespace that would be a script, if anything took it for markup.
const MARKUP: &str = "<img src=x onerror=document.title=666>";
/// Open connections that the page must bear.
const MANY: usize = 1000;

fn mesh() -> MeshBuilder {
    let policy = "name: no-strangers\nnamespace: demo\nscope: WorkloadSelector\naction: Deny\ndryRun: false\n\
                  rules:\n- - - principals: [!Exact cluster.local/ns/demo/sa/stranger]";
    Mesh::builder()
        .pod(PodSpec::mesh("server").on("n1").selected_by("demo/no-strangers"))
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("stranger").on("n2"))
        .policy(policy)
}

/// What the program says: its code and its output.
fn ztunnel(node: &Node, args: &[&str]) -> Result<(i32, String)> {
    let output = node.ztunnel(args.iter().copied())?.output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code().unwrap_or(-1), text.into_owned()))
}

/// The same, if it did what it was asked for.
fn say(node: &Node, args: &[&str]) -> Result<String> {
    let (code, text) = ztunnel(node, args)?;
    ensure!(code == 0, "ztunnel {}: code {code}: {text}", args.join(" "));
    Ok(text)
}

fn has(text: &str, parts: &[&str]) -> Result<()> {
    parts.iter().try_for_each(|part| {
        ensure!(text.contains(part), "`{part}` is not in:\n{text}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_pod_whose_requests_fail_leads_to_the_policy_on_page_and_command_line() {
    in_every_mode(mesh, |mesh| {
        let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
        let server = Server::echo(mesh.pod("server"), 8080)?;
        let address = mesh.pod("server").addr(8080);
        let conn = mesh.pod("client").dial(address)?;
        for _ in 0..10 {
            ensure!(conn.ask(b"hello")? == b"hello");
        }
        let denied = mesh.pod("stranger").dial(address).and_then(|conn| conn.ask(b"hello"));
        ensure!(denied.is_err(), "the policy let it in");

        // From the pod that complains, on its own node, and from the pod that it complains about.
        let at_source = wait::ok("the refusal at the source", SOON, || {
            let text = say(n2, &["denials", "--pod", "demo/stranger"])?;
            has(&text, &["401", "policy:  demo/no-strangers"])?;
            Ok(text)
        })?;
        has(&at_source, &["demo/stranger -> demo/server", "/sa/stranger", "/sa/server"])?;
        let text = say(n1, &["denials", "--pod", "demo/server"])?;
        has(&text, &["explicitly denied by: demo/no-strangers", "/sa/stranger", "/sa/server"])?;
        has(&say(n1, &["denials", "--pod", "demo/client"])?, &["no request"])?;
        commands(mesh)?;
        look(mesh)?;
        for (node, name, args) in [
            (n2, "denials-source", &["denials", "--pod", "demo/stranger"][..]),
            (n1, "denials", &["denials", "--pod", "demo/server"]),
            (n1, "status", &["status"]),
            (n1, "connections", &["connections"]),
            (n1, "top", &["top", "--once"]),
        ] {
            keep(mesh, &format!("{name}.txt"), say(node, args)?.as_bytes())?;
        }
        drop((conn, server));
        Ok(())
    })
    .unwrap();
}

/// Every command, against a node with an open connection and a refusal.
fn commands(mesh: &Mesh) -> Result<()> {
    let n1 = mesh.node("n1");
    let (code, text) = ztunnel(n1, &["status", "--check"])?;
    ensure!(code == 2, "code {code}: {text}");
    ensure!(text.starts_with("PROBLEM  "), "{text}");
    has(&text, &["refused", "demo/server", "demo/client", "control plane:", "node agent:    connected"])?;
    let path = if mesh.mode() == Mode::Off { "tcp" } else { "ebpf" };
    let list = |args: &[&str]| -> Result<Value> {
        let args = [&["connections", "-o", "json"], args].concat();
        serde_json::from_str(&say(n1, &args)?).context("JSON")
    };
    let all = list(&["--path", path])?;
    ensure!(all["total"] == 2, "the two halves of one connection: {all:#}");
    for row in all["connections"].as_array().into_iter().flatten() {
        ensure!(
            row["source"]["name"] == "demo/client" && row["destination"]["name"] == "demo/server",
            "{row:#}"
        );
        // "hello" ten times, and its echo.
        ensure!(row["sent"].as_u64() > Some(0) && row["received"].as_u64() > Some(0), "{row:#}");
        ensure!((row["redirected"].as_u64() > Some(0)) == (mesh.mode() != Mode::Off), "{row:#}");
    }
    ensure!(list(&["--pod", "demo/client", "--peer", "sa/server"])?["total"] == 1);
    ensure!(list(&["--peer", "nobody"])?["total"] == 0);
    has(&say(n1, &["connections", "-o", "yaml"])?, &["total: 2"])?;
    has(&say(n1, &["certs"])?, &["spiffe://cluster.local/ns/demo/sa/server", "available"])?;
    has(&say(n1, &["top", "--once", "--interval", "1"])?, &["demo/client", "TO OPEN"])?;
    if mesh.mode() == Mode::Full {
        say(n1, &["accel", "off", "--pod", "demo/client"])?;
        let client = || -> Result<Value> {
            let status = n1.status()?;
            let pods = status["pods"].as_array().into_iter().flatten();
            pods.into_iter().find(|pod| pod["name"] == "client").cloned().context("the client")
        };
        ensure!(client()?["on"] == false);
        say(n1, &["accel", "on", "--pod", "demo/client"])?;
        ensure!(client()?["on"] == true);
    }
    for wrong in [&["accel", "off", "--pod", "demo/nobody"][..], &["--admin-port", "9", "status"]] {
        let (code, text) = ztunnel(n1, wrong)?;
        ensure!(code == 1 && text.starts_with("ztunnel: "), "code {code}: {text}");
    }
    Ok(())
}

/// The page, on a desk and on a phone, by day and by night.
fn look(mesh: &Mesh) -> Result<()> {
    let mut browser = Browser::start(mesh.node("n1"), &mesh.dir().join("browser"))?;
    for (width, height, scheme, name) in [(1280, 1000, "light", "page"), (390, 1500, "dark", "page-phone")] {
        browser.resize(width, height, scheme)?;
        browser.open(PAGE)?;
        wait::ok("what the page shows", SOON, || {
            let text = browser.text()?;
            has(&text, &["demo/server", "demo/client", "refused", "demo/no-strangers"])?;
            // The connection's two halves, with rates from the second look on.
            has(&text, &[" B/s", "outbound HBONE", "inbound HBONE", "15008"])?;
            has(&text, &[if mesh.mode() == Mode::Off { "mode_off" } else { "ebpf" }])
        })?;
        let fits = browser.evaluate("document.documentElement.scrollWidth <= innerWidth")?;
        ensure!(
            fits == true,
            "wider than {width}: {}",
            browser.evaluate("document.documentElement.scrollWidth")?
        );
        keep(mesh, &format!("{name}.png"), &browser.picture()?)?;
    }
    Ok(())
}

/// For docs/guide.md, where somebody asks for it.
fn keep(mesh: &Mesh, name: &str, what: &[u8]) -> Result<()> {
    if let (Some(folder), Mode::Full) = (std::env::var_os("ZTUNNEL_TESTS_PICTURES"), mesh.mode()) {
        std::fs::write(Path::new(&folder).join(name), what)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn names_are_never_markup_and_a_thousand_connections_are_not_too_many() {
    let mesh = Mesh::builder()
        .mode(Mode::Off)
        // One node: the socket is in the folder that all nodes run in.
        .env("ADMIN_SOCKET", "admin.sock")
        .pod(PodSpec::mesh("server"))
        .pod(PodSpec::mesh("client"))
        .pod(PodSpec::mesh("evil").namespace(MARKUP).service_account("evil"))
        .start()
        .unwrap();
    let result = names_and_numbers(&mesh);
    if result.is_err() {
        mesh.print_logs();
    }
    result.unwrap();
    mesh.stop().unwrap();
}

fn names_and_numbers(mesh: &Mesh) -> Result<()> {
    let node = mesh.nodes().next().context("a node")?;
    let server = Server::echo(mesh.pod("server"), 8080)?;
    let to = mesh.pod("server").addr(8080);
    let open: Vec<_> = (0..MANY).map(|_| mesh.pod("client").connect(to)).collect::<std::io::Result<_>>()?;
    let named = format!("{MARKUP}/evil");
    wait::ok("all connections", SOON, || {
        let all: Value = serde_json::from_str(&node.get(ADMIN, "/connections?limit=10")?.body)?;
        ensure!(
            all["total"] == 2 * MANY && all["connections"].as_array().is_some_and(|rows| rows.len() == 10),
            "{all}"
        );
        Ok(())
    })?;
    let mut browser = Browser::start(node, &mesh.dir().join("browser"))?;
    browser.resize(390, 1000, "light")?;
    browser.open(PAGE)?;
    wait::ok("the page with everything", SOON, || {
        has(&browser.text()?, &[&named, &format!("The 200 of {}", 2 * MANY), " B/s"])
    })?;
    ensure!(browser.evaluate("document.title")? == "ztunnel", "a name was run as a script");
    ensure!(browser.evaluate("document.images.length")? == 0, "a name became an element");
    // Should the script ever fail at it, nothing runs anyway.
    browser.evaluate("document.body.innerHTML += '<img src=x onerror=document.title=666>'; 0")?;
    let settled = "new Promise(done => { const i = document.images[0]; \
                   if (i.complete) done(1); else i.addEventListener('error', () => done(1)); })";
    browser.evaluate(settled)?;
    ensure!(browser.evaluate("document.title")? == "ztunnel", "the policy lets markup run");
    drop(browser);

    // Through the socket, which is what the settings say.
    has(&say(node, &["status", "--pod", &named])?, &[&named])?;
    has(&say(node, &["connections", "--limit", "5"])?, &[&format!("5 of {}", 2 * MANY)])?;
    let archive = mesh.dir().join("report.tar.gz");
    let file = archive.to_string_lossy();
    say(node, &["bugreport", "--file", &file])?;
    let (code, text) = ztunnel(node, &["bugreport", "--file", &file])?;
    ensure!(code == 1 && text.contains("choose another"), "an archive was overwritten: {text}");
    let unpacked = node.command("tar").args(["-xzOf", &file]).output()?;
    let text = String::from_utf8_lossy(&unpacked.stdout);
    has(&text, &["istio_build", "demo/client", "Linux version", "spiffe://cluster.local/ns/demo/sa/server"])?;
    ensure!(!text.contains("PRIVATE KEY"), "a key is in the archive");
    drop((open, server));
    Ok(())
}
