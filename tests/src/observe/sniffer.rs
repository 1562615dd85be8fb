// SPDX-License-Identifier: Apache-2.0
//! Reads every TCP segment that crosses a namespace, and looks for bytes that must not be there.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::wait;

/// `ETH_P_ALL`, in network byte order.
const EVERYTHING: i32 = 0x0300;
/// Room for what arrives while this thread has no turn.
const BACKLOG: usize = 256 << 20;
/// First bytes that are kept of a flow.
const HEAD: usize = 16;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who sends.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// What was seen of a flow.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Segments with payload. A segment is seen once per interface it crosses.
    pub segments: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
    /// The first bytes of the first of them.
    pub head: Vec<u8>,
}

/// What crossed.
#[derive(Debug, Default)]
pub struct Capture {
    /// Flows that carried payload.
    pub flows: BTreeMap<Flow, Seen>,
    /// Flows in which the searched bytes were seen.
    pub sightings: Vec<Flow>,
}

impl Capture {
    /// Bytes of payload to or from a port.
    #[must_use]
    pub fn bytes_with_port(&self, port: u16) -> u64 {
        let with = self.flows.iter().filter(|(flow, _)| flow.from.port() == port || flow.to.port() == port);
        with.map(|(_, seen)| seen.bytes).sum()
    }

    /// Flows between two addresses, in either direction.
    pub fn between(&self, a: IpAddr, b: IpAddr) -> impl Iterator<Item = (&Flow, &Seen)> {
        self.flows.iter().filter(move |(flow, _)| {
            let ends = (flow.from.ip(), flow.to.ip());
            ends == (a, b) || ends == (b, a)
        })
    }
}

/// A running sniffer.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    thread: Option<JoinHandle<Capture>>,
}

impl Sniffer {
    /// Starts in `netns`, on all its interfaces; `needle` is what must not be seen (empty: nothing is searched).
    ///
    /// # Errors
    /// No permission.
    pub fn start(netns: &Netns, needle: &[u8]) -> Result<Self> {
        let socket = netns.run(|| -> Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))
                .context("make a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        let (stop, packets) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let shared = (Arc::clone(&stop), Arc::clone(&packets));
        let needle = needle.to_vec();
        let thread = thread::spawn(move || read(&socket, &needle, &shared.0, &shared.1));
        Ok(Self { stop, packets, thread: Some(thread) })
    }

    /// Waits until something was seen at all: then the sniffer works.
    ///
    /// # Errors
    /// Nothing was.
    pub fn wait_for_packets(&self) -> Result<()> {
        wait::until("packets on the wire", Duration::from_secs(5), || {
            self.packets.load(Ordering::Relaxed) > 0
        })
    }

    /// Ends it, after everything that has arrived is read.
    ///
    /// # Panics
    /// When the thread did.
    #[must_use]
    pub fn stop(mut self) -> Capture {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take();
        thread
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .unwrap_or_default()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn read(mut socket: &Socket, needle: &[u8], stop: &AtomicBool, packets: &AtomicU64) -> Capture {
    let mut capture = Capture::default();
    let mut frame = vec![0; 1 << 17];
    loop {
        match socket.read(&mut frame) {
            Ok(length) => {
                packets.fetch_add(1, Ordering::Relaxed);
                if let Some((flow, payload)) = frame.get(..length).and_then(segment) {
                    note(&mut capture, flow, payload, needle);
                }
            }
            // The queue is empty: only now may a stop be obeyed.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Acquire) {
                    return capture;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => {}
            Err(_) => return capture,
        }
    }
}

fn note(capture: &mut Capture, flow: Flow, payload: &[u8], needle: &[u8]) {
    if payload.is_empty() {
        return;
    }
    let seen = capture.flows.entry(flow).or_default();
    if seen.segments == 0 {
        seen.head = payload.iter().take(HEAD).copied().collect();
    }
    seen.segments += 1;
    seen.bytes += payload.len() as u64;
    let found = !needle.is_empty() && payload.windows(needle.len()).any(|window| window == needle);
    if found && !capture.sightings.contains(&flow) {
        capture.sightings.push(flow);
    }
}

/// The TCP segment in an Ethernet frame, if it is one.
fn segment(frame: &[u8]) -> Option<(Flow, &[u8])> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(array(packet, 2)?));
            // Packets of more than 64 KiB say zero.
            let packet = if total == 0 { packet } else { packet.get(..total)? };
            if *packet.get(9)? != 6 {
                return None;
            }
            let (from, to) = (IpAddr::from(array::<4>(packet, 12)?), IpAddr::from(array::<4>(packet, 16)?));
            tcp(packet.get(header..)?, from, to)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(array(packet, 4)?));
            let packet = if length == 0 { packet } else { packet.get(..length + 40)? };
            if *packet.get(6)? != 6 {
                return None;
            }
            let (from, to) = (IpAddr::from(array::<16>(packet, 8)?), IpAddr::from(array::<16>(packet, 24)?));
            tcp(packet.get(40..)?, from, to)
        }
        _ => None,
    }
}

fn tcp(segment: &[u8], from: IpAddr, to: IpAddr) -> Option<(Flow, &[u8])> {
    let (source, destination) =
        (u16::from_be_bytes(array(segment, 0)?), u16::from_be_bytes(array(segment, 2)?));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flow = Flow { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination) };
    Some((flow, segment.get(header..)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
