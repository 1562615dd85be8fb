// SPDX-License-Identifier: Apache-2.0
//! `/etc/resolv.conf`: which resolvers there are, and how patient to be with them (resolv.conf(5)).

use std::net::IpAddr;
use std::time::Duration;

/// More are never asked (`MAXNS` of the C library).
const MAX_SERVERS: usize = 3;
/// Bounds of the C library.
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u32 = 5;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver`: at most three.
    pub servers: Vec<IpAddr>,
    /// `search`, or `domain`: lower case, without dots at their ends.
    pub search: Vec<String>,
    /// `options timeout`: how long a server has for its answer.
    pub timeout: Duration,
    /// `options attempts`: how often each server is asked.
    pub attempts: u32,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self { servers: Vec::new(), search: Vec::new(), timeout: Duration::from_secs(5), attempts: 2 }
    }
}

/// Reads the file as the C library does: what cannot be understood is left out, the last `search` or `domain` counts.
#[must_use]
pub fn parse(text: &str) -> ResolvConf {
    let mut found = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                if let Some(server) = server.filter(|_| found.servers.len() < MAX_SERVERS) {
                    found.servers.push(server);
                }
            }
            Some("search" | "domain") => {
                let zone = |word: &str| word.trim_matches('.').to_ascii_lowercase();
                found.search = words.map(zone).filter(|zone| !zone.is_empty()).collect();
            }
            Some("options") => words.for_each(|word| option(&mut found, word)),
            _ => {}
        }
    }
    found
}

fn option(found: &mut ResolvConf, word: &str) {
    match word.split_once(':') {
        Some(("timeout", seconds)) => {
            if let Ok(seconds) = seconds.parse::<u64>() {
                found.timeout = Duration::from_secs(seconds.clamp(1, MAX_TIMEOUT));
            }
        }
        Some(("attempts", count)) => {
            if let Ok(count) = count.parse::<u32>() {
                found.attempts = count.clamp(1, MAX_ATTEMPTS);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_the_c_library_reads_it() {
        let text = "# a comment\n; another\nsearch Demo.svc.cluster.local. svc.cluster.local\nnameserver 10.96.0.10\n\
                    nameserver fd00::10\nnameserver nonsense\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n\
                    options ndots:5 timeout:3 attempts:9 edns0 timeout:x\n";
        let found = parse(text);
        let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10", "fd00::10", "10.0.0.1"]);
        assert_eq!(found.search, ["demo.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!((found.timeout, found.attempts), (Duration::from_secs(3), 5));
        assert_eq!(parse(""), ResolvConf::default());
        assert_eq!(parse("search a\ndomain b").search, ["b"]);
        assert_eq!(parse("options timeout:0 attempts:0").timeout, Duration::from_secs(1));
    }
}
