//! StopContainer: a state with a deadline, not a held lock.
//!
//! The first call starts one task that sends the signal, waits, and kills at the deadline; a later
//! call can only bring the deadline forward. Everybody waits for the same thing: the exit, taken
//! in. Meanwhile status, stats, exec and log reopening work as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cria_monitor::protocol::{Request, SignalScope, Target};
use rustix::process::pidfd_send_signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Container;
use super::state::{Exited, State};
use crate::clock;
use crate::error::Error;
use crate::monitor::MonitorError;

/// How long a monitor may take to send a signal.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

/// A killed process goes at once, unless the kernel holds it: then it is asked again, less and
/// less often.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// The longest grace that counts: a deadline must fit the clock.
const LONGEST_GRACE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(super) struct Stopping {
    deadline: watch::Sender<Option<Instant>>,
    /// Whether the task runs.
    begun: AtomicBool,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { deadline: watch::Sender::new(None), begun: AtomicBool::new(false) }
    }
}

impl Stopping {
    /// Brings the deadline forward; false if the one that stands is earlier.
    fn shorten(&self, to: Instant) -> bool {
        self.deadline.send_if_modified(|deadline| {
            let earlier = deadline.is_none_or(|deadline| to < deadline);
            if earlier {
                *deadline = Some(to);
            }
            earlier
        })
    }
}

impl Container {
    /// Idempotent. Answers when the exit has been taken in: every later status shows it.
    pub(crate) async fn stop(self: &Arc<Self>, grace: Duration) -> Result<(), Error> {
        let grace = grace.min(LONGEST_GRACE);
        let mut record = self.record.subscribe();
        if record.borrow().state.is_exited() {
            return Ok(());
        }
        let sooner = self.stopping.shorten(Instant::now() + grace);
        let begun = self.stopping.begun.swap(true, Ordering::AcqRel);
        // Tasks, which go on when the caller does not.
        let container = Arc::clone(self);
        match (begun, sooner) {
            (false, _) => drop(tokio::spawn(async move {
                container.note_deadline().await;
                container.end().await;
            })),
            (true, true) => drop(tokio::spawn(async move { container.note_deadline().await })),
            (true, false) => {}
        }
        let exited = record.wait_for(|record| record.state.is_exited()).await;
        exited.map(drop).map_err(|closed| Error::internal("await the container's end", closed))
    }

    /// A restarted daemon continues the stop.
    async fn note_deadline(&self) {
        let noted = self.record.note(|record| {
            let deadline = *self.stopping.deadline.borrow();
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if !record.state.is_exited() {
                record.stop_deadline_ns = left.map(clock::ns_after);
            }
        });
        if let Err(error) = noted.await {
            tracing::warn!(container = %self.id, %error, "cannot write the record");
        }
    }

    async fn end(&self) {
        match self.state() {
            State::Exited(_) => return,
            // No process was ever made.
            State::Created { broken: Some(message) } => {
                self.note_exited(Exited::never_started(message, clock::now_ns())).await;
                return;
            }
            // It waits to be started and handles no signal: killed at once.
            State::Created { broken: None } => {}
            State::Running { .. } => {
                let signal = self.record.get().stop_signal;
                self.signal(signal, SignalScope::Process).await;
                self.await_end_or_deadline().await;
            }
        }
        self.kill_until_it_ends().await;
    }

    async fn await_end_or_deadline(&self) {
        let mut record = self.record.subscribe();
        let mut deadline = self.stopping.deadline.subscribe();
        let ended = record.wait_for(|record| record.state.is_exited());
        tokio::pin!(ended);
        loop {
            let at = deadline.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                _ = &mut ended => return,
                () = sleep_until(at) => return,
                // A later call brought it forward.
                _ = deadline.changed() => {}
            }
        }
    }

    async fn kill_until_it_ends(&self) {
        let mut record = self.record.subscribe();
        let mut patience = FIRST_PATIENCE;
        while !record.borrow().state.is_exited() {
            self.kill().await;
            let ended = record.wait_for(|record| record.state.is_exited());
            if timeout(patience, ended).await.is_err() {
                tracing::warn!(container = %self.id, ?patience, "a killed container does not end");
                patience = (patience * 2).min(LAST_PATIENCE);
            }
        }
    }

    /// Init, and with it everything in its PID namespace; the whole cgroup where that is shared.
    async fn kill(&self) {
        self.held().killed = true;
        let scope = match self.record.get().own_pid_namespace {
            true => SignalScope::Process,
            false => SignalScope::Group,
        };
        self.signal(libc::SIGKILL, scope).await;
    }

    /// Through the monitor, which notes that it was us; past it if it does not answer.
    async fn signal(&self, signal: i32, scope: SignalScope) {
        let request = Request::Signal { target: Target::Init, signal, scope };
        let Some(monitor) = self.monitor() else { return self.signal_directly(signal) };
        match monitor.tell(request, SIGNAL_DEADLINE).await {
            Ok(()) => return,
            // It quits when the container has ended.
            Err(MonitorError::Gone) => {}
            Err(error) => {
                tracing::warn!(container = %self.id, error = crate::error::chain(&error), "the monitor sent no signal");
            }
        }
        self.signal_directly(signal);
    }

    fn signal_directly(&self, signal: i32) {
        let held = self.held();
        let signal = rustix::process::Signal::from_named_raw(signal);
        if let (Some(init), Some(signal)) = (&held.descriptors.init, signal) {
            // It may have ended by now: then its end is on its way to us.
            let _ = pidfd_send_signal(init, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_call_can_only_bring_the_deadline_forward() {
        let (stopping, now) = (Stopping::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        for (to, taken, stands) in [(30, true, 30), (60, false, 30), (30, false, 30), (5, true, 5)]
        {
            assert_eq!(stopping.shorten(after(to)), taken, "{to}");
            assert_eq!(*stopping.deadline.borrow(), Some(after(stands)), "{to}");
        }
    }
}
