// SPDX-License-Identifier: Apache-2.0
//! Programs as users have them, with a resolv.conf as pods have it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::launch::Launch;
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, in_every_mode};

use super::{SERVER, mesh};

/// As the kubelet writes it.
const RESOLV_CONF: &str =
    "search ns1.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.53\noptions ndots:5\n";

/// A program in the client's pod that finds this as its /etc/resolv.conf.
fn program(mesh: &Mesh, name: &str) -> Result<Launch> {
    let file = mesh.dir().join("pod-resolv.conf");
    fs::write(&file, RESOLV_CONF)?;
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    Ok(mesh.pod("client").command("unshare").args(["-m", "sh", "-c", script]).arg(file).arg(name))
}

fn output(launch: Launch) -> Result<String> {
    let output = launch.output()?;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}{complained}", output.status);
    Ok(said.into_owned())
}

/// Compiles `tests/programs/resolve.c` against one of the C libraries.
fn resolve(compiler: &str) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/resolve.c");
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("resolve-{compiler}"));
    let output =
        Command::new(compiler).args(["-O2", "-Wall", "-Werror", "-o"]).arg(&binary).arg(source).output();
    let output = output.with_context(|| format!("start {compiler}"))?;
    ensure!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(binary)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn programs_of_both_c_libraries_find_what_the_mesh_and_the_resolver_know() {
    let build = || mesh().services(&many());
    in_every_mode(build, |mesh| {
        let resolver = Resolver::start(mesh.pod("resolver"))?;
        for compiler in ["gcc", "musl-gcc"] {
            let names = [
                "server",
                "productpage.ns1",
                "www.google.com",
                "dual.localhost",
                "headless",
                "www.bing.com",
                "nx.com",
            ];
            let said = output(program(mesh, &resolve(compiler)?.display().to_string())?.args(names))?;
            let vip = mesh.vip(SERVER);
            for line in [
                format!("server: {vip}\n"),
                "productpage.ns1: 9.9.9.9\n".to_owned(),
                "www.google.com: 1.1.1.1\n".to_owned(),
                "dual.localhost: 2.2.2.2 2001:db8::2\n".to_owned(),
                "headless: 10.70.1.2 10.70.2.2 fd70:0:0:1::2 fd70:0:0:2::2\n".to_owned(),
                "nx.com: error Name".to_owned(),
            ] {
                ensure!(said.contains(&line), "{compiler}: not {line}\n{said}");
            }
            // With a search list, a name that the resolver knows everywhere is found under the first domain.
            ensure!(said.contains("www.bing.com: 192.0.2.1 2001:db8::1\n"), "{compiler}: {said}");
        }
        // Too many addresses for a datagram: glibc asks again over TCP.
        let said = output(program(mesh, &resolve("gcc")?.display().to_string())?.arg("many"))?;
        ensure!(said.split(' ').count() == 1 + 60, "{said}");
        let said = output(program(mesh, "getent")?.args(["ahostsv4", "productpage"]))?;
        ensure!(said.starts_with("9.9.9.9 "), "getent: {said}");
        dig(mesh)?;
        nsupdate(mesh, &resolver)?;
        curl(mesh)
    })
    .unwrap();
}

/// A name with sixty addresses.
fn many() -> String {
    let vips: Vec<String> = (1..=60).map(|last| format!("/10.99.0.{last}")).collect();
    format!(
        "- {{name: many, namespace: ns1, hostname: many.ns1.svc.cluster.local, vips: [{}], ports: {{}}}}",
        vips.join(", ")
    )
}

fn dig(mesh: &Mesh) -> Result<()> {
    for (args, expected) in [
        (&["+short", "+search", "productpage"][..], "9.9.9.9\n"),
        (&["+short", "www.google.com.ns1.svc.cluster.local"], "www.google.com.\n1.1.1.1\n"),
        (&["+short", "+tcp", "productpage"], "9.9.9.9\n"),
        (&["+short", "+noedns", "productpage"], "9.9.9.9\n"),
        (&["+short", "+edns=1", "+noednsneg", "productpage"], ""),
        (&["+short", "+edns=1", "+ednsnegotiation", "productpage"], "9.9.9.9\n"),
        (&["+short", "SRV", "_http._tcp.headless.ns1.svc.cluster.local"], "10 5 8080 pod0.example.\n"),
    ] {
        let said = output(program(mesh, "dig")?.args(args))?;
        ensure!(said == expected, "dig {args:?}: {said}");
    }
    for (args, words) in [
        (
            &["productpage"][..],
            &["status: NOERROR", "flags: qr aa rd ra;", "ANSWER: 1", "productpage.\t\t30\tIN\tA\t9.9.9.9"][..],
        ),
        (
            &["AAAA", "v4.localhost"],
            &[
                "NOERROR",
                "ANSWER: 0, AUTHORITY: 1",
                "SOA\tns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
            ],
        ),
        (&["nx.example"], &["NXDOMAIN", "AUTHORITY: 1", "SOA"]),
        (
            &["+bufsize=512", "+ignore", "many.ns1.svc.cluster.local"],
            &["flags: qr aa tc rd ra;", "ANSWER: 28"],
        ),
        (&["+bufsize=512", "many.ns1.svc.cluster.local"], &["Truncated, retrying in TCP mode", "ANSWER: 60"]),
        (&["long.example"], &["Truncated, retrying in TCP mode", "ANSWER: 100"]),
        (&["+opcode=STATUS", "+norecurse", "productpage"], &["opcode: STATUS"]),
    ] {
        let said = output(program(mesh, "dig")?.args(args))?;
        for word in words {
            ensure!(said.contains(word), "dig {args:?}: no {word:?} in\n{said}");
        }
        ensure!(!said.contains("malformed") && !said.contains("not available"), "dig {args:?}: {said}");
    }
    Ok(())
}

/// A DNS UPDATE (RFC 2136) reaches the resolver as it was sent.
fn nsupdate(mesh: &Mesh, resolver: &Resolver) -> Result<()> {
    resolver.forget();
    let script = mesh.dir().join("update");
    fs::write(&script, "server 10.96.0.53\nzone example\nupdate add host.example 60 A 192.0.2.7\nsend\n")?;
    for over in [&["-t", "5"][..], &["-v", "-t", "5"]] {
        output(program(mesh, "nsupdate")?.args(over).arg(&script))?;
    }
    let updates = resolver.received();
    let updates: Vec<&[u8]> = updates.iter().map(|it| &*it.message).filter(|it| it[2] >> 3 == 5).collect();
    ensure!(updates.len() == 2, "{} updates arrived", updates.len());
    for update in updates {
        ensure!(update.windows(4).any(|bytes| bytes == [192, 0, 2, 7]), "{update:?}");
    }
    Ok(())
}

/// A name, its address, and the connection to it.
fn curl(mesh: &Mesh) -> Result<()> {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhey";
    let _server = Server::start(mesh.pod("server"), 8080, |conn| {
        let mut request = [0; 4096];
        let length = (&conn).read(&mut request)?;
        ensure!(length > 0, "no request");
        (&conn).write_all(response.as_bytes())?;
        Ok(conn.finish()?)
    })?;
    let said = output(program(mesh, "curl")?.args(["-sS", "--max-time", "10", "http://server/"]))?;
    ensure!(said == "hey", "{said}");
    Ok(())
}
