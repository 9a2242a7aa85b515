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
    /// All it wrote is in the ring, on its way to the log.
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
    Flushed,
    Deleted,
    DeleteFailed,
    ReleaseAsked,
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
        Self { phase, releasing: false }
    }

    /// Decides what `event` calls for.
    pub(super) fn step(self, event: Event) -> (Self, &'static [Action]) {
        if event == Event::ReleaseAsked {
            return self.release();
        }
        let (phase, actions) = next(self, event);
        (Self { phase, ..self }, actions)
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
        (Self { phase, releasing: true }, actions)
    }
}

fn next(State { phase, releasing }: State, event: Event) -> (Phase, &'static [Action]) {
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
        // Only now: an exit that is told means that the log's last byte is in its file.
        (Phase::Flushing, Flushed) => (Phase::Deleting, &[RecordExit, RunDelete]),
        (Phase::Deleting, Deleted | DeleteFailed) if releasing => {
            (Phase::Gone, &[AnswerRelease, Quit])
        }
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
mod tests {
    use super::*;

    const EVENTS: [Event; 13] = [
        Event::CreateSucceeded,
        Event::CreateFailed,
        Event::StartAsked,
        Event::LogOpened,
        Event::LogRefused,
        Event::StartSucceeded,
        Event::StartFailed,
        Event::InitEnded,
        Event::Drained,
        Event::Flushed,
        Event::Deleted,
        Event::DeleteFailed,
        Event::ReleaseAsked,
    ];

    /// Everything done when `events` come in this order.
    fn run(start: State, events: &[Event]) -> (State, Vec<Action>) {
        let mut done = vec![];
        let state = events.iter().fold(start, |state, event| {
            let (state, actions) = state.step(*event);
            done.extend(actions);
            state
        });
        (state, done)
    }

    fn place(done: &[Action], action: Action) -> Option<usize> {
        done.iter().position(|found| *found == action)
    }

    /// Every state that any order of any events can lead to, with every way of getting there
    /// that does not pass a state twice.
    fn every_path(visit: &mut impl FnMut(&[Event], State, &[Action])) {
        fn go(
            path: &mut Vec<Event>,
            seen: &mut Vec<State>,
            visit: &mut impl FnMut(&[Event], State, &[Action]),
        ) {
            for event in EVENTS {
                path.push(event);
                let (state, done) = run(State::new(Phase::Creating), path);
                visit(path, state, &done);
                if !seen.contains(&state) {
                    seen.push(state);
                    go(path, seen, visit);
                    seen.pop();
                }
                path.pop();
            }
        }
        let start = State::new(Phase::Creating);
        go(&mut vec![], &mut vec![start], visit);
    }

    #[test]
    fn a_container_s_life_without_incident() {
        use Action::*;
        use Event::*;
        let life = [
            CreateSucceeded,
            StartAsked,
            LogOpened,
            StartSucceeded,
            InitEnded,
            Drained,
            Flushed,
            Deleted,
            ReleaseAsked,
        ];
        let (state, done) = run(State::new(Phase::Creating), &life);
        assert_eq!(state.phase, Phase::Gone);
        let expected = [
            AnswerCreated,
            OpenLog,
            RunStart,
            AnswerStarted,
            KillRest,
            Drain,
            Flush,
            RecordExit,
            RunDelete,
            AnswerRelease,
            Quit,
        ];
        assert_eq!(done, expected);
    }

    #[test]
    fn in_every_order_answers_come_once_and_the_exit_is_recorded_before_it_is_deleted() {
        let mut paths = 0;
        every_path(&mut |path, state, done| {
            paths += 1;
            let count = |action| done.iter().filter(|found| **found == action).count();
            for once in [
                Action::AnswerCreated,
                Action::AnswerCreateFailed,
                Action::RecordExit,
                Action::Drain,
                Action::Flush,
                Action::KillRest,
                Action::AnswerStarted,
                Action::Quit,
            ] {
                assert!(count(once) <= 1, "{path:?}: {once:?} twice");
            }
            assert!(count(Action::AnswerCreated) + count(Action::AnswerCreateFailed) <= 1);
            // A start is answered once, whatever became of it.
            let answered = count(Action::AnswerStarted) + count(Action::AnswerStartFailed);
            let pending = matches!(state.phase, Phase::Opening { .. } | Phase::Starting { .. });
            assert_eq!(count(Action::OpenLog), answered + usize::from(pending), "{path:?}");
            // Killed, drained, flushed, recorded, deleted: in this order.
            let order = [Action::KillRest, Action::Drain, Action::Flush, Action::RecordExit];
            let places: Vec<_> = order.iter().filter_map(|action| place(done, *action)).collect();
            assert!(places.is_sorted(), "{path:?}");
            if count(Action::AnswerCreated) == 1 {
                let (recorded, deleted) =
                    (place(done, Action::RecordExit), place(done, Action::RunDelete));
                assert!(deleted.is_none() || recorded < deleted, "{path:?}");
                assert!(deleted.is_none() || recorded.is_some(), "{path:?}");
            }
            // Gone means that somebody wanted it, or that there never was a container; and the
            // last thing done is to quit.
            if state.phase == Phase::Gone {
                assert_eq!(done.last(), Some(&Action::Quit), "{path:?}");
                assert!(state.releasing || count(Action::AnswerCreateFailed) == 1, "{path:?}");
            } else {
                assert_eq!(count(Action::Quit), 0, "{path:?}");
            }
        });
        assert!(paths > 4_000, "only {paths} paths");
    }

    /// What may come next in a phase, once everything has been killed.
    fn to_come(phase: Phase) -> &'static [Event] {
        match phase {
            Phase::Creating => &[Event::CreateSucceeded, Event::CreateFailed],
            Phase::Created | Phase::Running => &[Event::InitEnded],
            Phase::Opening { ended: false } => {
                &[Event::LogOpened, Event::LogRefused, Event::InitEnded]
            }
            Phase::Opening { ended: true } => &[Event::LogOpened, Event::LogRefused],
            Phase::Starting { ended: false } => {
                &[Event::StartSucceeded, Event::StartFailed, Event::InitEnded]
            }
            Phase::Starting { ended: true } => &[Event::StartSucceeded, Event::StartFailed],
            Phase::Draining => &[Event::Drained],
            Phase::Flushing => &[Event::Flushed],
            Phase::Undoing | Phase::Deleting => &[Event::Deleted, Event::DeleteFailed],
            Phase::Exited { .. } | Phase::Gone => &[],
        }
    }

    fn ends(state: State, steps: usize) {
        assert!(steps > 0, "still {state:?}");
        if state.phase != Phase::Gone {
            assert!(!to_come(state.phase).is_empty(), "stuck in {state:?}");
        }
        for event in to_come(state.phase) {
            ends(state.step(*event).0, steps - 1);
        }
    }

    #[test]
    fn whatever_happened_a_release_kills_what_lives_and_leads_to_the_end() {
        every_path(&mut |path, state, _| {
            let lives = matches!(
                state.phase,
                Phase::Created
                    | Phase::Running
                    | Phase::Opening { ended: false }
                    | Phase::Starting { ended: false }
            );
            let (state, actions) = state.step(Event::ReleaseAsked);
            assert_eq!(actions.contains(&Action::KillAll), lives, "{path:?}");
            ends(state, 12);
        });
    }

    #[test]
    fn news_that_fits_no_phase_changes_nothing() {
        let phases = [
            (Phase::Creating, vec![Event::CreateSucceeded, Event::CreateFailed]),
            (Phase::Undoing, vec![Event::Deleted, Event::DeleteFailed]),
            (Phase::Created, vec![Event::StartAsked, Event::InitEnded]),
            (
                Phase::Opening { ended: false },
                vec![Event::LogOpened, Event::LogRefused, Event::InitEnded],
            ),
            (Phase::Opening { ended: true }, vec![Event::LogOpened, Event::LogRefused]),
            (
                Phase::Starting { ended: false },
                vec![Event::StartSucceeded, Event::StartFailed, Event::InitEnded],
            ),
            (Phase::Starting { ended: true }, vec![Event::StartSucceeded, Event::StartFailed]),
            (Phase::Running, vec![Event::InitEnded]),
            (Phase::Draining, vec![Event::Drained]),
            (Phase::Flushing, vec![Event::Flushed]),
            (Phase::Deleting, vec![Event::Deleted, Event::DeleteFailed]),
            (Phase::Exited { deleted: true }, vec![]),
            (Phase::Exited { deleted: false }, vec![]),
            (Phase::Gone, vec![]),
        ];
        for (phase, fitting) in phases {
            for event in EVENTS.into_iter().filter(|event| *event != Event::ReleaseAsked) {
                let before = State::new(phase);
                let (after, actions) = before.step(event);
                let changes = after != before || !actions.is_empty();
                assert_eq!(changes, fitting.contains(&event), "{phase:?} {event:?}");
            }
        }
    }
}
