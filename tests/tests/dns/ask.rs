// SPDX-License-Identifier: Apache-2.0
//! A client that knows every byte it sends and gets.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztunnel_core::dns::{kind, wire};
use ztunnel_tests::Pod;
use ztunnel_tests::resolver::framed;

/// Nothing takes longer that is to be answered.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);
/// Where pods believe their resolver to be. Nobody is there.
pub(crate) const KUBE_DNS: &str = "10.96.0.53:53";
/// The same in the other family.
pub(crate) const KUBE_DNS6: &str = "[fd96::53]:53";

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Udp,
    Tcp,
}

/// A question as it goes over the wire: `A name`.
pub(crate) fn question(text: &str) -> Vec<u8> {
    let (kind, name) = text.split_once(' ').unwrap_or(("A", text));
    let kind = match kind {
        "AAAA" => kind::AAAA,
        "NS" => 2,
        "SRV" => 33,
        "TXT" => 16,
        _ => kind::A,
    };
    wire::question(name, kind, 0x4711).unwrap_or_default()
}

/// Sends a message from inside the pod and gives what comes back.
pub(crate) fn ask(pod: &Pod, to: &str, by: By, message: &[u8]) -> Result<Vec<u8>> {
    let to: SocketAddr = to.parse()?;
    match by {
        By::Udp => {
            let socket = socket(pod, to)?;
            socket.send(message)?;
            receive(&socket)
        }
        By::Tcp => {
            let mut stream = pod.connect(to)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(&framed(message))?;
            read(&mut stream)
        }
    }
}

/// A socket inside the pod, for datagrams to and from there.
pub(crate) fn socket(pod: &Pod, to: SocketAddr) -> Result<UdpSocket> {
    let here = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = pod.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(here)?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// The next datagram.
pub(crate) fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer).context("no answer")?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The next message of a connection.
pub(crate) fn read(stream: &mut impl std::io::Read) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no answer")?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The addresses in an answer, sorted, or what else it is.
pub(crate) fn addresses(message: &[u8], kind: u16) -> Result<String> {
    let header = wire::Header::parse(message).context("no header")?;
    ensure!(header.id == 0x4711 && header.is_response(), "not an answer to the question: {header:?}");
    if header.rcode() != 0 {
        return Ok(wire::rcode_text(header.rcode()).to_owned());
    }
    let mut all = wire::addresses(message, kind)?;
    all.sort();
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    Ok(if all.is_empty() { "nothing".to_owned() } else { all.join(" ") })
}

/// Asks `A name` or `AAAA name`, and gives the addresses.
pub(crate) fn look_up(pod: &Pod, by: By, text: &str) -> Result<String> {
    let kind = if text.starts_with("AAAA ") { kind::AAAA } else { kind::A };
    addresses(&ask(pod, KUBE_DNS, by, &question(text))?, kind).with_context(|| format!("{text} by {by:?}"))
}
