//! Waiting for a state, with a deadline: what tests do instead of sleeping.

use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// Asks `state` again and again until it answers; panics, naming `what`, once `limit` has passed.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, state: impl FnMut() -> Option<T>) -> T {
    within(limit, state).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// As [`until`], for those that go on when the state did not come.
pub fn within<T>(limit: Duration, mut state: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = state() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        pause();
    }
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
