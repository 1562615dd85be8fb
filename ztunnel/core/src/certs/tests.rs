// SPDX-License-Identifier: Apache-2.0
//! The schedule as data: times in, requests out.

use std::collections::BTreeSet;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

fn id(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/demo/sa/{name}").parse().unwrap()
}

/// Any moment: the schedule has no clock of its own.
fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "a test needs one instant to count from")]
    *START.get_or_init(|| Instant::now() + 10 * HOUR)
}

fn life(now: Instant) -> Life {
    Life { renew_at: now + HOUR, ends_at: now + 2 * HOUR }
}

/// Everything that is to be sent now.
fn drain(schedule: &mut Schedule, now: Instant) -> Vec<Identity> {
    std::iter::from_fn(|| schedule.poll_fetch(now)).collect()
}

#[test]
fn an_identity_is_fetched_once_however_many_need_it() {
    let (mut schedule, now) = (Schedule::default(), start());
    for _ in 0..100 {
        schedule.hold(&id("web"), Priority::Warmup, now);
        schedule.demand(&id("web"), now);
    }
    assert_eq!(drain(&mut schedule, now), [id("web")]);
    assert_eq!(schedule.fetched(&id("web"), life(now)), Tenure::Kept);
    assert_eq!(drain(&mut schedule, now + HOUR - SECOND), []);
    assert_eq!(schedule.next_wake(), Some(now + HOUR));
    assert_eq!(drain(&mut schedule, now + HOUR), [id("web")], "renewed at half life");
}

#[test]
fn the_most_urgent_comes_first_then_the_oldest() {
    let (mut schedule, now) = (Schedule::default(), start());
    schedule.hold(&id("renewed"), Priority::Warmup, now);
    assert_eq!(drain(&mut schedule, now), [id("renewed")]);
    schedule.fetched(&id("renewed"), Life { renew_at: now, ends_at: now + HOUR });
    schedule.hold(&id("late"), Priority::Warmup, now + 2 * SECOND);
    schedule.hold(&id("early"), Priority::Warmup, now + SECOND);
    schedule.hold(&id("waited-for"), Priority::Warmup, now + 3 * SECOND);
    schedule.demand(&id("waited-for"), now + 3 * SECOND);
    let order = drain(&mut schedule, now + 3 * SECOND);
    assert_eq!(order, [id("waited-for"), id("early"), id("late"), id("renewed")]);
}

#[test]
fn no_more_than_eight_are_under_way() {
    let (mut schedule, now) = (Schedule::default(), start());
    for number in 0..20 {
        schedule.hold(&id(&format!("a{number}")), Priority::Warmup, now);
    }
    let first = drain(&mut schedule, now);
    assert_eq!(first.len(), MAX_IN_FLIGHT);
    assert_eq!(schedule.next_wake(), None, "nothing can be sent before one of them has ended");
    schedule.fetched(&first[0], life(now));
    schedule.failed(&first[1], now, 0);
    assert_eq!(drain(&mut schedule, now).len(), 2);
}

#[test]
fn a_failure_is_backed_off_from_and_a_handshake_does_not_force_it() {
    let (mut schedule, mut now) = (Schedule::default(), start());
    schedule.hold(&id("web"), Priority::RealTime, now);
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert_eq!(drain(&mut schedule, now), [id("web")]);
        let wait = schedule.failed(&id("web"), now, 200).unwrap();
        schedule.demand(&id("web"), now);
        assert_eq!(drain(&mut schedule, now + wait - Duration::from_millis(1)), []);
        now += wait;
        waits.push(wait.as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
    assert_eq!(drain(&mut schedule, now), [id("web")]);
    schedule.fetched(&id("web"), life(now));
    now += HOUR;
    assert_eq!(drain(&mut schedule, now), [id("web")]);
    assert_eq!(schedule.failed(&id("web"), now, 200), Some(SECOND), "success starts it anew");
}

#[test]
fn jitter_stays_within_a_fifth_and_fifteen_minutes_of_failing_give_a_constant() {
    let now = start();
    for (entropy, millis) in [(0, 800), (400, 1200), (401, 800)] {
        assert_eq!(Backoff::begin(now).next_wait(now, entropy), Duration::from_millis(millis));
    }
    let mut backoff = Backoff::begin(now);
    assert_eq!(backoff.next_wait(now + Duration::from_secs(900), 0), Duration::from_secs(150));
}

#[test]
fn a_failed_renewal_is_tried_again_when_the_certificate_ends_at_the_latest() {
    let (mut schedule, now) = (Schedule::default(), start());
    schedule.hold(&id("web"), Priority::Warmup, now);
    drain(&mut schedule, now);
    let ends_at = now + Duration::from_millis(500);
    schedule.fetched(&id("web"), Life { renew_at: now, ends_at });
    assert_eq!(drain(&mut schedule, now), [id("web")]);
    assert_eq!(schedule.failed(&id("web"), now, 200), Some(Duration::from_millis(500)));
    assert_eq!(schedule.next_wake(), Some(ends_at));
    assert_eq!(drain(&mut schedule, ends_at), [id("web")]);
    assert_eq!(
        schedule.failed(&id("web"), ends_at, 200),
        Some(2 * SECOND),
        "it is over: only backoff counts"
    );
}

#[test]
fn what_nobody_needs_is_forgotten_and_a_late_answer_thrown_away() {
    let (mut schedule, now) = (Schedule::default(), start());
    schedule.hold(&id("web"), Priority::Warmup, now);
    schedule.hold(&id("web"), Priority::Warmup, now);
    drain(&mut schedule, now);
    assert_eq!(schedule.release(&id("web")), Tenure::Kept);
    assert_eq!(schedule.release(&id("web")), Tenure::Unwanted);
    assert!(schedule.is_empty());
    assert_eq!(schedule.in_flight(), 1);
    assert_eq!(schedule.fetched(&id("web"), life(now)), Tenure::Unwanted);
    assert_eq!((schedule.in_flight(), schedule.next_wake()), (0, None));
    assert_eq!(schedule.release(&id("never-held")), Tenure::Unwanted);
}

#[test]
fn an_identity_that_is_needed_again_takes_the_answer_that_is_under_way() {
    let (mut schedule, now) = (Schedule::default(), start());
    schedule.hold(&id("web"), Priority::Warmup, now);
    drain(&mut schedule, now);
    schedule.release(&id("web"));
    schedule.hold(&id("web"), Priority::RealTime, now);
    assert_eq!(drain(&mut schedule, now), [], "never two requests for one identity");
    assert_eq!(schedule.fetched(&id("web"), life(now)), Tenure::Kept);
    assert_eq!(drain(&mut schedule, now), []);
}

#[test]
fn a_certificate_found_useless_before_its_time_is_fetched_at_once() {
    let (mut schedule, now) = (Schedule::default(), start());
    schedule.hold(&id("web"), Priority::Warmup, now);
    drain(&mut schedule, now);
    schedule.fetched(&id("web"), life(now));
    // The wall clock has jumped: the handshake sees what the schedule cannot.
    schedule.demand(&id("web"), now + SECOND);
    assert_eq!(drain(&mut schedule, now + SECOND), [id("web")]);
}

#[test]
fn a_certificate_is_renewed_at_half_life() {
    let (now, wall) = (start(), SystemTime::UNIX_EPOCH + 1000 * HOUR);
    let validity = Validity { not_before: wall - 2 * SECOND, not_after: wall + 24 * HOUR };
    let life = validity.life(wall, now).unwrap();
    assert_eq!(life, Life { renew_at: now + 12 * HOUR - SECOND, ends_at: now + 24 * HOUR });
}

#[test]
fn one_that_was_dated_back_beyond_its_half_is_not_renewed_in_a_loop() {
    let (now, wall) = (start(), SystemTime::UNIX_EPOCH + 1000 * HOUR);
    let dated_back = |left: Duration| Validity { not_before: wall - 2 * 60 * SECOND, not_after: wall + left };
    assert_eq!(dated_back(20 * SECOND).life(wall, now).unwrap().renew_at, now + 10 * SECOND);
    assert_eq!(dated_back(SECOND / 10).life(wall, now).unwrap().renew_at, now + SECOND);
}

#[test]
fn dates_that_make_no_sense_are_refused() {
    let (now, wall) = (start(), SystemTime::UNIX_EPOCH + 1000 * HOUR);
    let validity = |from: SystemTime, to: SystemTime| Validity { not_before: from, not_after: to };
    assert_eq!(validity(wall, wall - SECOND).life(wall, now), Err(DateError::Reversed));
    let expired = validity(wall - HOUR, wall - 3 * SECOND).life(wall, now).unwrap_err();
    assert_eq!(expired, DateError::Expired(3 * SECOND));
    assert!(expired.to_string().contains("expired 3s ago"), "{expired}");
    assert!(validity(wall - HOUR, wall).life(wall, now).is_err());
    assert!(validity(wall + HOUR, wall + 2 * HOUR).life(wall, now).is_ok(), "peers have clocks of their own");
    assert!(validity(SystemTime::UNIX_EPOCH, wall + 2_000_000 * HOUR).life(wall, now).is_ok());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Hold(usize),
    Release(usize),
    Demand(usize),
    Poll,
    End(usize, bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12_usize).prop_map(Step::Hold),
        (0..12_usize).prop_map(Step::Release),
        (0..12_usize).prop_map(Step::Demand),
        Just(Step::Poll),
        (0..8_usize, any::<bool>()).prop_map(|(which, good)| Step::End(which, good)),
        (0..5000_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens in whatever order: bounded, one per identity, and nothing needed is left without a next time.
    #[test]
    fn the_bounds_hold_in_any_order(steps in proptest::collection::vec(step(), 0..200)) {
        let (mut schedule, mut now) = (Schedule::default(), start());
        let mut users = [0_usize; 12];
        let mut flying: Vec<Identity> = Vec::new();
        let name = |number: usize| id(&format!("n{number}"));
        for step in steps {
            match step {
                Step::Hold(number) => {
                    users[number] += 1;
                    schedule.hold(&name(number), Priority::Warmup, now);
                }
                Step::Release(number) if users[number] > 0 => {
                    users[number] -= 1;
                    let gone = schedule.release(&name(number)) == Tenure::Unwanted;
                    prop_assert_eq!(gone, users[number] == 0);
                }
                Step::Release(_) => {}
                Step::Demand(number) => schedule.demand(&name(number), now),
                Step::Poll => flying.extend(schedule.poll_fetch(now)),
                Step::End(which, good) if which < flying.len() => {
                    let identity = flying.swap_remove(which);
                    let needed = (0..12).any(|number| users[number] > 0 && name(number) == identity);
                    if good {
                        prop_assert_eq!(schedule.fetched(&identity, life(now)) == Tenure::Kept, needed);
                    } else {
                        prop_assert_eq!(schedule.failed(&identity, now, 7).is_some(), needed);
                    }
                }
                Step::End(..) => {}
                Step::Pass(millis) => now += Duration::from_millis(millis),
            }
            prop_assert!(flying.len() <= MAX_IN_FLIGHT);
            prop_assert_eq!(flying.len(), schedule.in_flight());
            prop_assert_eq!(flying.iter().collect::<BTreeSet<_>>().len(), flying.len());
            prop_assert_eq!(schedule.len(), users.iter().filter(|users| **users > 0).count());
            let idle = (0..12).any(|number| users[number] > 0 && !flying.contains(&name(number)));
            prop_assert!(!idle || flying.len() == MAX_IN_FLIGHT || schedule.next_wake().is_some());
        }
    }
}
