//! The table of what was tried, and a sign of life while it is being tried.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

const BEAT: Duration = Duration::from_secs(20);

pub(crate) struct Report {
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<&'static str, Instant>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    result: Outcome,
    took: Duration,
}

enum Outcome {
    Passed,
    Failed(String),
    /// Not asked of this runtime.
    NotAsked,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }

    /// Tries one thing and notes what came of it.
    pub(crate) fn row(&self, name: &'static str, check: impl FnOnce() -> Result<()>) {
        let begun = Instant::now();
        self.state().running.insert(name, begun);
        let result = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
            Err(panic) => Outcome::Failed(message(panic.as_ref())),
        };
        self.note(Row { name, result, took: begun.elapsed() });
    }

    /// Notes that something is not asked of this runtime.
    pub(crate) fn not_asked(&self, name: &'static str) {
        self.note(Row { name, result: Outcome::NotAsked, took: Duration::ZERO });
    }

    /// Says every now and then what is being tried, until the other end of `stop` is dropped.
    pub(crate) fn beat(&self, stop: &Receiver<()>) {
        while stop.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
            let state = self.state();
            let running: Vec<_> = state.running.keys().copied().collect();
            println!("[{}] {} done, now: {}", self.clock(), state.rows.len(), running.join("; "));
        }
    }

    /// Shows the table. Returns what failed, and why.
    pub(crate) fn finish(&self) -> Vec<String> {
        let state = self.state();
        println!("\n{:<64} {:>6}  result", "what was tried", "s");
        for Row { name, result, took } in &state.rows {
            println!("{name:<64} {:>6.1}  {}", took.as_secs_f64(), result.word());
        }
        let failed: Vec<_> = state.rows.iter().filter_map(Row::failure).collect();
        println!(
            "{} tried, {} failed, in {} s",
            state.rows.len(),
            failed.len(),
            self.clock().trim()
        );
        failed
    }

    fn note(&self, row: Row) {
        let mut state = self.state();
        state.running.remove(row.name);
        println!(
            "[{}] {:<6} {} ({:.1} s)",
            self.clock(),
            row.result.word(),
            row.name,
            row.took.as_secs_f64()
        );
        if let Outcome::Failed(why) = &row.result {
            println!("{why}\n");
        }
        state.rows.push(row);
    }

    fn clock(&self) -> String {
        format!("{:>5.1}", self.begun.elapsed().as_secs_f64())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn failure(&self) -> Option<String> {
        match &self.result {
            Outcome::Failed(why) => Some(format!("{}: {why}", self.name)),
            Outcome::Passed | Outcome::NotAsked => None,
        }
    }
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed(_) => "FAILED",
            Self::NotAsked => "not asked of this runtime",
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}
