// SPDX-License-Identifier: Apache-2.0
//! Applications that use blocking sockets, splice, MSG_WAITALL, MSG_PEEK and FIONREAD must not notice ztunnel: not
//! without the fast path, not with the default settings, and not where it only carries what they send.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::launch::Launch;
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::traffic::stream::{self, Sides};
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, Mode, PodSpec, modes, times, wait};

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

/// Modes in which no application may be harmed.
const HARMLESS: [Mode; 3] = [Mode::Off, Mode::Auto, Mode::Half];

fn mesh(mode: Mode) -> MeshBuilder {
    Mesh::builder()
        .mode(mode)
        .env("EBPF_FULL_WORKLOADS", "")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .pod(PodSpec::mesh("far").on("n2"))
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// Compiles the C programs into the mesh's folder.
fn sockets(mesh: &Mesh) -> Result<String> {
    let binary = mesh.dir().join("sockets");
    let args = ["-O2", "-Wall", "-Werror", "-pthread", "-o"];
    let output = Command::new("gcc").args(args).arg(&binary).arg(program("sockets.c")).output();
    let output = output.context("start gcc")?;
    ensure!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(binary.display().to_string())
}

fn succeeds(what: &str, launch: Launch) -> Result<Output> {
    let output = launch.output().with_context(|| format!("start {what}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}: {said}", output.status);
    Ok(output)
}

/// Counts what it gets and answers the count at the end.
fn count(conn: &Conn) -> Result<()> {
    let (mut conn, mut buffer, mut total) = (conn, vec![0; 1 << 16], 0_u64);
    loop {
        match conn.read(&mut buffer)? {
            0 => return Ok(conn.write_all(&total.to_le_bytes())?),
            length => total += length as u64,
        }
    }
}

/// One HTTP upload: reads the body by its length and answers with that number.
fn http_upload(conn: &Conn) -> Result<()> {
    let mut reader = BufReader::new(conn);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "an early end of the headers");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let copied = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let body = copied.to_string();
    let mut writer = conn;
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    Ok(())
}

/// Runs in every mode in which nothing may be harmed; every single run counts.
fn unharmed(scenario: impl Fn(&Mesh) -> Result<()>) -> Result<()> {
    for mode in HARMLESS {
        let mesh = mesh(mode).start()?;
        modes::in_effect(&mesh, mode)?;
        for run in 0..times("ZTUNNEL_TESTS_HARM_RUNS", 3) {
            scenario(&mesh).with_context(|| format!("EBPF_FASTPATH={mode}, run {run}"))?;
        }
        mesh.stop()?;
    }
    Ok(())
}

fn upload_bytes() -> u64 {
    times("ZTUNNEL_TESTS_UPLOAD_MIB", 64) << 20
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn blocking_uploads_of_python_c_and_curl_get_their_answer() {
    unharmed(|mesh| {
        let (near, client) = (mesh.pod("near"), mesh.pod("client"));
        let total = upload_bytes().to_string();
        let ip = near.ip4().to_string();
        let server = Server::start(near, 8080, |conn| count(&conn))?;
        let c = sockets(mesh)?;
        succeeds("the C upload", client.command(&c).args(["upload", &ip, "8080", &total]))?;
        let python = program("upload.py").display().to_string();
        succeeds(
            "the python upload",
            client.command("python3").args([python.as_str(), &ip, "8080", &total]),
        )?;
        server.expect_finished(2, LONG)?;
        let http = Server::start(near, 8081, |conn| http_upload(&conn))?;
        let file = mesh.dir().join("upload");
        std::fs::File::create(&file)?.set_len(upload_bytes())?;
        let url = format!("http://{ip}:8081/");
        let curl =
            client.command("curl").args(["-sS", "-m", "60", "-H", "Expect:", "-T"]).arg(&file).arg(&url);
        let output = succeeds("curl", curl)?;
        ensure!(output.stdout == total.as_bytes(), "curl got {:?}", String::from_utf8_lossy(&output.stdout));
        http.expect_finished(1, LONG)
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn unusual_ways_of_receiving_give_the_same_bytes() {
    unharmed(|mesh| {
        let c = sockets(mesh)?;
        for name in ["near", "far"] {
            let server = Server::echo(mesh.pod(name), 8080)?;
            let ip = mesh.pod(name).ip4().to_string();
            // A kernel property that no program can mend: FIONREAD of a socket in a sockmap counts redirected bytes only.
            let fionread = (mesh.mode() != Mode::Half).then_some("fionread");
            let ways: Vec<&str> = ["waitall", "peek"].into_iter().chain(fionread).collect();
            for way in &ways {
                let launch = mesh.pod("client").command(&c).args([*way, &ip, "8080", "200"]);
                succeeds(way, launch).with_context(|| format!("towards {name}"))?;
            }
            server.expect_finished(ways.len(), SOON)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_proxy_that_splices_loses_nothing() {
    unharmed(|mesh| {
        let near = mesh.pod("near");
        let c = sockets(mesh)?;
        let mut proxy = near.command(&c).args(["splice", "9000", "8080"]).spawn()?;
        let sides = Sides::client(41, 8 << 20, 8 << 20 | 1);
        let server = Server::start(near, 8080, move |conn| stream::duplex(&conn, sides.reversed()))?;
        let conn =
            wait::ok("the proxy to listen", SOON, || Ok(near.connect(([127, 0, 0, 1], 9000).into())?))?;
        drop(conn);
        let result = stream::duplex(&mesh.pod("client").dial(near.addr(9000))?, sides);
        proxy.kill()?;
        proxy.wait()?;
        drop(server);
        result
    })
    .unwrap();
}
