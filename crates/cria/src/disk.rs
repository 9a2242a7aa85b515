//! What containers take of the disk.
//!
//! A writable layer can be measured only by looking at all of it. That is done behind the RPCs
//! that ask, one layer at a time, and the less often the longer it takes; they get the last
//! measurement.

mod measure;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;
use tracing::debug;

pub(crate) use self::measure::Usage;

/// No layer is measured more often.
const INTERVAL: Duration = Duration::from_secs(10);

/// At most this share of the time goes into measuring one layer.
const PAUSE_PER_WORK: u32 = 20;

/// Measures writable layers; one for the daemon.
#[derive(Clone, Debug)]
pub(crate) struct DiskMeter {
    /// One walk at a time, so that many containers do not make a storm.
    turn: Arc<Semaphore>,
}

/// The writable layer of one container.
#[derive(Debug)]
pub(crate) struct DiskUsage {
    dir: PathBuf,
    turn: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) usage: Usage,
    pub(crate) at: SystemTime,
}

#[derive(Debug)]
struct State {
    last: Option<Measured>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// A measurement is asked for or under way.
    Pending,
    NotBefore(Instant),
}

impl DiskMeter {
    pub(crate) fn new() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)) }
    }

    /// `dir` is the upper directory of the container's overlay.
    pub(crate) fn layer(&self, dir: PathBuf) -> Arc<DiskUsage> {
        let state = State { last: None, next: Next::NotBefore(Instant::now()) };
        Arc::new(DiskUsage { dir, turn: Arc::clone(&self.turn), state: Mutex::new(state) })
    }
}

impl DiskUsage {
    /// The last measurement, if there is one; asks for the next when that is due. Never waits.
    pub(crate) fn get(self: &Arc<Self>) -> Option<Measured> {
        let mut state = self.state();
        if let Next::NotBefore(due) = state.next
            && Instant::now() >= due
        {
            state.next = Next::Pending;
            tokio::spawn(Arc::clone(self).refresh());
        }
        state.last
    }

    async fn refresh(self: Arc<Self>) {
        // The semaphore is never closed; if it were, there would be nothing left to measure.
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return };
        let dir = self.dir.clone();
        let start = Instant::now();
        let usage = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            measure::usage(&dir)
        })
        .await
        .map_err(io::Error::other)
        .and_then(|usage| usage);
        self.note(start, usage);
    }

    fn note(&self, start: Instant, usage: io::Result<Usage>) {
        let pause = INTERVAL.max(start.elapsed() * PAUSE_PER_WORK);
        let mut state = self.state();
        state.next = Next::NotBefore(Instant::now() + pause);
        match usage {
            Ok(usage) => state.last = Some(Measured { usage, at: SystemTime::now() }),
            // The container is being removed, most likely; what was known stays known.
            Err(error) => debug!(%error, "writable layer not measured"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn measured(layer: &Arc<DiskUsage>, wanted: impl Fn(Option<Measured>) -> bool) {
        let seen = async {
            while !wanted(layer.get()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
    }

    #[tokio::test]
    async fn asking_never_waits_and_is_answered_from_the_last_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let layer = DiskMeter::new().layer(dir.path().into());
        assert_eq!(layer.get(), None);
        measured(&layer, |last| last.is_some()).await;
        let first = layer.get().unwrap();
        assert_eq!(first.usage.inodes, 1);

        fs_err::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(layer.get(), Some(first), "not due yet");
        layer.state().next = Next::NotBefore(Instant::now());
        measured(&layer, |last| last.unwrap().usage.inodes == 2).await;
    }

    #[tokio::test]
    async fn a_layer_that_is_gone_keeps_its_last_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let layer = DiskMeter::new().layer(dir.path().into());
        measured(&layer, |last| last.is_some()).await;
        let last = layer.get();
        drop(dir);
        layer.state().next = Next::NotBefore(Instant::now());
        assert_eq!(layer.get(), last);
        let pending = || matches!(layer.state().next, Next::Pending);
        while pending() {
            tokio::task::yield_now().await;
        }
        assert_eq!(layer.get(), last);
    }

    #[test]
    fn the_next_measurement_waits_in_proportion_to_the_last() {
        let layer = DiskMeter::new().layer("/absent".into());
        let due = |layer: &DiskUsage| match layer.state().next {
            Next::NotBefore(due) => due.saturating_duration_since(Instant::now()),
            Next::Pending => unreachable!("it was noted"),
        };
        layer.note(Instant::now(), Ok(Usage::default()));
        assert!(due(&layer) <= INTERVAL && due(&layer) > INTERVAL / 2);
        let slow = Duration::from_secs(3);
        layer.note(Instant::now().checked_sub(slow).unwrap(), Ok(Usage::default()));
        assert!(due(&layer) > slow * (PAUSE_PER_WORK - 1));
    }
}
