//! From the container's output to its log: reading, holding back while the ring is full, and
//! reading to the end once init has ended. A log that is not written holds the end up for a while,
//! but does not keep it from being told.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cria_monitor::protocol::{Event as Told, Reply};

use super::run::{Monitor, Source};
use super::state::{Event, Phase};
use crate::log::{self, Log, Output, Taken};

const OUTPUTS: [Output; 2] = [Output::Stdout, Output::Stderr];
/// No pipe holds more than this by default, nor does a terminal: what is beyond it was written
/// after init's end.
const AFTER_THE_END: usize = 1 << 20;
/// After init's end; what is not in the file by then counts as lost.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
const TELL_LOSSES_EVERY: Duration = Duration::from_secs(1);

/// How far the outputs are read.
#[derive(Default)]
pub(super) struct Drain {
    /// The ring was full: nothing is read until there is news.
    paused: bool,
    /// Ended, and their last record not written yet for want of room.
    ending: [bool; 2],
    /// Read since init's end.
    after_the_end: [usize; 2],
    next_telling: Option<Instant>,
    /// Since when the container's end waits for the log, and for nothing else; and how far that was
    /// written then.
    held_up: Option<(Instant, u64)>,
}

impl Drain {
    pub(super) fn next_telling(&self) -> Option<Instant> {
        self.next_telling
    }

    pub(super) fn log_deadline(&self) -> Option<Instant> {
        self.held_up.map(|(since, _)| since + LOG_PATIENCE)
    }
}

impl Monitor {
    pub(super) fn open_log(&mut self) {
        if let Some(log) = &self.log {
            log.reopen();
            return;
        }
        let Some(path) = self.container.log.clone() else { return self.happen(Event::LogOpened) };
        let log = Log::create(&self.container.run_dir, path);
        match log.and_then(|log| self.watch(log.news(), Source::LogNews).map(|()| log)) {
            Ok(log) => self.log = Some(log),
            Err(error) => {
                self.fail("open the log", &error);
                self.happen(Event::LogRefused);
            }
        }
    }

    pub(super) fn log_news(&mut self) {
        let Some(log) = &self.log else { return };
        log.clear_news();
        if let Some(result) = log.opened() {
            self.log_opened(result);
        }
        self.tell_losses(Instant::now());
        self.resume();
        match self.state.phase {
            Phase::Draining => self.drain(),
            Phase::Flushing => self.flush(),
            Phase::Creating
            | Phase::Undoing
            | Phase::Created
            | Phase::Opening { .. }
            | Phase::Starting { .. }
            | Phase::Running
            | Phase::Deleting
            | Phase::Exited { .. }
            | Phase::Gone => {}
        }
    }

    fn log_opened(&mut self, result: std::io::Result<()>) {
        let failure = result.err().map(|error| super::oci::system("open the log", &error));
        for asker in std::mem::take(&mut self.asked.reopen) {
            match &failure {
                Some(failure) => self.reply(asker, Reply::Failed(failure.clone())),
                None => self.reply(asker, Reply::Done),
            }
        }
        if let Phase::Opening { .. } = self.state.phase {
            let event = if failure.is_none() { Event::LogOpened } else { Event::LogRefused };
            self.failure = failure;
            self.happen(event);
        }
    }

    /// From the container's start on.
    pub(super) fn watch_outputs(&mut self) {
        for output in OUTPUTS {
            if let Some(source) = self.streams.source(output) {
                // Watched already: as it should be.
                let _ = self.watch(source, Source::Output(output));
            }
        }
    }

    pub(super) fn read_output(&mut self, output: Output) {
        if self.output.paused {
            return;
        }
        match self.take_in(output) {
            Taken::Bytes(_) if !self.has_copied_to_all() => self.pause(),
            Taken::Bytes(_) | Taken::Nothing => {}
            Taken::Full(_) => self.pause(),
            Taken::End => self.end_output(output),
        }
    }

    fn take_in(&mut self, output: Output) -> Taken {
        let Some(source) = self.streams.source(output) else { return Taken::Nothing };
        let mut nowhere = [0; 4096];
        let taken = match &mut self.log {
            Some(log) => log.take_in(output, source),
            None => log::read(source, &mut nowhere),
        };
        if let Taken::Bytes(count @ 1..) | Taken::Full(count @ 1..) = taken
            && !self.attached.is_empty()
        {
            let bytes = match &self.log {
                Some(log) => log.last_read(output, count).to_vec(),
                None => nowhere[..count].to_vec(),
            };
            self.copy_to_clients(output, &bytes);
        }
        taken
    }

    /// An attached client has taken what it was owed, or is gone.
    pub(super) fn go_on_reading(&mut self) {
        self.resume();
        if self.state.phase == Phase::Draining {
            self.drain();
        }
    }

    /// The level-triggered epoll would report a readable output for ever.
    fn pause(&mut self) {
        self.output.paused = true;
        for output in OUTPUTS {
            if let Some(source) = self.streams.source(output) {
                self.unwatch(source);
            }
        }
    }

    fn resume(&mut self) {
        if !self.output.paused || !self.has_copied_to_all() {
            return;
        }
        self.output.paused = false;
        for output in OUTPUTS {
            if self.output.ending[output as usize] {
                self.end_output(output);
            }
        }
        self.watch_outputs();
        // What is held already is no reason for epoll to call.
        for output in OUTPUTS {
            self.read_output(output);
        }
    }

    fn end_output(&mut self, output: Output) {
        if let Some(source) = self.streams.source(output) {
            self.unwatch(source);
        }
        self.streams.close(output);
        let ended = self.log.as_mut().is_none_or(|log| log.end(output));
        self.output.ending[output as usize] = !ended;
        if !ended {
            self.pause();
        }
    }

    /// Reads all that init wrote: until reading would block, never to the end, which another
    /// holder of the pipe may put off for ever. Goes on with the next news if the ring is full.
    pub(super) fn drain(&mut self) {
        for output in OUTPUTS {
            let which = output as usize;
            while self.streams.source(output).is_some()
                && self.output.after_the_end[which] < AFTER_THE_END
            {
                // It has a second, as before the end.
                if !self.has_copied_to_all() {
                    return self.pause();
                }
                match self.take_in(output) {
                    Taken::Bytes(count) => self.output.after_the_end[which] += count,
                    Taken::Full(count) => {
                        self.output.after_the_end[which] += count;
                        return self.pause();
                    }
                    Taken::Nothing | Taken::End => break,
                }
            }
            self.end_output(output);
            if self.output.ending[which] {
                return;
            }
        }
        self.happen(Event::Drained);
    }

    pub(super) fn flush(&mut self) {
        if self.log.as_ref().is_none_or(Log::flushed) {
            self.happen(Event::Flushed);
        }
    }

    /// A disk that stands still must not keep an exit from being told.
    pub(super) fn give_up_late_log(&mut self, now: Instant) {
        if !self.log_holds_up_the_end() {
            self.output.held_up = None;
            return;
        }
        let written = self.log.as_ref().map_or(0, Log::offset);
        let since = match self.output.held_up {
            Some((since, before)) if before == written => since,
            // One that is only slow gets as long as it takes.
            Some(_) | None => now,
        };
        if now.duration_since(since) < LOG_PATIENCE {
            self.output.held_up = Some((since, written));
            return;
        }
        self.output.held_up = None;
        if let Some(log) = &mut self.log {
            log.give_up();
            self.log_news();
        }
    }

    fn log_holds_up_the_end(&self) -> bool {
        match self.state.phase {
            Phase::Opening { ended } => ended,
            // Otherwise it is a client.
            Phase::Draining => self.has_copied_to_all(),
            Phase::Flushing => true,
            Phase::Creating
            | Phase::Undoing
            | Phase::Created
            | Phase::Starting { .. }
            | Phase::Running
            | Phase::Deleting
            | Phase::Exited { .. }
            | Phase::Gone => false,
        }
    }

    /// At most once a second, however often the disk refuses.
    pub(super) fn tell_losses(&mut self, now: Instant) {
        if self.output.next_telling.is_some_and(|next| now < next) {
            return;
        }
        let Some(log) = &mut self.log else { return };
        self.output.next_telling = None;
        if let Some((bytes, error)) = log.new_losses() {
            self.output.next_telling = Some(now + TELL_LOSSES_EVERY);
            self.tell_all(&Told::LogLost { bytes, error });
        }
    }

    pub(super) fn close_stdio(&mut self) {
        self.pause();
        self.detach_all();
        self.streams = super::stdio::Streams::default();
        if let Some(log) = &self.log {
            self.unwatch(log.news().as_fd());
        }
    }
}
