//! The loop: one epoll. What becomes ready turns into an event of `state.rs`, and the actions it
//! answers with get done, in order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use cria_monitor::exit::Exit;
use cria_monitor::protocol::{Adopt, Create, Event as Told, Failure, FailureKind, Program, Reply};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};

use super::attach::Client;
use super::cgroup;
use super::connection::{Asker, Connection, SOCKET, listen_here};
use super::exec::RunningExec;
use super::init::{Ended, Init};
use super::oci::{Call, Caller, system};
use super::oom::OomWatch;
use super::output::Drain;
use super::requests::Purpose;
use super::state::{Action, Event, Phase, State};
use super::stdio::Streams;
use crate::log::{Log, Output};

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Listener,
    Init,
    Output(Output),
    LogNews,
    Oom,
    PodOom,
    Connection(u32),
    Call(u32),
    Exec(u32),
    Attached(u32),
}

impl Source {
    fn number(self) -> u64 {
        let (kind, serial) = match self {
            Self::Signals => (1, 0),
            Self::Listener => (2, 0),
            Self::Init => (3, 0),
            Self::Output(Output::Stdout) => (4, 0),
            Self::Output(Output::Stderr) => (5, 0),
            Self::LogNews => (6, 0),
            Self::Oom => (7, 0),
            Self::Connection(serial) => (8, serial),
            Self::Call(serial) => (9, serial),
            Self::Exec(serial) => (10, serial),
            Self::PodOom => (11, 0),
            Self::Attached(serial) => (12, serial),
        };
        kind << 32 | u64::from(serial)
    }

    fn from_number(number: u64) -> Option<Self> {
        let serial = u32::try_from(number & u64::from(u32::MAX)).ok()?;
        Some(match number >> 32 {
            1 => Self::Signals,
            2 => Self::Listener,
            3 => Self::Init,
            4 => Self::Output(Output::Stdout),
            5 => Self::Output(Output::Stderr),
            6 => Self::LogNews,
            7 => Self::Oom,
            8 => Self::Connection(serial),
            9 => Self::Call(serial),
            10 => Self::Exec(serial),
            11 => Self::PodOom,
            12 => Self::Attached(serial),
            _ => return None,
        })
    }
}

/// Requests that wait for their answer.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) create: Option<Asker>,
    pub(super) start: Option<Asker>,
    pub(super) reopen: Vec<Asker>,
    pub(super) release: Vec<Asker>,
}

/// One container's monitor.
pub(super) struct Monitor {
    pub(super) container: Create,
    pub(super) state: State,
    events: Epoll,
    signals: SignalFd,
    pub(super) listener: UnixListener,
    pub(super) connections: Vec<Connection>,
    pub(super) calls: Vec<(u32, Purpose, Call)>,
    pub(super) execs: Vec<RunningExec>,
    pub(super) attached: Vec<Client>,
    pub(super) init: Option<Init>,
    pub(super) streams: Streams,
    pub(super) log: Option<Log>,
    pub(super) output: Drain,
    pub(super) oom: Option<OomWatch>,
    pub(super) asked: Asked,
    /// Why the call whose answer is due has failed.
    pub(super) failure: Option<Failure>,
    /// 0 until the OCI runtime's `start` has succeeded.
    pub(super) started_at_ns: i64,
    pub(super) ended: Option<Ended>,
    pub(super) exit: Option<Exit>,
    serials: u32,
}

/// Creates the container that `daemon` asked for, and stays until it is released.
pub(super) fn create(
    mut monitor: Monitor,
    program: Program,
    daemon: OwnedFd,
    sequence: u32,
) -> io::Result<()> {
    let connection = monitor.connect(daemon)?;
    monitor.asked.create = Some(Asker { connection, sequence });
    monitor.run_create(program);
    monitor.run()
}

/// Takes the place of a monitor that died.
pub(super) fn adopt(
    mut monitor: Monitor,
    adopt: Adopt,
    daemon: OwnedFd,
    sequence: u32,
) -> io::Result<()> {
    let connection = monitor.connect(daemon)?;
    let asker = Asker { connection, sequence };
    if let Err(error) = monitor.take_over(adopt) {
        monitor.reply(asker, Reply::Failed(system("take over the container", &error)));
        return Err(error);
    }
    monitor.reply_state(asker);
    monitor.run()
}

impl Monitor {
    /// Moves into the monitors' cgroup and into the container's run directory, and listens there.
    pub(super) fn new(container: Create, phase: Phase) -> io::Result<Self> {
        for procs in &container.join_cgroups {
            cgroup::join(procs)?;
        }
        std::env::set_current_dir(&container.run_dir)?;
        let mut heard = SigSet::empty();
        heard.add(Signal::SIGCHLD);
        heard.add(Signal::SIGTERM);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let monitor = Self {
            container,
            state: State::new(phase),
            events: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            signals: SignalFd::with_flags(&heard, flags)?,
            listener: listen_here()?,
            connections: vec![],
            calls: vec![],
            execs: vec![],
            attached: vec![],
            init: None,
            streams: Streams::default(),
            log: None,
            output: Drain::default(),
            oom: None,
            asked: Asked::default(),
            failure: None,
            started_at_ns: 0,
            ended: None,
            exit: None,
            serials: 0,
        };
        monitor.watch(monitor.signals.as_fd(), Source::Signals)?;
        monitor.watch(monitor.listener.as_fd(), Source::Listener)?;
        Ok(monitor)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::empty(); 16];
        while self.state.phase != Phase::Gone {
            let count = match self.events.wait(&mut ready, self.time_to_wait()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &ready[..count] {
                if let Some(source) = Source::from_number(event.data()) {
                    self.ready(source);
                }
            }
            self.act_on_time(Instant::now());
            self.reap_strangers();
        }
        Ok(())
    }

    fn ready(&mut self, source: Source) {
        match source {
            Source::Signals => self.hear_signals(),
            Source::Listener => self.accept(),
            Source::Init => self.init_ready(),
            Source::Output(output) => self.read_output(output),
            Source::LogNews => self.log_news(),
            Source::Oom => self.oom_ready(),
            Source::PodOom => self.pod_oom_ready(),
            Source::Connection(serial) => self.hear(serial),
            Source::Call(serial) => self.call_ended(serial),
            Source::Exec(serial) => self.exec_ended(serial),
            Source::Attached(serial) => self.client_ready(serial),
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            // What there is to know of children is asked of the kernel in `reap_strangers`.
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                self.happen(Event::LeaveAsked);
            }
        }
    }

    pub(super) fn happen(&mut self, event: Event) {
        let (state, actions) = self.state.step(event);
        self.state = state;
        // An action that makes the next event happen at once is the last of its list.
        for action in actions {
            self.perform(*action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::AnswerCreated => {
                if let Some(asker) = self.asked.create.take() {
                    self.reply_state(asker);
                }
            }
            Action::AnswerCreateFailed => {
                let asker = self.asked.create.take();
                self.reply_failure(asker);
            }
            Action::StopCreate => self.stop_create(),
            Action::OpenLog => self.open_log(),
            Action::RunStart => self.run_start(),
            Action::AnswerStarted => {
                let asker = self.asked.start.take();
                if let Some(asker) = asker {
                    self.reply(asker, Reply::Started { at_ns: self.started_at_ns });
                }
                self.tell_others(asker, &Told::Settled);
            }
            Action::AnswerStartFailed => {
                let asker = self.asked.start.take();
                self.reply_failure(asker);
                self.tell_others(asker, &Told::Settled);
            }
            Action::KillAll => self.kill_all(),
            Action::KillRest => self.kill_rest(),
            Action::Drain => self.drain(),
            Action::Flush => self.flush(),
            Action::RecordExit => self.record_exit(),
            Action::RunDelete => self.run_delete(),
            Action::AnswerRelease => self.answer_release(),
            // A socket that stays is found dead by whoever connects.
            Action::Quit => drop(std::fs::remove_file(SOCKET)),
        }
    }

    fn reply_failure(&mut self, asker: Option<Asker>) {
        // Nothing failed, and it is in vain all the same: init ended before its start.
        let ended = || Failure {
            kind: FailureKind::WrongPhase,
            message: "the container has ended".to_owned(),
        };
        let failure = self.failure.take().unwrap_or_else(ended);
        if let Some(asker) = asker {
            self.reply(asker, Reply::Failed(failure));
        }
    }

    fn answer_release(&mut self) {
        let failure = self.failure.take();
        for asker in std::mem::take(&mut self.asked.release) {
            match &failure {
                Some(failure) => self.reply(asker, Reply::Failed(failure.clone())),
                None => self.reply(asker, Reply::Done),
            }
        }
    }

    pub(super) fn kill_all(&mut self) {
        if let Some(oom) = &mut self.oom {
            oom.note_our_kill();
        }
        cgroup::thaw(&self.container.cgroup);
        if let Some(init) = &self.init {
            init.signal(libc::SIGKILL);
        }
        self.kill_cgroup();
    }

    /// Where the PID namespace is init's own, its end was everybody's.
    fn kill_rest(&mut self) {
        if !self.container.own_pid_namespace {
            self.kill_cgroup();
        }
    }

    fn kill_cgroup(&self) {
        // A cgroup that cannot be read is left to the OCI runtime's `delete --force`.
        let _ = cgroup::signal_all(&self.container.cgroup, libc::SIGKILL);
    }

    fn record_exit(&mut self) {
        let Some(ended) = self.ended else { return };
        let exit = Exit {
            status: ended.status,
            oom_killed: self.oom.as_ref().is_some_and(|oom| oom.verdict(ended.status)),
            started_at_ns: self.started_at_ns,
            finished_at_ns: ended.at_ns,
            log_bytes_lost: self.log.as_ref().map_or(0, Log::lost),
        };
        // Should the run directory refuse the file, the state and the event still tell.
        let _ = exit.write(&self.container.run_dir);
        self.let_go_of_init();
        self.close_stdio();
        self.tell_all(&Told::Exited(exit.clone()));
        self.exit = Some(exit);
    }

    fn oom_ready(&mut self) {
        if let Some(oom) = &mut self.oom
            && !oom.look()
        {
            let (source, _) = oom.source();
            // Gone from the set already, or never in it: either way it is quiet.
            let _ = self.events.delete(source);
        }
    }

    fn pod_oom_ready(&mut self) {
        let Some(oom) = &mut self.oom else { return };
        oom.look();
        // Nothing of an ended container is of interest; and a removed cgroup is ready for ever.
        if self.ended.is_some()
            && let Some((source, _)) = oom.pod_source()
        {
            let _ = self.events.delete(source);
        }
    }

    pub(super) fn watch_oom(&mut self, oom: OomWatch) -> io::Result<()> {
        if let Some((source, flags)) = oom.pod_source() {
            self.events.add(source, EpollEvent::new(flags, Source::PodOom.number()))?;
        }
        let (source, flags) = oom.source();
        self.events.add(source, EpollEvent::new(flags, Source::Oom.number()))?;
        self.oom = Some(oom);
        Ok(())
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.events.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.number()))?;
        Ok(())
    }

    /// Other events of what is watched already.
    pub(super) fn rewatch(
        &self,
        fd: BorrowedFd<'_>,
        source: Source,
        events: EpollFlags,
    ) -> io::Result<()> {
        Ok(self.events.modify(fd, &mut EpollEvent::new(events, source.number()))?)
    }

    /// By the very descriptor that is watched: epoll takes a copy of it for another one.
    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>) {
        // It was not watched: then nothing is to be done.
        let _ = self.events.delete(fd);
    }

    pub(super) fn next_serial(&mut self) -> u32 {
        self.serials = self.serials.wrapping_add(1);
        self.serials
    }

    pub(super) fn caller(&self, serial: u32) -> Caller<'_> {
        Caller { container: &self.container, serial }
    }

    pub(super) fn fail(&mut self, action: &str, error: &io::Error) {
        self.failure = Some(system(action, error));
    }

    fn time_to_wait(&self) -> EpollTimeout {
        let calls = self.calls.iter().flat_map(|(_, purpose, call)| {
            let begins = match purpose {
                Purpose::Exec(pending) => pending.next_deadline(),
                _ => None,
            };
            call.next_deadline().into_iter().chain(begins)
        });
        let execs = self.execs.iter().filter_map(RunningExec::next_deadline);
        let init = self.init.as_ref().and_then(Init::next_look);
        let clients = self.attached.iter().filter_map(Client::deadline);
        let output = self.output.next_telling().into_iter().chain(self.output.log_deadline());
        let others = init.into_iter().chain(output).chain(clients);
        let next = calls.chain(execs).chain(others).min();
        match next {
            Some(next) => {
                let left = next.saturating_duration_since(Instant::now());
                // Rounded up, lest the loop turns idly for the last part of a millisecond.
                let left = left.as_millis().saturating_add(1);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            }
            None => EpollTimeout::NONE,
        }
    }

    fn act_on_time(&mut self, now: Instant) {
        for (_, _, call) in self.calls.iter_mut().filter(|(_, _, call)| call.is_over(now)) {
            call.kill();
        }
        self.give_up_late_beginnings(now);
        self.end_late_execs(now);
        self.drop_late_clients(now);
        self.look_at_foreign_init(now);
        self.tell_losses(now);
        self.give_up_late_log(now);
    }
}

/// Nanoseconds since the epoch.
pub(super) fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the real-time clock always exists");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}
