// SPDX-License-Identifier: Apache-2.0
//! The loads with blocking sockets, one thread per connection: how simple programs and many runtimes do it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::Plan;
use crate::frame::{self, Request};
use crate::tally::{TOO_MANY, Tally, Window};

/// Nothing answers later than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// What one read or write of a stream moves at most.
pub(crate) const CHUNK: usize = 64 << 10;

/// Opens a connection the way every load wants it.
pub(crate) fn connect(plan: &Plan, port: u16) -> Result<TcpStream> {
    let mut to = plan.to;
    to.set_port(to.port() + port);
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    stream.set_write_timeout(Some(PATIENCE)).context("SO_SNDTIMEO")?;
    Ok(stream)
}

/// Runs `work` once per connection, each on its own thread, and sums up.
fn each<T: Send>(jobs: Vec<T>, work: impl Fn(usize, T) -> Tally + Sync) -> Tally {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = jobs
            .into_iter()
            .enumerate()
            .map(|(number, job)| scope.spawn(move || work(number, job)))
            .collect();
        let mut sum = Tally::default();
        for thread in running {
            match thread.join() {
                Ok(tally) => sum.add(&tally),
                Err(_) => sum.error("a thread of the load generator panicked"),
            }
        }
        sum
    })
}

fn connect_all(plan: &Plan, port: u16) -> Result<Vec<TcpStream>> {
    (0..plan.conns).map(|_| connect(plan, port)).collect()
}

/// Requests on open connections.
pub(crate) fn rr(plan: &Plan) -> Result<Tally> {
    let streams = connect_all(plan, 0)?;
    let begun = Instant::now();
    let window = plan.begin();
    Ok(each(streams, |number, mut stream| {
        let mut tally = Tally::default();
        let mut buffers = Buffers::default();
        let mut seed = (number as u64) << 40;
        // Connections take turns within one interval.
        let mut due = begun + plan.interval.unwrap_or_default() * as_u32(number) / as_u32(plan.conns);
        loop {
            let now = Instant::now();
            if window.is_over(now) {
                return tally;
            }
            let began = if let Some(interval) = plan.interval {
                thread::sleep(due.saturating_duration_since(now));
                due += interval;
                due - interval
            } else {
                now
            };
            seed += 1;
            let request = Request { len: plan.size, answer_len: plan.answer, close: false, seed };
            if let Err(error) = exchange(&mut stream, &request, &mut buffers) {
                tally.error(error);
                return tally;
            }
            tally.done(&window, began, Instant::now(), plan.size + plan.answer);
        }
    }))
}

/// One connection after the other, `conns` at a time.
pub(crate) fn crr(plan: &Plan) -> Result<Tally> {
    drop(connect(plan, 0)?);
    let window = plan.begin();
    Ok(each((0..plan.conns).collect(), |_, number: usize| {
        let mut tally = Tally::default();
        let mut buffers = Buffers::default();
        let mut seed = (number as u64) << 40;
        loop {
            let began = Instant::now();
            if window.is_over(began) || tally.errors > TOO_MANY {
                return tally;
            }
            seed += 1;
            let request = Request { len: plan.size, answer_len: plan.answer, close: true, seed };
            let outcome = connect(plan, 0).and_then(|mut stream| {
                exchange(&mut stream, &request, &mut buffers)?;
                expect_end(&mut stream)
            });
            match outcome {
                Ok(()) => tally.done(&window, began, Instant::now(), plan.size + plan.answer),
                Err(error) => tally.error(format!("{error:#}")),
            }
        }
    }))
}

/// Streams in one direction.
pub(crate) fn bulk(plan: &Plan) -> Result<Tally> {
    let streams = connect_all(plan, if plan.download { 2 } else { 1 })?;
    let window = plan.begin();
    Ok(each(streams, |_, mut stream| {
        let mut tally = Tally::default();
        let outcome = if plan.download {
            download(plan, &mut stream, &window, &mut tally)
        } else {
            upload(&mut stream, &window, &mut tally)
        };
        if let Err(error) = outcome {
            tally.error(format!("{error:#}"));
        }
        tally
    }))
}

fn upload(stream: &mut TcpStream, window: &Window, tally: &mut Tally) -> Result<()> {
    let mut before = None;
    let mut sent = 0;
    while !window.is_over(Instant::now()) {
        if before.is_none() && window.counts(Instant::now()) {
            before = Some((sent, Instant::now()));
        }
        sent += stream.write(frame::stream(sent, CHUNK)).map_err(|error| blocked(error, "write"))? as u64;
    }
    stream.shutdown(Shutdown::Write).context("half-close")?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).map_err(|error| blocked(error, "read of the sink's count"))?;
    let (from_byte, from) = before.unwrap_or((0, window.from));
    tally.seconds = Some(from.elapsed().as_secs_f64());
    tally.bytes = sent - from_byte;
    tally.bytes_total = sent;
    check_count(u64::from_be_bytes(count), sent)
}

/// The sink must have seen as many bytes as were sent.
pub(crate) fn check_count(count: u64, sent: u64) -> Result<()> {
    if count == sent { Ok(()) } else { bail!("the sink counted {count} bytes of {sent}") }
}

fn download(plan: &Plan, stream: &mut TcpStream, window: &Window, tally: &mut Tally) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer).map_err(|error| blocked(error, "read"))?;
        let now = Instant::now();
        if read == 0 {
            bail!("the stream ended early");
        }
        if plan.verify && !frame::is_stream(tally.bytes_total, &buffer[..read]) {
            bail!("wrong bytes after {} bytes", tally.bytes_total);
        }
        tally.bytes_total += read as u64;
        if window.counts(now) {
            tally.bytes += read as u64;
        }
        if window.is_over(now) {
            return Ok(());
        }
    }
}

/// Opens all connections and uses each once.
pub(crate) fn idle(plan: &Plan) -> Result<(Vec<TcpStream>, Tally)> {
    let window = plan.begin();
    let mut tally = Tally::default();
    let mut buffers = Buffers::default();
    let mut held = Vec::with_capacity(plan.conns);
    for number in 0..plan.conns {
        let mut stream = connect(plan, 0).with_context(|| format!("connection {number}"))?;
        let began = Instant::now();
        let request = Request { len: plan.size, answer_len: plan.answer, close: false, seed: number as u64 };
        match exchange(&mut stream, &request, &mut buffers) {
            Ok(()) => tally.done(&window, began, Instant::now(), plan.size + plan.answer),
            Err(error) => tally.error(format!("{error:#}")),
        }
        held.push(stream);
    }
    Ok((held, tally))
}

#[derive(Default)]
struct Buffers {
    request: Vec<u8>,
    answer: Vec<u8>,
}

fn exchange(stream: &mut TcpStream, request: &Request, buffers: &mut Buffers) -> Result<()> {
    request.write(&mut buffers.request);
    buffers.answer.resize(request.answer_len, 0);
    stream.write_all(&buffers.request).map_err(|error| blocked(error, "write"))?;
    let asked = Instant::now();
    stream.read_exact(&mut buffers.answer).map_err(|error| {
        if error.kind() == ErrorKind::WouldBlock && asked.elapsed() < PATIENCE / 2 {
            // What a socket does that is in a sockmap without being qualified for it.
            return anyhow!("a blocking read returned EAGAIN after {} us", asked.elapsed().as_micros());
        }
        blocked(error, "read")
    })?;
    if request.is_answered_by(&buffers.answer) { Ok(()) } else { bail!("wrong bytes in a response") }
}

fn expect_end(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0]).map_err(|error| blocked(error, "read at the end"))? {
        0 => Ok(()),
        _ => bail!("bytes after the response"),
    }
}

fn blocked(error: std::io::Error, what: &str) -> anyhow::Error {
    if error.kind() == ErrorKind::WouldBlock {
        return anyhow!("{what}: nothing moved, or EAGAIN from a blocking socket");
    }
    anyhow::Error::new(error).context(what.to_owned())
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
