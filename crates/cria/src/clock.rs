//! The time as the CRI counts it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    ns_of(SystemTime::now())
}

/// How long it is until `at_ns`; nothing if it is past.
pub(crate) fn until(at_ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(at_ns.saturating_sub(now_ns())).unwrap_or(0))
}

/// The time `after` from now, without ever running over.
pub(crate) fn ns_after(after: Duration) -> i64 {
    now_ns().saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX))
}

pub(crate) fn ns_of(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).expect("i64 lasts until 2262")
}
