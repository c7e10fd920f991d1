//! Waiting for a condition, with a deadline: nothing here waits for a time.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

const POLL: Duration = Duration::from_millis(25);

/// The lab's one clock.
#[expect(clippy::disallowed_methods, reason = "the lab waits for real kernels: it is wiring")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds on the clock that all processes of a machine share, as the pods' applications write it down.
pub fn monotonic() -> f64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// Seconds.
pub const DAY: f64 = 86_400.0;

/// Seconds since midnight, UTC, on the clock that the agent's events are told by.
pub fn time_of_day() -> f64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0.0, |time| Duration::from(time).as_secs_f64()).rem_euclid(DAY)
}

/// The same of a time like 2023-11-14T22:13:20.250Z.
pub fn time_in(at: &str) -> Option<f64> {
    let mut parts = at.strip_suffix('Z')?.split_once('T')?.1.split(':');
    let (hours, minutes): (f64, f64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Asks until there is an answer; `None` when the deadline has passed without one.
pub fn poll<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if now() >= end {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Waits until `look` answers `Ok`; panics at the deadline with what it said last.
#[track_caller]
pub fn eventually<T, E: Debug>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let mut last = None;
    match poll(deadline, || look().map_err(|seen| last = Some(seen)).ok()) {
        Some(answer) => answer,
        None => panic!("{what}: not within {deadline:?}; last seen: {last:?}"),
    }
}

/// Watches for the whole of `time` and panics as soon as `check` objects. For promises that say "never".
#[track_caller]
pub fn throughout<E: Debug>(what: &str, time: Duration, mut check: impl FnMut() -> Result<(), E>) {
    let objection = poll(time, || check().err());
    if let Some(seen) = objection {
        panic!("{what}: broken; seen: {seen:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_event_is_understood() {
        assert_eq!(time_in("2023-11-14T22:13:20.250Z"), Some(80_000.25));
        assert_eq!(time_in("soon"), None);
    }

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut asked = 0;
        let answer = eventually("third time", seconds(5), || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(asked) }
        });
        assert_eq!(answer, 3);
    }

    #[test]
    #[should_panic(expected = "last seen: Some(\"no\")")]
    fn the_deadline_tells_what_was_seen_last() {
        eventually::<(), _>("never", Duration::ZERO, || Err("no"));
    }

    #[test]
    #[should_panic(expected = "broken")]
    fn an_objection_ends_the_watch() {
        throughout("always", seconds(5), || Err("broken"));
    }
}
