// SPDX-License-Identifier: Apache-2.0
//! What is remembered of host names: their addresses, and that they have none.
//!
//! Invariant: at most [`MAX_NAMES`] names; the one that ends first makes room.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::Name;

/// How many names are remembered.
pub const MAX_NAMES: usize = 4096;
/// How long it is remembered that a name has no address, or that nobody said so.
const NEGATIVE: Duration = Duration::from_secs(5);
/// What a name server says is believed for at least, and at most, this long.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_hours(1);

/// What name servers say of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its addresses; none if it has none, or if nobody answered.
    pub addresses: Vec<IpAddr>,
    /// How long that holds; of no addresses it is not asked.
    pub ttl: Duration,
}

/// The names that a host may be known by, in the order in which they are asked for: as it stands, then in each search domain.
/// A name that ends in a dot is complete. The C library begins with the search domains where a name has few dots; the control
/// plane's names are complete, and would be asked for in vain first.
pub fn names<'a>(host: &'a str, search: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let searched =
        search.iter().filter(|_| !host.ends_with('.')).map(move |domain| format!("{host}.{domain}"));
    std::iter::once(host.to_owned()).chain(searched)
}

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct Cache {
    names: HashMap<Name, (Instant, Vec<IpAddr>)>,
    by_end: BTreeSet<(Instant, Name)>,
}

impl Cache {
    /// The addresses of a host, if they are still known at `now`.
    #[must_use]
    pub fn get(&self, host: &str, now: Instant) -> Option<&[IpAddr]> {
        let (end, addresses) = self.names.get(host)?;
        (now < *end).then_some(addresses)
    }

    /// Remembers what was found at `now`.
    pub fn insert(&mut self, host: Name, found: Found, now: Instant) {
        let ttl = if found.addresses.is_empty() { NEGATIVE } else { found.ttl.clamp(SHORTEST, LONGEST) };
        let end = now + ttl;
        if let Some((earlier, _)) = self.names.insert(Name::clone(&host), (end, found.addresses)) {
            self.by_end.remove(&(earlier, Name::clone(&host)));
        }
        self.by_end.insert((end, host));
        while self.names.len() > MAX_NAMES {
            let Some((_, first)) = self.by_end.pop_first() else { return };
            self.names.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test needs a first instant")]
    fn first() -> Instant {
        Instant::now()
    }

    fn found(seconds: u64) -> Found {
        Found { addresses: vec!["10.0.0.1".parse().unwrap()], ttl: Duration::from_secs(seconds) }
    }

    #[test]
    fn an_answer_is_believed_as_long_as_it_says_within_reason() {
        let (now, mut cache) = (first(), Cache::default());
        for (host, answer, believed) in [
            ("plain", found(30), 30),
            ("zero", found(0), 1),
            ("ever", found(1 << 30), 3600),
            ("nothing", Found { addresses: vec![], ttl: Duration::from_secs(300) }, 5),
        ] {
            cache.insert(host.into(), answer.clone(), now);
            let just_before = now + Duration::from_secs(believed) - Duration::from_millis(1);
            assert_eq!(cache.get(host, just_before), Some(&*answer.addresses), "{host}");
            assert_eq!(cache.get(host, now + Duration::from_secs(believed)), None, "{host}");
        }
        assert_eq!(cache.get("unknown", now), None);
    }

    #[test]
    fn a_complete_name_is_not_searched_for() {
        let search = ["a.local".to_owned(), "local".to_owned()];
        assert_eq!(names("db", &search).collect::<Vec<_>>(), ["db", "db.a.local", "db.local"]);
        assert_eq!(names("db.", &search).collect::<Vec<_>>(), ["db."]);
    }

    #[test]
    fn no_more_than_so_many_names_are_remembered() {
        let (now, mut cache) = (first(), Cache::default());
        for number in 0..MAX_NAMES + 10 {
            let answer = found(1000 + u64::try_from(number).unwrap());
            cache.insert(format!("host{number}").into(), answer.clone(), now);
            cache.insert(format!("host{number}").into(), answer, now);
        }
        assert_eq!((cache.names.len(), cache.by_end.len()), (MAX_NAMES, MAX_NAMES));
        assert_eq!(cache.get("host9", now), None);
        assert!(cache.get("host10", now).is_some());
    }
}
