// SPDX-License-Identifier: Apache-2.0
//! Clients from elsewhere: each address has a few places, so that nobody takes all of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::rc::Rc;

/// Connections of one address at the same time. A Prometheus has one, a browser six.
const PER_ADDRESS: usize = 16;

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
pub(super) struct Guests(Rc<RefCell<HashMap<IpAddr, usize>>>);

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Guest(Option<(Guests, IpAddr)>);

impl Guests {
    /// A place for a client, unless its address has all that it may have. Those of this host are not counted.
    pub(super) fn admit(&self, from: Option<IpAddr>) -> Option<Guest> {
        let Some(address) =
            from.map(|address| address.to_canonical()).filter(|address| !address.is_loopback())
        else {
            return Some(Guest(None));
        };
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(address).or_default();
        if *count == PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Guest(Some((self.clone(), address))))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some((guests, address)) = self.0.take() else { return };
        if let Entry::Occupied(mut count) = guests.0.borrow_mut().entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_has_all_its_places_takes_nobody_elses() {
        let guests = Guests::default();
        let greedy: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let mut places: Vec<Guest> = (0..PER_ADDRESS).map(|_| guests.admit(Some(greedy)).unwrap()).collect();
        assert!(guests.admit(Some(greedy)).is_none());
        assert!(guests.admit("10.0.0.1".parse().ok()).is_none(), "the same one");
        assert!(guests.admit("10.0.0.2".parse().ok()).is_some());
        places.pop();
        assert!(guests.admit(Some(greedy)).is_some());
        places.clear();
        assert!(guests.0.borrow().is_empty(), "nobody is remembered");
    }

    #[test]
    fn this_host_is_not_counted() {
        let guests = Guests::default();
        for from in [None, "127.0.0.1".parse().ok(), "::1".parse().ok()] {
            let places: Vec<_> = (0..2 * PER_ADDRESS).map(|_| guests.admit(from)).collect();
            assert!(places.iter().all(Option::is_some), "{from:?}");
        }
        assert!(guests.0.borrow().is_empty());
    }
}
