// SPDX-License-Identifier: Apache-2.0
//! SOCKS5 in a pod: the application says where it wants to go, and gets there as if it had been redirected.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::mesh::MeshBuilder;
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::{Conn, Server};
use ztunnel_tests::{Mesh, PodSpec, in_every_mode, wait};

const SOON: Duration = Duration::from_secs(15);
const SERVICE: &str = "server.demo.svc.cluster.local";

fn mesh() -> MeshBuilder {
    Mesh::builder()
        .env("UNSTABLE_ENABLE_SOCKS5", "true")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("server").on("n2").service(SERVICE, 80, 8080))
        .pod(PodSpec::unknown("stranger").on("n2"))
        .pod(PodSpec::unknown("resolver").on("n2"))
        .dns(&["resolver"])
}

fn dial(mesh: &Mesh) -> Result<TcpStream> {
    let stream = mesh.pod("client").connect("127.0.0.1:15080".parse()?)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// The handshake for one target; the reply's code.
fn ask_for(mesh: &Mesh, target: &[u8]) -> Result<(u8, TcpStream)> {
    let mut stream = dial(mesh)?;
    stream.write_all(b"\x05\x01\x00")?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen)?;
    ensure!(chosen == [5, 0], "{chosen:?}");
    stream.write_all(&[b"\x05\x01\x00", target].concat())?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).context("no reply")?;
    ensure!(reply[0] == 5 && reply[2..] == [0, 1, 0, 0, 0, 0, 0, 0], "{reply:?}");
    Ok((reply[1], stream))
}

fn host(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap_or_default();
    [&[3, length][..], name.as_bytes(), &port.to_be_bytes()].concat()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn addresses_and_names_lead_where_redirection_would() {
    in_every_mode(mesh, |mesh| {
        let _resolver = Resolver::start(mesh.pod("resolver"))?;
        let (server, stranger) = (mesh.pod("server"), mesh.pod("stranger"));
        let echo = [Server::echo(server, 8080)?, Server::echo(stranger, 8080)?];
        let port = 8080_u16.to_be_bytes();
        let v4 = |ip: std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => [&[1][..], &ip.octets(), &port].concat(),
            std::net::IpAddr::V6(ip) => [&[4][..], &ip.octets(), &port].concat(),
        };
        let targets = [
            v4(server.ip4()),
            v4(server.ip6()),
            v4(stranger.ip4()),
            host(SERVICE, 80),
            host("server", 80),
            host(&server.ip4().to_string(), 8080),
        ];
        for target in &targets {
            let (code, stream) = ask_for(mesh, target)?;
            ensure!(code == 0, "{target:?}: reply {code}");
            let answer = Conn::new(stream)?.ask(b"through the mesh")?;
            ensure!(answer == b"through the mesh", "{target:?}: {answer:?}");
        }
        ensure!(echo[0].peers().len() == 5 && echo[1].peers().len() == 1);
        let tunneled = [("reporter", "source"), ("connection_security_policy", "mutual_tls")];
        let opened = mesh.node("n1").metrics()?.sum("istio_tcp_connections_opened_total", &tunneled);
        ensure!((opened - 5.0).abs() < 0.5, "{opened} tunneled, not 5");
        let url = format!("http://{SERVICE}/");
        let output = mesh.pod("client").command("curl").args([
            "-sS",
            "--max-time",
            "10",
            "--http0.9",
            "--socks5-hostname",
        ]);
        let output = output.args(["127.0.0.1:15080", &url]).output()?;
        // The server sends the request back, which is no HTTP: all that counts is that it came.
        ensure!(output.stdout.starts_with(b"GET / HTTP"), "curl: {output:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_refusal_is_told_and_nobody_is_waited_for() {
    let mesh = mesh().start().unwrap();
    let _resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    for (what, target, expected) in [
        ("a loop", b"\x01\x7f\x00\x00\x01\x3a\xe8".to_vec(), 2),
        ("a loop to wherever this is", b"\x01\0\0\0\0\x3a\xe8".to_vec(), 2),
        ("a loop in disguise", b"\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x01\x3a\xe8".to_vec(), 2),
        ("a loop by name", host("127.0.0.1", 15080), 2),
        ("a name that does not exist", host("nx.example", 80), 4),
        ("a name whose resolver fails", host("fail.example", 80), 4),
        ("another kind of address", vec![9], 8),
    ] {
        let (code, mut stream) = ask_for(&mesh, &target).unwrap();
        assert_eq!(code, expected, "{what}");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "{what}: the connection goes on");
    }
    for (greeting, said) in
        [(&b"\x05\x01\x02"[..], &b"\x05\xff"[..]), (b"\x04\x01", b""), (b"GET / HTTP/1.1\r\n\r\n", b"")]
    {
        let mut stream = dial(&mesh).unwrap();
        stream.write_all(greeting).unwrap();
        let mut answer = Vec::new();
        // Bytes that were not read make the end a reset.
        drop(stream.read_to_end(&mut answer));
        assert_eq!(answer, said, "{greeting:?}");
    }
    // Turned away after the success that the contract promises: the connection ends.
    let (code, mut stream) = ask_for(&mesh, b"\x01\x7f\x00\x00\x01\x3a\x99").unwrap();
    assert_eq!((code, stream.read(&mut [0]).unwrap_or(0)), (0, 0));
    let mut silent = dial(&mesh).unwrap();
    silent.write_all(b"\x05").unwrap();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "after {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(8));
    let node = mesh.node("n1");
    let open = || node.metrics().unwrap().sum("istio_tcp_sockets_open", &[("reporter", "source")]);
    wait::until("all to be gone", SOON, || open().abs() < 0.5).unwrap();
    mesh.set_env("UNSTABLE_ENABLE_SOCKS5", "false");
    mesh.restart().unwrap();
    assert!(mesh.pod("client").connect_timeout("127.0.0.1:15080".parse().unwrap(), SOON).is_err());
    mesh.stop().unwrap();
}
