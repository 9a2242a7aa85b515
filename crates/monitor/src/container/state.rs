//! What a container's monitor does about what happens. Pure: no clock, no disk, no process; the
//! loop in `run.rs` performs the actions, in order.
//!
//! ```text
//!  Creating ──▶ Created ──▶ Opening ──▶ Starting ──▶ Running
//!     │            │           └────────────┴───────────┤ init ended
//!     ▼            ▼                                    ▼
//!  Undoing         └──────────────────────────────▶ Draining ──▶ Flushing ──▶ Deleting ──▶ Exited
//!     └──────────────────────────▶ Gone ◀───────────────────────────┴── released ────────────┘
//! ```
//!
//! A container may end before the OCI runtime's `start` has returned: that end waits (`ended`)
//! until the answer to the daemon is known, so that Started comes before Exited.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// The daemon wants us gone: whatever is next, it ends in `Gone`.
    pub(super) releasing: bool,
    /// The node is shut down, or somebody signals all of the daemon's unit: nothing is killed for
    /// that, but there is nothing to stay for after the container's end. A daemon that comes finds
    /// the exit record.
    pub(super) leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The OCI runtime's `create` runs.
    Creating,
    /// It failed; what it left behind is being deleted.
    Undoing,
    Created,
    /// The log file is being opened.
    Opening {
        ended: bool,
    },
    /// The OCI runtime's `start` runs.
    Starting {
        ended: bool,
    },
    Running,
    /// Init is gone; what it wrote may still be in the pipes.
    Draining,
    /// All it wrote is in the ring, on its way to the log. As `Draining` and `Opening`, not for ever:
    /// the loop gives up a log that stands still.
    Flushing,
    /// The exit is recorded; the OCI runtime's `delete` runs.
    Deleting,
    Exited {
        deleted: bool,
    },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    CreateSucceeded,
    CreateFailed,
    StartAsked,
    LogOpened,
    LogRefused,
    StartSucceeded,
    StartFailed,
    InitEnded,
    Drained,
    /// Or the log was given up.
    Flushed,
    Deleted,
    DeleteFailed,
    ReleaseAsked,
    /// SIGTERM.
    LeaveAsked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    AnswerCreated,
    AnswerCreateFailed,
    /// Kills the OCI runtime that is creating.
    StopCreate,
    OpenLog,
    RunStart,
    AnswerStarted,
    AnswerStartFailed,
    /// SIGKILL for init and everything in its cgroup.
    KillAll,
    /// SIGKILL for whatever init left behind in its cgroup.
    KillRest,
    Drain,
    Flush,
    /// Writes the exit record, lets go of init's zombie, tells every daemon.
    RecordExit,
    RunDelete,
    AnswerRelease,
    Quit,
}

impl State {
    pub(super) fn new(phase: Phase) -> Self {
        Self { phase, releasing: false, leaving: false }
    }

    /// Decides what `event` calls for.
    pub(super) fn step(self, event: Event) -> (Self, &'static [Action]) {
        match event {
            Event::ReleaseAsked => return self.release(),
            Event::LeaveAsked => return self.leave(),
            _ => {}
        }
        let (phase, actions) = next(self, event);
        (Self { phase, ..self }, actions)
    }

    fn leave(self) -> (Self, &'static [Action]) {
        match self.phase {
            Phase::Exited { .. } => (Self { phase: Phase::Gone, ..self }, &[Action::Quit]),
            Phase::Gone => (self, &[]),
            Phase::Creating
            | Phase::Undoing
            | Phase::Created
            | Phase::Opening { .. }
            | Phase::Starting { .. }
            | Phase::Running
            | Phase::Draining
            | Phase::Flushing
            | Phase::Deleting => (Self { leaving: true, ..self }, &[]),
        }
    }

    fn release(self) -> (Self, &'static [Action]) {
        use Action::{AnswerRelease, KillAll, Quit, RunDelete, StopCreate};
        let (phase, actions): (Phase, &'static [Action]) = match self.phase {
            Phase::Creating => (self.phase, &[StopCreate]),
            Phase::Created | Phase::Running => (self.phase, &[KillAll]),
            Phase::Opening { ended: false } | Phase::Starting { ended: false } => {
                (self.phase, &[KillAll])
            }
            // On their way already.
            Phase::Opening { ended: true }
            | Phase::Starting { ended: true }
            | Phase::Undoing
            | Phase::Draining
            | Phase::Flushing
            | Phase::Deleting => (self.phase, &[]),
            Phase::Exited { deleted: true } => (Phase::Gone, &[AnswerRelease, Quit]),
            Phase::Exited { deleted: false } => (Phase::Deleting, &[RunDelete]),
            Phase::Gone => (Phase::Gone, &[]),
        };
        (Self { phase, releasing: true, ..self }, actions)
    }
}

fn next(State { phase, releasing, leaving }: State, event: Event) -> (Phase, &'static [Action]) {
    use Action::*;
    use Event::*;
    match (phase, event) {
        (Phase::Creating, CreateSucceeded) if releasing => {
            (Phase::Created, &[AnswerCreated, KillAll])
        }
        (Phase::Creating, CreateSucceeded) => (Phase::Created, &[AnswerCreated]),
        (Phase::Creating, CreateFailed) => (Phase::Undoing, &[RunDelete]),
        // Answered only now: after the answer nothing is left of the attempt.
        (Phase::Undoing, Deleted | DeleteFailed) => {
            (Phase::Gone, &[AnswerCreateFailed, AnswerRelease, Quit])
        }

        (Phase::Created, StartAsked) => (Phase::Opening { ended: false }, &[OpenLog]),
        (Phase::Created, InitEnded) => (Phase::Draining, &[KillRest, Drain]),

        (Phase::Opening { ended: false }, LogOpened) => {
            (Phase::Starting { ended: false }, &[RunStart])
        }
        (Phase::Opening { ended: false }, LogRefused) => (Phase::Created, &[AnswerStartFailed]),
        (Phase::Opening { .. }, InitEnded) => (Phase::Opening { ended: true }, &[]),
        (Phase::Opening { ended: true }, LogOpened | LogRefused) => {
            (Phase::Draining, &[AnswerStartFailed, KillRest, Drain])
        }

        (Phase::Starting { ended: false }, StartSucceeded) => (Phase::Running, &[AnswerStarted]),
        (Phase::Starting { ended: false }, StartFailed) => (Phase::Created, &[AnswerStartFailed]),
        (Phase::Starting { .. }, InitEnded) => (Phase::Starting { ended: true }, &[]),
        (Phase::Starting { ended: true }, StartSucceeded) => {
            (Phase::Draining, &[AnswerStarted, KillRest, Drain])
        }
        (Phase::Starting { ended: true }, StartFailed) => {
            (Phase::Draining, &[AnswerStartFailed, KillRest, Drain])
        }

        (Phase::Running, InitEnded) => (Phase::Draining, &[KillRest, Drain]),
        (Phase::Draining, Drained) => (Phase::Flushing, &[Flush]),
        // Only now: an exit that is told means that the log's last byte is in its file, or counted as
        // lost.
        (Phase::Flushing, Flushed) => (Phase::Deleting, &[RecordExit, RunDelete]),
        (Phase::Deleting, Deleted | DeleteFailed) if releasing => {
            (Phase::Gone, &[AnswerRelease, Quit])
        }
        (Phase::Deleting, Deleted | DeleteFailed) if leaving => (Phase::Gone, &[Quit]),
        (Phase::Deleting, Deleted) => (Phase::Exited { deleted: true }, &[]),
        (Phase::Deleting, DeleteFailed) => (Phase::Exited { deleted: false }, &[]),

        // Late, early or repeated news is dropped. A panic here would lose the container's exit.
        (
            Phase::Creating
            | Phase::Undoing
            | Phase::Created
            | Phase::Opening { .. }
            | Phase::Starting { .. }
            | Phase::Running
            | Phase::Draining
            | Phase::Flushing
            | Phase::Deleting
            | Phase::Exited { .. }
            | Phase::Gone,
            _,
        ) => (phase, &[]),
    }
}

#[cfg(test)]
mod tests;
