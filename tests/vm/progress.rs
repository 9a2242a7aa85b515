//! What is known of all tests of all machines: a line for each beginning and end, a sign of life in
//! between, and the table.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::event::Event;

const BEAT: Duration = Duration::from_secs(30);

pub(crate) struct Progress {
    begun: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    rows: Vec<Row>,
    said: Instant,
    faults: Vec<String>,
}

struct Row {
    machine: &'static str,
    name: String,
    state: State,
}

enum State {
    NotRun,
    Runs(Instant),
    Passed(f64),
    Failed(f64),
}

impl Progress {
    /// `tests` are to be run: machine and name of each.
    pub(crate) fn new(tests: Vec<(&'static str, String)>) -> Self {
        let now = Instant::now();
        let row = |(machine, name)| Row { machine, name, state: State::NotRun };
        let rows = tests.into_iter().map(row).collect();
        let inner = Inner { rows, said: now, faults: vec![] };
        Self { begun: now, inner: Mutex::new(inner) }
    }

    pub(crate) fn note(&self, machine: &'static str, event: Event) {
        let mut inner = self.inner();
        match event {
            Event::Up => {
                // A test that was under way when the machine booted again will not end any more.
                inner.give_up(machine, "the machine booted in the middle of it");
                self.say(&mut inner, &format!("{machine}: up"));
            }
            Event::Begun { name, .. } => {
                inner.set(machine, &name, State::Runs(Instant::now()));
                self.say(&mut inner, &format!("{machine}: {name}"));
            }
            Event::Ended { name, seconds, fault: None, said } => {
                inner.set(machine, &name, State::Passed(seconds));
                self.say(&mut inner, &format!("{machine}: ok, {seconds:.0} s: {name}"));
                for line in said.lines().filter(|line| line.starts_with(Event::MEASURED)) {
                    self.say(&mut inner, &format!("{machine}: {line}"));
                }
            }
            Event::Ended { name, seconds, fault: Some(fault), said } => {
                inner.set(machine, &name, State::Failed(seconds));
                self.say(&mut inner, &format!("{machine}: FAILED: {name}: {fault}\n{said}"));
                inner.faults.push(format!("{machine}: {name}: {fault}"));
            }
            Event::CutThePower => self.say(&mut inner, &format!("{machine}: its power is cut")),
            Event::Done => self.say(&mut inner, &format!("{machine}: all done")),
        }
    }

    /// The time is gone.
    pub(crate) fn late(&self, machine: &'static str) {
        let mut inner = self.inner();
        inner.interrupt(machine);
        self.say(&mut inner, &format!("{machine}: the time is gone"));
    }

    /// The machine itself failed.
    pub(crate) fn broken(&self, machine: &'static str, why: &str) {
        let mut inner = self.inner();
        inner.give_up(machine, why);
        inner.faults.push(format!("{machine}: {why}"));
        self.say(&mut inner, &format!("{machine}: BROKEN: {why}"));
    }

    /// A line if there was none for a while.
    pub(crate) fn beat(&self) {
        let mut inner = self.inner();
        if inner.said.elapsed() > BEAT {
            let running: Vec<_> = inner.rows.iter().filter_map(Row::running).collect();
            let line = if running.is_empty() { "booting".to_owned() } else { running.join("; ") };
            self.say(&mut inner, &line);
        }
    }

    /// What has not run by now has failed.
    pub(crate) fn miss(&self) {
        let mut inner = self.inner();
        let missed = inner.rows.iter().filter(|row| matches!(row.state, State::NotRun));
        let missed = missed.map(|row| format!("{}: {}: there was no time", row.machine, row.name));
        let missed: Vec<_> = missed.collect();
        inner.faults.extend(missed);
    }

    /// Whether nothing failed. What was not run for lack of time has not, unless it was missed.
    pub(crate) fn is_good(&self) -> bool {
        let inner = self.inner();
        inner.faults.is_empty() && !inner.rows.is_empty()
    }

    /// A line for each test, and one for each fault.
    pub(crate) fn table(&self) -> String {
        let inner = self.inner();
        let mut lines: Vec<_> = inner.rows.iter().map(Row::line).collect();
        let total = format!("{} s", self.begun.elapsed().as_secs());
        lines.push(format!("{:<79} {total:>6}", "total"));
        lines.extend(inner.faults.iter().map(|fault| format!("failed: {}", in_one_line(fault))));
        lines.join("\n") + "\n"
    }

    fn say(&self, inner: &mut Inner, line: &str) {
        inner.said = Instant::now();
        println!("[{:>4} s] {line}", self.begun.elapsed().as_secs());
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn set(&mut self, machine: &str, name: &str, state: State) {
        let found = self.rows.iter_mut().find(|row| row.machine == machine && row.name == name);
        if let Some(row) = found {
            row.state = state;
        }
    }

    /// What runs on `machine` has failed.
    fn give_up(&mut self, machine: &str, why: &str) {
        for row in self.rows.iter_mut().filter(|row| row.machine == machine) {
            if let State::Runs(since) = row.state {
                row.state = State::Failed(since.elapsed().as_secs_f64());
                self.faults.push(format!("{machine}: {}: {why}", row.name));
            }
        }
    }

    fn interrupt(&mut self, machine: &str) {
        for row in self.rows.iter_mut().filter(|row| row.machine == machine) {
            if matches!(row.state, State::Runs(_)) {
                row.state = State::NotRun;
            }
        }
    }
}

impl Row {
    fn line(&self) -> String {
        let (took, result) = match self.state {
            State::NotRun | State::Runs(_) => (String::new(), "not run"),
            State::Passed(seconds) => (format!("{seconds:.0} s"), "ok"),
            State::Failed(seconds) => (format!("{seconds:.0} s"), "FAILED"),
        };
        format!("{:<12} {:<66} {took:>6}  {result}", self.machine, self.name)
    }

    fn running(&self) -> Option<String> {
        let State::Runs(since) = self.state else { return None };
        Some(format!("{}: {}, {} s so far", self.machine, self.name, since.elapsed().as_secs()))
    }
}

/// Where a record of all this is cut short, its lines are what remains.
fn in_one_line(fault: &str) -> String {
    const MOST: usize = 1000;
    let words: Vec<_> = fault.split_whitespace().collect();
    words.join(" ").chars().take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, fault: Option<&str>) -> Event {
        let fault = fault.map(str::to_owned);
        Event::Ended { name: name.to_owned(), seconds: 1.0, fault, said: String::new() }
    }

    #[test]
    fn what_there_was_no_time_for_has_failed_only_where_all_had_to_run() {
        let tests = || vec![("node", "one".to_owned()), ("node", "two".to_owned())];
        for (second, missed, good) in [
            (Some(None), true, true),
            (Some(Some("broke")), false, false),
            (None, false, true),
            (None, true, false),
        ] {
            let progress = Progress::new(tests());
            progress.note("node", ended("one", None));
            match second {
                Some(fault) => progress.note("node", ended("two", fault)),
                None => progress.late("node"),
            }
            if missed {
                progress.miss();
            }
            assert_eq!(progress.is_good(), good, "{second:?} {missed}");
            let table = progress.table();
            assert_eq!(table.contains("failed: node: two: "), !good, "{table}");
            assert_eq!(table.contains("not run"), second.is_none(), "{table}");
        }
    }

    #[test]
    fn the_table_says_all_of_a_fault_in_its_line() {
        let progress = Progress::new(vec![("node", "one".to_owned())]);
        progress.note("node", ended("one", Some("cria's log: [\n    \"WARN so\",\n]")));
        let table = progress.table();
        assert!(table.contains("failed: node: one: cria's log: [ \"WARN so\", ]\n"), "{table}");
    }
}
