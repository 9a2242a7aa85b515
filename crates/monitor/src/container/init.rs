//! The container's init: its end, its status, and the zombies of strangers around it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cria_monitor::exit::{Exit, Status};
use cria_monitor::protocol::Adopt;

use super::child;
use super::oom::OomWatch;
use super::run::{Monitor, Source, now_ns};
use super::state::{Event, Phase, State};
use super::stdio::Streams;
use crate::log::Log;
use crate::sys::{self, Wait};

/// How long the daemon that is init's parent may take to tell its status.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) struct Init {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Set where init is not our child: whoever is its parent waits for it.
    foreign: Option<Foreign>,
}

struct Foreign {
    told: Option<Status>,
    gone: Option<Gone>,
}

struct Gone {
    at_ns: i64,
    since: Instant,
    next_look: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) status: Status,
    pub(super) at_ns: i64,
}

impl Init {
    pub(super) fn child(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: sys::pidfd_open(pid)?, foreign: None })
    }

    /// One that has ended needs no signal.
    pub(super) fn signal(&self, signal: i32) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), signal);
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        Some(self.foreign.as_ref()?.gone.as_ref()?.next_look)
    }
}

impl Monitor {
    pub(super) fn take_over(&mut self, adopt: Adopt) -> io::Result<()> {
        let Adopt { container, init_pid, started_at_ns, killed_by_us, descriptors, .. } = adopt;
        self.started_at_ns = started_at_ns;
        self.state = State::new(Phase::Created);
        let (streams, pidfd) = Streams::adopt(descriptors)?;
        self.streams = streams;
        if let Some(exit) = Exit::read(&container.run_dir)? {
            self.exit = Some(exit);
            self.state = State::new(Phase::Deleting);
            self.run_delete();
            return Ok(());
        }
        if let Some(path) = &container.cgroup.oom_counter
            && let Ok(oom) = OomWatch::adopt(path, killed_by_us)
        {
            self.watch_oom(oom)?;
        }
        if let Some(log) = container.log
            && let Some(log) = Log::adopt(&container.run_dir, log)?
        {
            self.watch(log.news(), Source::LogNews)?;
            self.log = Some(log);
        }
        if started_at_ns != 0 {
            self.state = State::new(Phase::Running);
        }
        // A log without a start means that the start was under way: the container may run.
        if started_at_ns != 0 || self.log.is_some() {
            self.watch_outputs();
        }
        let pidfd = pidfd.ok_or(io::ErrorKind::InvalidInput)?;
        self.watch(pidfd.as_fd(), Source::Init)?;
        let foreign = Some(Foreign { told: None, gone: None });
        self.init = Some(Init { pid: init_pid, pidfd, foreign });
        Ok(())
    }

    /// The pidfd is readable: init has ended.
    pub(super) fn init_ready(&mut self) {
        let Some(init) = &mut self.init else { return };
        // First of all: the cgroup may be gone any moment.
        if let Some(oom) = &mut self.oom {
            oom.look();
        }
        let at_ns = now_ns();
        match &mut init.foreign {
            None => {
                if let Some(status) = child::end(init.pid, init.pidfd.as_fd(), Wait::Look) {
                    self.init_ended(Ended { status, at_ns });
                }
            }
            Some(foreign) => {
                let now = Instant::now();
                foreign.gone.get_or_insert(Gone { at_ns, since: now, next_look: now });
                self.unwatch_init();
                self.look_at_foreign_init(now);
            }
        }
    }

    /// What has ended stays readable, and the level-triggered epoll would say so for ever.
    fn unwatch_init(&self) {
        if let Some(init) = &self.init {
            self.unwatch(init.pidfd.as_fd());
        }
    }

    /// The daemon is init's parent and has waited for it.
    pub(super) fn foreign_init_told(&mut self, status: Status) {
        if let Some(foreign) = self.init.as_mut().and_then(|init| init.foreign.as_mut()) {
            foreign.told = Some(status);
        }
        self.look_at_foreign_init(Instant::now());
    }

    /// The status of an init that is another's child: from the daemon that waits for it, from a
    /// kernel that tells (once the parent has reaped it), or after a while from nobody.
    pub(super) fn look_at_foreign_init(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        let Some(init) = &mut self.init else { return };
        let Some(Foreign { told, gone: Some(gone) }) = &mut init.foreign else { return };
        let status = told.or_else(|| sys::pidfd_exit_status(init.pidfd.as_fd()));
        let at_ns = gone.at_ns;
        gone.next_look = now + LOOK_EVERY;
        if let Some(status) = status {
            self.init_ended(Ended { status, at_ns });
        } else if now.duration_since(gone.since) >= STATUS_PATIENCE {
            self.init_ended(Ended { status: Status::Unknown, at_ns });
        }
    }

    /// Taken once: a later look would only know a later time.
    fn init_ended(&mut self, ended: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.unwatch_init();
        if let Some(foreign) = self.init.as_mut().and_then(|init| init.foreign.as_mut()) {
            foreign.gone = None;
        }
        self.ended = Some(ended);
        self.happen(Event::InitEnded);
    }

    /// The exit is on disk: the zombie that kept it until now may go.
    pub(super) fn let_go_of_init(&mut self) {
        let Some(init) = self.init.take() else { return };
        if init.foreign.is_none() {
            // It has ended, so this does not wait. Not our child: then somebody else's. Traced: then
            // it is reaped later, as a stranger.
            let _ = sys::wait(Some(init.pid), Wait::Reap);
        }
    }

    /// Orphans of the container come to us, its subreaper. While a call may still name one of
    /// them as its own (its pid file is not read yet), they stay: a short exec is a zombie before
    /// the OCI runtime returns.
    pub(super) fn reap_strangers(&mut self) {
        while let Ok(Some((pid, _))) = sys::wait(None, Wait::Look) {
            if let Some(serial) = self.call_of(pid) {
                self.call_ended(serial);
            } else if let Some(serial) = self.exec_of(pid) {
                self.exec_ended(serial);
            } else if self.is_init(pid) || self.expects_process() {
                return;
            } else {
                // Nobody waits for it, and nobody else could have.
                let _ = sys::wait(Some(pid), Wait::Reap);
            }
        }
    }

    fn is_init(&self, pid: i32) -> bool {
        self.init.as_ref().is_some_and(|init| init.pid == pid)
    }

    fn call_of(&self, pid: i32) -> Option<u32> {
        self.calls.iter().find(|(_, _, call)| call.pid == pid).map(|(serial, _, _)| *serial)
    }

    fn expects_process(&self) -> bool {
        self.calls.iter().any(|(_, purpose, _)| purpose.names_process())
    }
}
