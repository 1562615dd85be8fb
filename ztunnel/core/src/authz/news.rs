// SPDX-License-Identifier: Apache-2.0
//! What is worth a line in the log: the first connection that meets an unknown policy, not every one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::Name;

/// The same is news again after this long.
const AGAIN: Duration = Duration::from_secs(600);
/// Pairs of workload and policy that are remembered; beyond them nothing is news.
const MOST: usize = 1024;

/// Which unknown policies of which workloads were reported lately.
#[derive(Debug, Default)]
pub struct News(HashMap<(Name, Name), Instant>);

impl News {
    /// True if it was not reported within the last ten minutes that this workload names this unknown policy. Then it
    /// is to be reported now.
    pub fn is_news(&mut self, workload: &Name, policy: &Name, now: Instant) -> bool {
        let subject = (Name::clone(workload), Name::clone(policy));
        let is_old = |said: &Instant| now.saturating_duration_since(*said) >= AGAIN;
        if self.0.len() >= MOST && !self.0.contains_key(&subject) {
            self.0.retain(|_, said| !is_old(said));
            if self.0.len() >= MOST {
                return false;
            }
        }
        let said = self.0.get(&subject);
        let news = said.is_none_or(is_old);
        if news {
            self.0.insert(subject, now);
        }
        news
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_workload_and_policy_and_ten_minutes() {
        let start = Instant::now();
        let mut news = News::default();
        let mut says = |workload: &str, policy: &str, seconds: u64| {
            news.is_news(&workload.into(), &policy.into(), start + Duration::from_secs(seconds))
        };
        assert!(says("web", "shop/a", 0));
        assert!(!says("web", "shop/a", 599));
        assert!(says("web", "shop/b", 599));
        assert!(says("db", "shop/a", 599));
        assert!(says("web", "shop/a", 600));
        assert!(!says("web", "shop/a", 1100));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_old_makes_room() {
        let start = Instant::now();
        let mut news = News::default();
        let mut says =
            |number: usize, at: Instant| news.is_news(&"w".into(), &format!("n/{number}").into(), at);
        assert!((0..MOST).all(|number| says(number, start)));
        assert!(!says(MOST, start));
        assert!(!says(0, start));
        assert!(says(MOST, start + AGAIN));
        assert_eq!(news.0.len(), 1);
    }
}
