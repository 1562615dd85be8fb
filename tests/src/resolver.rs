// SPDX-License-Identifier: Apache-2.0
//! A DNS server in a pod that behaves as the name says which is asked for, and remembers every message.
//!
//! The first label up to its first dash decides:
//!
//! | label | behaviour |
//! |--|--|
//! | `slow` | answers after two seconds |
//! | `dead` | never answers |
//! | `lossy` | loses the first datagram of every name |
//! | `late` | loses none, but answers the first only when the second has come |
//! | `nx` | NXDOMAIN, with the SOA |
//! | `fail` | SERVFAIL |
//! | `long` | over UDP only that there is more, over TCP 100 addresses |
//! | `rude` | 100 addresses over UDP, whatever the client takes |
//! | `at` | the IPv4 address that the name begins with: `at-10.70.1.2.example` |
//! | `spoof` | is beaten by four strangers' answers, each wrong in one thing |
//! | anything else | an address (or, for SRV, a service), a server in authority, its address in additional |
//!
//! What is no query, such as an UPDATE, comes back with nothing but the bit that makes it a response.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;

use crate::pod::Pod;

/// How often threads look whether they should end.
const LOOK: Duration = Duration::from_millis(20);
/// How long a `slow` name takes.
const SLOW: Duration = Duration::from_secs(2);
/// The address of every ordinary name.
pub const ADDRESS: [u8; 4] = [192, 0, 2, 1];
/// The address in answers of strangers.
pub const FORGED: [u8; 4] = [203, 0, 113, 66];

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// How.
    pub transport: Transport,
    /// All of it.
    pub message: Vec<u8>,
    /// From where.
    pub from: SocketAddr,
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Resolver {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    received: Mutex<Vec<Received>>,
    asked: Mutex<HashMap<Vec<u8>, usize>>,
}

impl Resolver {
    /// Listens on port 53 of the pod's IPv4 address.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(pod: &Pod) -> Result<Self> {
        let at = pod.addr(53);
        let udp = pod.run(|| UdpSocket::bind(at)).context("bind UDP port 53")?;
        // Thousands of queries at once are part of the tests.
        drop(socket2::SockRef::from(&udp).set_recv_buffer_size(8 << 20));
        let stranger = pod.run(|| UdpSocket::bind((at.ip(), 0))).context("bind a UDP port")?;
        let tcp = pod.listen_at(at).context("bind TCP port 53")?;
        udp.set_read_timeout(Some(LOOK))?;
        tcp.set_nonblocking(true)?;
        let state = Arc::new(State::default());
        let (for_udp, for_tcp) = (Arc::clone(&state), Arc::clone(&state));
        let threads = vec![
            thread::spawn(move || datagrams(&for_udp, &Arc::new(udp), &stranger)),
            thread::spawn(move || connections(&for_tcp, &tcp)),
        ];
        Ok(Self { state, threads })
    }

    /// Everything that has come.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().clone()
    }

    /// Forgets what has come.
    pub fn forget(&self) {
        self.state.received.lock().clear();
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn datagrams(state: &Arc<State>, socket: &Arc<UdpSocket>, stranger: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    let mut late: Option<(Vec<u8>, SocketAddr)> = None;
    while !state.stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let message = buffer.get(..length).unwrap_or_default().to_vec();
        let times = state.remember(&message, Transport::Udp, from);
        let send = |bytes: &[u8]| drop(socket.send_to(bytes, from));
        match &*behavior(&message) {
            "dead" => {}
            "lossy" if times == 1 => {}
            "late" if times == 1 => late = Some((message, from)),
            "late" => {
                if let Some((message, from)) = late.take() {
                    drop(socket.send_to(&respond(&message, Transport::Udp), from));
                }
            }
            "slow" => {
                let (socket, message) = (Arc::clone(socket), message);
                thread::spawn(move || {
                    thread::sleep(SLOW);
                    drop(socket.send_to(&respond(&message, Transport::Udp), from));
                });
            }
            "spoof" => {
                for forged in forgeries(&message) {
                    send(&forged);
                }
                drop(stranger.send_to(&addresses(&message, &[FORGED]), from));
                send(&respond(&message, Transport::Udp));
            }
            _ => send(&respond(&message, Transport::Udp)),
        }
    }
}

fn connections(state: &Arc<State>, listener: &TcpListener) {
    while !state.stop.load(Ordering::Relaxed) {
        let Ok((stream, from)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        let state = Arc::clone(state);
        thread::spawn(move || drop(connection(&state, stream, from)));
    }
}

fn connection(state: &State, mut stream: TcpStream, from: SocketAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message)?;
        state.remember(&message, Transport::Tcp, from);
        if behavior(&message) != "dead" {
            stream.write_all(&framed(&respond(&message, Transport::Tcp)))?;
        }
    }
}

impl State {
    /// How often this question has come, this time included.
    fn remember(&self, message: &[u8], transport: Transport, from: SocketAddr) -> usize {
        self.received.lock().push(Received { transport, message: message.to_vec(), from });
        let mut asked = self.asked.lock();
        let times = asked.entry(message.get(12..).unwrap_or_default().to_vec()).or_default();
        *times += 1;
        *times
    }
}

/// A message after its length, as it goes over TCP.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], message].concat()
}

fn behavior(message: &[u8]) -> String {
    let length = message.get(12).copied().unwrap_or_default();
    let label = message.get(13..13 + usize::from(length)).unwrap_or_default();
    let text = String::from_utf8_lossy(label).to_lowercase();
    text.split('-').next().unwrap_or_default().to_owned()
}

/// Bytes of header and question.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while let Some(&length @ 1..) = message.get(at) {
        at += 1 + usize::from(length);
    }
    (at + 5).min(message.len())
}

/// Header and question as a response; the counts of records are for the caller.
fn start(message: &[u8], flags: u8, rcode: u8) -> Vec<u8> {
    let mut out = message.get(..question_end(message)).unwrap_or_default().to_vec();
    if let Some(header) = out.get_mut(2..12) {
        header[0] |= 0x80 | flags;
        header[1] = 0x80 | rcode;
        header[4..].fill(0);
    }
    out
}

fn count(message: &mut [u8], section: usize, count: u8) {
    if let Some(field) = message.get_mut(5 + 2 * section) {
        *field = count;
    }
}

fn record(out: &mut Vec<u8>, owner: &[u8], kind: u8, data: &[u8]) {
    out.extend(owner);
    out.extend([0, kind, 0, 1, 0, 0, 0, 60]);
    out.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
    out.extend(data);
}

fn addresses(message: &[u8], all: &[[u8; 4]]) -> Vec<u8> {
    let mut out = start(message, 0, 0);
    for address in all {
        record(&mut out, b"\xc0\x0c", 1, address);
    }
    count(&mut out, 1, u8::try_from(all.len()).unwrap_or(u8::MAX));
    out
}

fn hundred() -> Vec<[u8; 4]> {
    (0..100).map(|last| [198, 51, 100, last]).collect()
}

/// A wrong id, a wrong name, a wrong type, a query instead of a response.
fn forgeries(message: &[u8]) -> Vec<Vec<u8>> {
    let forge = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut forged = addresses(message, &[FORGED]);
        change(&mut forged);
        forged
    };
    let kind = question_end(message).saturating_sub(3);
    vec![
        forge(&|bytes| bytes[1] ^= 0xff),
        forge(&|bytes| bytes[13] ^= 0x01),
        forge(&|bytes| bytes[kind] ^= 0x1c),
        forge(&|bytes| bytes[2] &= 0x7f),
    ]
}

fn respond(message: &[u8], transport: Transport) -> Vec<u8> {
    let opcode = message.get(2).copied().unwrap_or_default() >> 3 & 0xf;
    if opcode != 0 {
        let mut out = message.to_vec();
        if let Some(flags) = out.get_mut(2) {
            *flags |= 0x80;
        }
        return out;
    }
    match (&*behavior(message), transport) {
        ("nx", _) => {
            let mut out = start(message, 0x04, 3);
            let soa = [&b"\x02ns\x00\x02ad\x00"[..], &[0, 0, 0, 9].repeat(5)].concat();
            record(&mut out, b"\xc0\x0c", 6, &soa);
            count(&mut out, 2, 1);
            out
        }
        ("fail", _) => start(message, 0, 2),
        ("at", _) => match named(message) {
            Some(address) if asked_for(message) == 1 => addresses(message, &[address]),
            _ => start(message, 0, 0),
        },
        ("long", Transport::Udp) => start(message, 0x02, 0),
        ("long", Transport::Tcp) | ("rude", _) => addresses(message, &hundred()),
        _ => ordinary(message),
    }
}

/// The type of record, as far as it is below 256.
fn asked_for(message: &[u8]) -> u8 {
    message.get(question_end(message).saturating_sub(3)).copied().unwrap_or_default()
}

/// The address in the first four labels, after the first dash.
fn named(message: &[u8]) -> Option<[u8; 4]> {
    let mut at = 12;
    let mut next = || {
        let length = usize::from(*message.get(at)?);
        let label = std::str::from_utf8(message.get(at + 1..at + 1 + length)?).ok()?;
        at += 1 + length;
        label.trim_start_matches("at-").parse().ok()
    };
    Some([next()?, next()?, next()?, next()?])
}

fn ordinary(message: &[u8]) -> Vec<u8> {
    let mut out = start(message, 0, 0);
    match asked_for(message) {
        33 => record(&mut out, b"\xc0\x0c", 33, b"\x00\x0a\x00\x05\x1f\x90\x04pod0\x07example\x00"),
        28 => record(
            &mut out,
            b"\xc0\x0c",
            28,
            &[[0x20, 0x01, 0x0d, 0xb8], [0; 4], [0; 4], [0, 0, 0, 1]].concat(),
        ),
        _ => record(&mut out, b"\xc0\x0c", 1, &ADDRESS),
    }
    record(&mut out, b"\xc0\x0c", 2, b"\x02ns\x07example\x00");
    record(&mut out, b"\x02ns\x07example\x00", 1, &[192, 0, 2, 53]);
    for section in 1..=3 {
        count(&mut out, section, 1);
    }
    out
}
