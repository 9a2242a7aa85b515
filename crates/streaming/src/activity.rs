//! When something was last said in a session, by either side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

pub(crate) struct Activity {
    begun: Instant,
    /// Milliseconds after the beginning.
    last: AtomicU64,
    limit: Duration,
}

impl Activity {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0), limit }
    }

    pub(crate) fn note(&self) {
        let last = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(last, Ordering::Relaxed);
    }

    /// Returns once nothing was said for too long.
    pub(crate) async fn ceased(&self) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let until = self.begun + last + self.limit;
            if until <= Instant::now() {
                return debug!("the session was idle for too long");
            }
            sleep_until(until).await;
        }
    }
}
