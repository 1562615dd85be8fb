// SPDX-License-Identifier: Apache-2.0
//! Names that are asked for one by one, where the mesh is not subscribed to as a whole.
//!
//! A name is asked for once. Its answer is the resource, under its name or an alias, or its removal; from then on the
//! control plane says by itself what becomes of it, so asking again would get no answer, and none is needed.
//!
//! Invariant: as many names as [`MAX_NAMES`] are remembered, whatever applications connect to.

use std::collections::HashMap;

use crate::Name;

/// Room for names. When it is full, those that stand for nothing are given up.
pub const MAX_NAMES: usize = 16_384;

/// What became of asking for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The answer is on its way.
    Waiting,
    /// The control plane has answered already: what the mesh says is all there is.
    Answered,
    /// There is no room, or no demand is needed: the whole mesh is subscribed to.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    Present,
    Absent,
}

/// All names that were asked for.
#[derive(Debug, Default)]
pub(super) struct Demands {
    names: HashMap<Name, Answer>,
}

/// What has to be sent for a demand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Subscribe {
    pub(super) names: Vec<String>,
    pub(super) give_up: Vec<String>,
}

impl Demands {
    /// Asks for a name. Gives what has to be sent, if anything.
    pub(super) fn ask(&mut self, name: &str) -> (Asked, Option<Subscribe>) {
        match self.names.get(name) {
            Some(Answer::Awaited) => return (Asked::Waiting, None),
            Some(Answer::Present | Answer::Absent) => return (Asked::Answered, None),
            None => {}
        }
        let mut give_up = Vec::new();
        if self.names.len() >= MAX_NAMES {
            self.names.retain(|name, answer| {
                let keep = *answer != Answer::Absent;
                if !keep {
                    give_up.push(name.to_string());
                }
                keep
            });
        }
        if self.names.len() >= MAX_NAMES {
            return (Asked::Refused, None);
        }
        self.names.insert(name.into(), Answer::Awaited);
        (Asked::Waiting, Some(Subscribe { names: vec![name.to_owned()], give_up }))
    }

    /// The control plane has sent something of this name. True if somebody may be waiting for it.
    pub(super) fn is_present(&mut self, name: &str) -> bool {
        self.answer(name, Answer::Present)
    }

    /// The control plane has said that there is nothing of this name.
    pub(super) fn is_absent(&mut self, name: &str) -> bool {
        self.answer(name, Answer::Absent)
    }

    fn answer(&mut self, name: &str, answer: Answer) -> bool {
        let Some(known) = self.names.get_mut(name) else { return false };
        let waiting = *known == Answer::Awaited;
        *known = answer;
        waiting
    }

    /// A new stream: nothing is known to be absent that nobody has said on it.
    pub(super) fn restart(&mut self) {
        for answer in self.names.values_mut().filter(|answer| **answer == Answer::Absent) {
            *answer = Answer::Awaited;
        }
    }

    /// Every name.
    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_once_and_its_answer_is_final() {
        let mut demands = Demands::default();
        let subscribe = Subscribe { names: vec!["/10.0.0.1".to_owned()], give_up: Vec::new() };
        assert_eq!(demands.ask("/10.0.0.1"), (Asked::Waiting, Some(subscribe)));
        assert_eq!(demands.ask("/10.0.0.1"), (Asked::Waiting, None));
        assert!(!demands.is_present("/10.0.0.2"), "nobody asked");
        assert!(demands.is_absent("/10.0.0.1"));
        assert!(!demands.is_present("/10.0.0.1"), "nobody waits any more");
        assert_eq!(demands.ask("/10.0.0.1"), (Asked::Answered, None));
    }

    #[test]
    fn when_there_is_no_room_the_names_that_stand_for_nothing_go() {
        let mut demands = Demands::default();
        for place in 0..MAX_NAMES {
            demands.ask(&place.to_string());
        }
        assert_eq!(demands.ask("one more"), (Asked::Refused, None));
        assert!(demands.is_absent("7") && demands.is_present("8"));
        let (asked, subscribe) = demands.ask("one more");
        assert_eq!((asked, subscribe.unwrap().give_up), (Asked::Waiting, vec!["7".to_owned()]));
        assert_eq!(demands.names().count(), MAX_NAMES);
    }
}
