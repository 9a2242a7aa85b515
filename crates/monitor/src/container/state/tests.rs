//! Every order of every event, and what must hold in all of them.

use super::*;

const EVENTS: [Event; 14] = [
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
    Event::LeaveAsked,
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
            let wanted = state.releasing || path.contains(&Event::LeaveAsked);
            assert!(wanted || count(Action::AnswerCreateFailed) == 1, "{path:?}");
            assert!(state.releasing || count(Action::KillAll) == 0, "{path:?}");
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
        Phase::Opening { ended: false } => &[Event::LogOpened, Event::LogRefused, Event::InitEnded],
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
fn one_that_is_to_leave_kills_nothing_and_stays_for_the_containers_end() {
    every_path(&mut |path, state, _| {
        let (left, actions) = state.step(Event::LeaveAsked);
        let ended = matches!(state.phase, Phase::Exited { .. });
        assert_eq!(actions, if ended { &[Action::Quit][..] } else { &[] }, "{path:?}");
        let stays = !ended && state.phase != Phase::Gone;
        assert_eq!((left.phase != Phase::Gone, left.leaving), (stays, stays || state.leaving));
        for event in to_come(Phase::Deleting) {
            let deleting = State { phase: Phase::Deleting, ..left };
            let gone = deleting.step(*event).0.phase == Phase::Gone;
            assert_eq!(gone, deleting.leaving || deleting.releasing, "{path:?}");
        }
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
        let asked = |event: &Event| matches!(event, Event::ReleaseAsked | Event::LeaveAsked);
        for event in EVENTS.into_iter().filter(|event| !asked(event)) {
            let before = State::new(phase);
            let (after, actions) = before.step(event);
            let changes = after != before || !actions.is_empty();
            assert_eq!(changes, fitting.contains(&event), "{phase:?} {event:?}");
        }
    }
}
