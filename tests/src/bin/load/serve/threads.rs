// SPDX-License-Identifier: Apache-2.0
//! Blocking sockets, one thread per connection.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::Service;
use super::inbox::Inbox;
use crate::frame;
use crate::threads::CHUNK;

/// A thread per connection needs little stack; thousands of them must fit.
const STACK: usize = 128 << 10;

/// Serves until killed.
pub(crate) fn run(listeners: Vec<(Service, TcpListener)>) -> Result<()> {
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|(service, listener)| thread::spawn(move || accept(service, &listener)))
        .collect();
    for thread in accepting {
        if let Ok(outcome) = thread.join() {
            outcome?;
        }
    }
    Ok(())
}

fn accept(service: Service, listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("accept")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = serve(service, stream) {
                    eprintln!("load serve: {error:#}");
                }
            })
            .context("start a thread")?;
    }
}

fn serve(service: Service, mut stream: TcpStream) -> Result<()> {
    match service {
        Service::Answer => answer(&mut stream),
        Service::Sink | Service::CheckedSink => sink(&mut stream, service),
        Service::Source => {
            let mut at = 0;
            // Nobody reads any more: that is how it ends.
            while let Ok(wrote) = stream.write(frame::stream(at, CHUNK)) {
                at += wrote as u64;
            }
            Ok(())
        }
        Service::Echo => {
            let mut buffer = vec![0; CHUNK];
            loop {
                let read = stream.read(&mut buffer).context("echo: read")?;
                if read == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..read]).context("echo: write")?;
            }
        }
    }
}

fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut inbox = Inbox::default();
    let mut buffer = vec![0; 32 << 10];
    let mut out = Vec::new();
    loop {
        let read = stream.read(&mut buffer).context("answer: read")?;
        if read == 0 {
            return Ok(());
        }
        inbox.push(&buffer[..read]);
        while let Some(request) = inbox.next()? {
            request.write_answer(&mut out);
            stream.write_all(&out).context("answer: write")?;
            if request.close {
                return Ok(());
            }
        }
    }
}

fn sink(stream: &mut TcpStream, service: Service) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut count = 0;
    loop {
        let read = stream.read(&mut buffer).context("sink: read")?;
        if read == 0 {
            return stream.write_all(&u64::to_be_bytes(count)).context("sink: write");
        }
        if service == Service::CheckedSink && !frame::is_stream(count, &buffer[..read]) {
            bail!("sink: wrong bytes after {count} bytes");
        }
        count += read as u64;
    }
}
