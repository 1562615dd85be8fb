// SPDX-License-Identifier: Apache-2.0
//! Requests and responses, event-driven: on open connections (`rr`), or on a new one each (`crr`).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Ready;
use crate::frame::Request;
use crate::tally::{TOO_MANY, Tally, Window};
use crate::{Plan, threads};

/// How long an answer may take after the run is over, before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// One connection and the request on it.
struct Exchange {
    stream: TcpStream,
    request: Request,
    out: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    got: usize,
    /// When the request began or was due; `None` while there is none.
    began: Option<Instant>,
    /// With a fixed rate: when the next one is due.
    due: Instant,
}

/// What came of one try.
enum Step {
    /// The next edge brings more.
    Wait,
    /// A read that did not fill its buffer.
    Short,
    Done,
}

impl Exchange {
    fn new(stream: TcpStream, request: Request, due: Instant) -> Self {
        Self { stream, request, out: Vec::new(), sent: 0, answer: Vec::new(), got: 0, began: None, due }
    }

    fn ask(&mut self, began: Instant) {
        self.request.seed += 1;
        self.request.write(&mut self.out);
        self.sent = 0;
        self.answer.clear();
        self.answer.resize(self.request.answer_len, 0);
        self.got = 0;
        self.began = Some(began);
    }

    /// Moves what can be moved; done when the response is there, whole and right.
    fn drive(&mut self) -> Result<Step> {
        if self.sent < self.out.len() {
            while self.sent < self.out.len() {
                match self.stream.write(&self.out[self.sent..]) {
                    Ok(wrote) => self.sent += wrote,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Wait),
                    Err(error) => return Err(error).context("write"),
                }
            }
            // The answer makes an edge of its own.
            return Ok(Step::Wait);
        }
        while self.got < self.answer.len() {
            let room = &mut self.answer[self.got..];
            let wanted = room.len();
            match self.stream.read(room) {
                Ok(0) => bail!("the connection ended inside a response"),
                Ok(read) => {
                    self.got += read;
                    if read < wanted {
                        return Ok(Step::Short);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(error) => return Err(error).context("read"),
            }
        }
        if !self.request.is_answered_by(&self.answer) {
            bail!("wrong bytes in a response");
        }
        if self.request.close {
            match self.stream.read(&mut [0]) {
                Ok(0) => {}
                Ok(_) => bail!("bytes after the response"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(error) => return Err(error).context("read at the end"),
            }
        }
        Ok(Step::Done)
    }
}

/// A run of many connections.
struct Run<'a> {
    plan: &'a Plan,
    window: Window,
    ready: Ready,
    slots: Vec<Option<Exchange>>,
    tally: Tally,
}

/// Requests on open connections.
pub(crate) fn rr(plan: &Plan) -> Result<Tally> {
    let streams: Vec<TcpStream> =
        (0..plan.conns).map(|_| threads::connect(plan, 0)).collect::<Result<_>>()?;
    let begun = Instant::now();
    let mut run = Run::begin(plan)?;
    for (number, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true).context("non-blocking")?;
        run.ready.watch(&stream, number)?;
        let request =
            Request { len: plan.size, answer_len: plan.answer, close: false, seed: (number as u64) << 40 };
        let share = number as f64 / plan.conns as f64;
        let due = begun + plan.interval.unwrap_or_default().mul_f64(share);
        let mut exchange = Exchange::new(stream, request, due);
        if plan.interval.is_none() {
            exchange.ask(begun);
        }
        run.slots.push(Some(exchange));
    }
    run.go()
}

/// A new connection for every request, `conns` at a time.
pub(crate) fn crr(plan: &Plan) -> Result<Tally> {
    drop(threads::connect(plan, 0)?);
    let mut run = Run::begin(plan)?;
    for number in 0..plan.conns {
        run.slots.push(None);
        run.open(number, (number as u64) << 40)?;
    }
    run.go()
}

impl<'a> Run<'a> {
    fn begin(plan: &'a Plan) -> Result<Self> {
        let ready = Ready::new()?;
        Ok(Self { plan, window: plan.begin(), ready, slots: Vec::new(), tally: Tally::default() })
    }

    fn go(mut self) -> Result<Tally> {
        let mut turn = Vec::new();
        let last = self.window.to + PATIENCE;
        loop {
            let now = Instant::now();
            let over = self.window.is_over(now);
            let asked = self.slots.iter().flatten().any(|slot| slot.began.is_some());
            if (over && (!asked || now >= last))
                || self.tally.errors > TOO_MANY
                || self.slots.iter().all(Option::is_none)
            {
                break;
            }
            if !over && self.plan.interval.is_some() {
                self.ask_what_is_due(now);
            }
            let patience = self.patience(now);
            self.ready.wait(patience, &mut turn)?;
            for &number in &turn {
                self.turn(number)?;
            }
        }
        for exchange in self.slots.iter().flatten().filter(|exchange| exchange.began.is_some()) {
            self.tally.error(format!(
                "no answer for {} s (sent {} of {} bytes, received {} of {})",
                PATIENCE.as_secs(),
                exchange.sent,
                exchange.out.len(),
                exchange.got,
                exchange.answer.len(),
            ));
        }
        Ok(self.tally)
    }

    /// Until something is due, or it is time to look at the clock.
    fn patience(&self, now: Instant) -> Duration {
        let idle = self.slots.iter().flatten().filter(|exchange| exchange.began.is_none());
        let due = idle.map(|exchange| exchange.due).min().filter(|_| !self.window.is_over(now));
        let tick = Duration::from_millis(100);
        due.map_or(tick, |due| due.saturating_duration_since(now).min(tick))
    }

    fn ask_what_is_due(&mut self, now: Instant) {
        for number in 0..self.slots.len() {
            let Some(exchange) = self.slots[number].as_mut() else { continue };
            if exchange.began.is_none() && exchange.due <= now {
                let due = exchange.due;
                exchange.due += self.plan.interval.unwrap_or_default();
                exchange.ask(due);
                self.ready.mark(number);
            }
        }
    }

    fn turn(&mut self, number: usize) -> Result<()> {
        let Some(exchange) = self.slots[number].as_mut() else { return Ok(()) };
        let Some(began) = exchange.began else { return Ok(()) };
        let seed = exchange.request.seed;
        match exchange.drive() {
            Ok(Step::Wait) => return Ok(()),
            Ok(Step::Short) => {
                self.ready.short(number);
                return Ok(());
            }
            Ok(Step::Done) => {
                let now = Instant::now();
                self.tally.done(&self.window, began, now, self.plan.size + self.plan.answer);
                exchange.began = None;
                let over = self.window.is_over(now);
                if !exchange.request.close {
                    if !over && self.plan.interval.is_none() {
                        exchange.ask(now);
                        self.ready.mark(number);
                    }
                    return Ok(());
                }
            }
            Err(error) => self.tally.error(format!("{error:#}")),
        }
        let close = exchange.request.close;
        self.slots[number] = None;
        if close && !self.window.is_over(Instant::now()) {
            self.open(number, seed)?;
        }
        Ok(())
    }

    /// A new connection in this slot, with its request on the way.
    fn open(&mut self, number: usize, seed: u64) -> Result<()> {
        use socket2::{Domain, Protocol, Socket, Type};
        let began = Instant::now();
        let domain = Domain::for_address(self.plan.to);
        let socket =
            Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).context("socket")?;
        socket.set_tcp_nodelay(true).context("TCP_NODELAY")?;
        match socket.connect(&self.plan.to.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
                self.tally.error(format!("connect: {error}"));
                return Ok(());
            }
            _ => {}
        }
        let stream = TcpStream::from(socket);
        let request = Request { len: self.plan.size, answer_len: self.plan.answer, close: true, seed };
        let mut exchange = Exchange::new(stream, request, began);
        exchange.ask(began);
        self.ready.watch(&exchange.stream, number)?;
        self.slots[number] = Some(exchange);
        Ok(())
    }
}
