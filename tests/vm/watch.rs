//! Follows one machine from its power switch to its end, and cuts its power when it asks for it.

use std::time::{Duration, Instant};

use harness::wait::within;

use crate::event::Event;
use crate::machine::Machine;
use crate::progress::Progress;

/// How long a machine may say nothing beyond what its test may take: it boots, or hangs.
const SILENCE: Duration = Duration::from_secs(6 * 60);

/// How long it may take to turn itself off, where nobody waits for its results.
const OFF: Duration = Duration::from_secs(90);

/// How a stretch between two switchings of the power ended.
#[derive(PartialEq)]
enum End {
    Done,
    PowerCut,
    Late,
    Broken(String),
}

/// Runs all tests of `machine` that can be run before `deadline`.
pub(crate) fn to_the_end(mut machine: Machine, deadline: Option<Instant>, progress: &Progress) {
    loop {
        if let Err(error) = machine.power_on() {
            return progress.broken(machine.name(), &format!("{error:#}"));
        }
        match follow(&mut machine, deadline, progress) {
            End::Done => {
                within(OFF, || (!machine.is_on()).then_some(()));
                return;
            }
            End::PowerCut => machine.power_off(),
            End::Late => return progress.late(machine.name()),
            End::Broken(why) => return progress.broken(machine.name(), &why),
        }
    }
}

fn follow(machine: &mut Machine, deadline: Option<Instant>, progress: &Progress) -> End {
    let mut patience = SILENCE;
    let mut heard = Instant::now();
    loop {
        within(Duration::from_millis(500), || None::<()>);
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return End::Late;
        }
        // Before its last words are read: what it said before it ended is there by then.
        let on = machine.is_on();
        let news = match machine.news() {
            Ok(news) => news,
            Err(error) => return End::Broken(format!("not understood: {error:#}")),
        };
        for event in news {
            heard = Instant::now();
            patience = match &event {
                Event::Begun { limit_seconds, .. } => SILENCE + Duration::from_secs(*limit_seconds),
                _ => SILENCE,
            };
            let end = match event {
                Event::Done => Some(End::Done),
                Event::CutThePower => Some(End::PowerCut),
                Event::Up | Event::Begun { .. } | Event::Ended { .. } => None,
            };
            progress.note(machine.name(), event);
            if let Some(end) = end {
                return end;
            }
        }
        if !on {
            return End::Broken("QEMU ended".to_owned());
        }
        if heard.elapsed() > patience {
            return End::Broken(format!("nothing heard for {} s", heard.elapsed().as_secs()));
        }
        progress.beat();
    }
}
