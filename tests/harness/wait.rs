//! Waiting for a state, with a deadline: what tests do instead of sleeping.
//!
//! A limit is what cria gets on a machine that has nothing else to do. One that is busy, or whose host
//! takes its processors away, has more processes waiting than it has processors: then everybody takes as
//! many times as long, and gets it.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// On a machine that is busier than that, nothing said in time means anything.
const SLOWEST: f64 = 4.0;

/// Asks `state` again and again until it answers; panics, naming `what`, once `limit` has passed.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, state: impl FnMut() -> Option<T>) -> T {
    within(limit, state).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// As [`until`], for those that go on when the state did not come.
pub fn within<T>(limit: Duration, mut state: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        // The last look begins after the limit.
        let is_last = is_over(limit, begun);
        if let Some(value) = state() {
            return Some(value);
        }
        if is_last {
            return None;
        }
        pause();
    }
}

/// Whether a wait that has `begun` then has lasted for `limit`.
pub fn is_over(limit: Duration, begun: Instant) -> bool {
    let waited = begun.elapsed();
    waited > limit && waited > limit.mul_f64(slowness())
}

/// How many times as long as on an idle machine everything takes now.
fn slowness() -> f64 {
    let load = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    slowness_of(&load, processors)
}

fn slowness_of(load: &str, processors: usize) -> f64 {
    let waiting = load.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0);
    let processors = u32::try_from(processors).map_or(f64::MAX, f64::from);
    f64::clamp(waiting / processors, 1.0, SLOWEST)
}

/// Lets `time` pass, for tests that choose the moment of a crash; no state is awaited so.
#[expect(clippy::disallowed_methods, reason = "time itself is what is awaited")]
pub fn after(time: Duration) {
    thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "this is the wait with a deadline")]
fn pause() {
    thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_stretched_where_more_wants_to_run_than_can() {
        for (load, processors, slowness) in [
            ("0.10 0.20 0.30 1/100 4321", 2, 1.0),
            ("3.00 0.20 0.30 1/100 4321", 2, 1.5),
            ("3.00 0.20 0.30 1/100 4321", 8, 1.0),
            ("99.9 0.20 0.30 1/100 4321", 2, SLOWEST),
            ("", 2, 1.0),
        ] {
            let found = slowness_of(load, processors);
            assert!((found - slowness).abs() < 1e-9, "{load} on {processors}: {found}");
        }
    }
}
