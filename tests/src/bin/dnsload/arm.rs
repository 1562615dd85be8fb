// SPDX-License-Identifier: Apache-2.0
//! One server under load, and the resolver behind it.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ztunnel_core::dns::{kind, wire};
use ztunnel_tests::Pod;

/// After this long an answer counts as lost.
const LOST: Duration = Duration::from_secs(1);

/// A resolver that answers everything with one address, as fast as it can.
pub(crate) struct Quick {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Quick {
    pub(crate) fn start(pod: &Pod) -> Result<Self> {
        let at = pod.addr(53);
        let socket = pod.run(|| UdpSocket::bind(at))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut message = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut message) else { continue };
                drop(socket.send_to(&answer(&message[..length]), from));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Quick {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// An address for whatever is asked; nothing but the question is kept of the query.
fn answer(query: &[u8]) -> Vec<u8> {
    let end = query.iter().skip(12).position(|&byte| byte == 0).map_or(query.len(), |at| 12 + at + 5);
    let mut out = query.get(..end).unwrap_or(query).to_vec();
    if let Some(header) = out.get_mut(2..12) {
        header.copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    }
    out.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01");
    out
}

/// How it is loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Queries that are open at a time, each on a socket of its own.
    pub(crate) open: usize,
    pub(crate) time: Duration,
}

/// A server and what was measured.
pub(crate) struct Arm<'a> {
    name: &'static str,
    pod: &'a Pod,
    to: SocketAddr,
    query: Vec<u8>,
    rates: Vec<f64>,
    /// In microseconds.
    latencies: Vec<f64>,
    lost: u64,
}

impl<'a> Arm<'a> {
    pub(crate) fn new(name: &'static str, pod: &'a Pod, to: &str, host: &str) -> Self {
        let query = wire::question(host, kind::A, 0).unwrap_or_default();
        let to = to.parse().unwrap_or_else(|_| unreachable!("{to} is an address"));
        Self { name, pod, to, query, rates: Vec::new(), latencies: Vec::new(), lost: 0 }
    }

    fn socket(&self) -> Result<UdpSocket> {
        let socket = self.pod.run(|| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(self.to)?;
            Ok(socket)
        });
        Ok(socket?)
    }

    /// Asks once, and looks at the answer.
    pub(crate) fn probe(&self) -> Result<()> {
        let socket = self.socket()?;
        socket.set_read_timeout(Some(LOST))?;
        socket.send(&self.query)?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).context("no answer")?;
        let found = wire::addresses(&buffer[..length], kind::A)?;
        ensure!(found.len() == 1, "{found:?}");
        Ok(())
    }

    /// Closed loop: every socket asks again when it has its answer.
    pub(crate) fn run(&mut self, load: Load) -> Result<()> {
        self.probe().with_context(|| self.name.to_owned())?;
        let sockets: Vec<UdpSocket> = (0..load.open).map(|_| self.socket()).collect::<Result<_>>()?;
        let mut sent = vec![Instant::now(); sockets.len()];
        let mut ids = vec![0_u16; sockets.len()];
        let start = Instant::now();
        let mut answers = 0_u32;
        for (at, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true)?;
            self.ask(socket, &mut ids[at])?;
        }
        while start.elapsed() < load.time {
            let mut ready: Vec<PollFd<'_>> =
                sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut ready, PollTimeout::from(50_u8))?;
            let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (at, socket) in sockets.iter().enumerate() {
                if ready[at] {
                    let mut buffer = [0; 512];
                    let length = socket.recv(&mut buffer)?;
                    if length < 12 || buffer[..2] != ids[at].to_be_bytes() {
                        continue;
                    }
                    ensure!(buffer[3] & 0xf == 0 && buffer[7] == 1, "{}: no address", self.name);
                    self.latencies.push(sent[at].elapsed().as_secs_f64() * 1e6);
                    answers += 1;
                } else if sent[at].elapsed() > LOST {
                    self.lost += 1;
                } else {
                    continue;
                }
                sent[at] = Instant::now();
                self.ask(socket, &mut ids[at])?;
            }
        }
        self.rates.push(f64::from(answers) / start.elapsed().as_secs_f64());
        Ok(())
    }

    fn ask(&mut self, socket: &UdpSocket, id: &mut u16) -> Result<()> {
        *id = id.wrapping_add(1);
        wire::set_id(&mut self.query, *id);
        socket.send(&self.query)?;
        Ok(())
    }
}

impl fmt::Display for Arm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rates, mut latencies) = (self.rates.clone(), self.latencies.clone());
        rates.sort_by(f64::total_cmp);
        latencies.sort_by(f64::total_cmp);
        let at = |all: &[f64], part: usize| {
            all.get(all.len().saturating_sub(1) * part / 100).copied().unwrap_or(0.0)
        };
        write!(
            f,
            "| {} | {:.0} ({:.0} to {:.0}) | {:.0} µs | {:.0} µs | {} |",
            self.name,
            at(&rates, 50),
            at(&rates, 0),
            at(&rates, 100),
            at(&latencies, 50),
            at(&latencies, 99),
            self.lost
        )
    }
}
