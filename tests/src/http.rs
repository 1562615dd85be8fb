// SPDX-License-Identifier: Apache-2.0
//! Asking a ztunnel: one HTTP/1.1 request per connection, blocking, over a stream that somebody else opened.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// No answer may take longer.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Its headers, one per line, as they came.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Sends one request without a body and reads the answer to its end.
///
/// # Errors
/// The connection breaks, or the answer is not HTTP.
pub fn ask(mut stream: TcpStream, method: &str, path: &str) -> Result<Response> {
    stream.set_read_timeout(Some(LIMIT))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).context("send the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of headers")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body).context("broken chunks")? } else { body.to_owned() };
    Ok(Response { status, head: head.to_owned(), body })
}

fn unchunk(mut body: &str) -> Option<String> {
    let mut out = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
        if size == 0 {
            return Some(out);
        }
        out.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_body_are_read() {
        let plain = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "ready"));
        let chunked =
            parse(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        let chunked = chunked.unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (500, "abcde"));
        assert!(parse(b"garbage").is_err());
    }
}
