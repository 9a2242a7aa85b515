//! What daemons ask, and the calls of the OCI runtime that it takes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use cria_monitor::protocol::{
    Failure, FailureKind, Phase as Reported, Program, ProtocolError, Reply, Request, SignalScope,
    State as Report, Target,
};
use cria_monitor::socket;

use super::cgroup;
use super::connection::Asker;
use super::exec::PendingExec;
use super::init::Init;
use super::oci::{self, Call};
use super::oom::OomWatch;
use super::run::{Monitor, Source, now_ns};
use super::state::{Event, Phase};
use super::stdio::{Console, Streams, read_rest};

/// What a call of the OCI runtime is for.
pub(super) enum Purpose {
    Create { pid_file: PathBuf, console: Option<Console> },
    Start,
    Exec(PendingExec),
    Delete { forced: bool },
}

impl Purpose {
    /// Whether its pid file may name a child that we do not know yet.
    pub(super) fn names_process(&self) -> bool {
        match self {
            Self::Create { .. } | Self::Exec(_) => true,
            Self::Start | Self::Delete { .. } => false,
        }
    }
}

pub(super) fn unsupported(error: &ProtocolError) -> Failure {
    Failure { kind: FailureKind::Unsupported, message: error.to_string() }
}

pub(super) fn wrong_phase(message: &str) -> Reply {
    Reply::Failed(Failure { kind: FailureKind::WrongPhase, message: message.to_owned() })
}

impl Monitor {
    /// One message of a connection: epoll calls again if there are more.
    pub(super) fn hear(&mut self, connection: u32) {
        let found = self.connections.iter().find(|found| found.serial == connection);
        let Some(found) = found else { return };
        match socket::receive(found.socket.as_fd()) {
            Ok(Some(packet)) => match Request::decode(packet) {
                Ok((sequence, request)) => self.handle(Asker { connection, sequence }, request),
                Err(error) => match error.sequence() {
                    Some(sequence) => {
                        let reply = Reply::Failed(unsupported(&error));
                        self.reply(Asker { connection, sequence }, reply);
                    }
                    None => self.disconnect(connection),
                },
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.disconnect(connection),
        }
    }

    fn handle(&mut self, asker: Asker, request: Request) {
        match request {
            Request::Create { .. } | Request::Adopt(_) => {
                self.reply(asker, wrong_phase("this monitor has a container already"));
            }
            Request::State => self.reply_state(asker),
            Request::Start => self.start_asked(asker),
            Request::Exec(exec) => self.run_exec(asker, exec),
            Request::Signal { target, signal, scope } => self.signal(asker, target, signal, scope),
            Request::Attach { stdin, stdout, stderr, socket } => {
                self.attach(asker, [stdout, stderr], stdin, socket);
            }
            Request::ReopenLog => self.reopen_asked(asker),
            Request::CloseStdin => {
                self.close_stdin();
                self.reply(asker, Reply::Done);
            }
            Request::InitEnded { status } => {
                self.reply(asker, Reply::Done);
                self.foreign_init_told(status);
            }
            Request::Release => {
                self.asked.release.push(asker);
                self.happen(Event::ReleaseAsked);
            }
        }
    }

    pub(super) fn reply_state(&mut self, asker: Asker) {
        let reply = match self.report() {
            Ok(Some(report)) => Reply::State(Box::new(report)),
            Ok(None) => wrong_phase("the container is not created yet"),
            Err(error) => Reply::Failed(oci::system("copy descriptors", &error)),
        };
        self.reply(asker, reply);
    }

    fn report(&self) -> io::Result<Option<Report>> {
        let phase = match self.state.phase {
            Phase::Creating | Phase::Undoing => return Ok(None),
            Phase::Created | Phase::Opening { .. } | Phase::Starting { .. } => Reported::Created,
            Phase::Running => Reported::Running,
            // Its exit is not told before it is recorded.
            Phase::Draining | Phase::Flushing if self.started_at_ns == 0 => Reported::Created,
            Phase::Draining | Phase::Flushing => Reported::Running,
            Phase::Deleting | Phase::Exited { .. } | Phase::Gone => Reported::Exited,
        };
        let settling = phase == Reported::Created && self.state.phase != Phase::Created;
        Ok(Some(Report {
            phase,
            settling,
            init_pid: self.init.as_ref().map_or(0, |init| init.pid),
            started_at_ns: self.started_at_ns,
            exit: self.exit.clone(),
            stdin_open: self.streams.stdin.is_some(),
            descriptors: self.streams.descriptors(self.init.as_ref().map(|init| &init.pidfd))?,
        }))
    }

    fn start_asked(&mut self, asker: Asker) {
        if self.state.phase != Phase::Created || self.state.releasing {
            return self.reply(asker, wrong_phase("the container is not in the created phase"));
        }
        self.asked.start = Some(asker);
        self.happen(Event::StartAsked);
    }

    fn reopen_asked(&mut self, asker: Asker) {
        match (&self.log, self.state.phase) {
            (Some(log), Phase::Running) => {
                log.reopen();
                self.asked.reopen.push(asker);
            }
            _ => self.reply(asker, wrong_phase("the container is not running, or has no log")),
        }
    }

    fn signal(&mut self, asker: Asker, target: Target, signal: i32, scope: SignalScope) {
        let reply = match self.send_signal(target, signal, scope) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed(oci::system("signal", &error)),
        };
        self.reply(asker, reply);
    }

    fn send_signal(&mut self, target: Target, signal: i32, scope: SignalScope) -> io::Result<()> {
        let kills = signal == libc::SIGKILL;
        if kills {
            cgroup::thaw(&self.container.cgroup);
        }
        match (target, scope) {
            (Target::Init, SignalScope::Process) => {
                if kills && let Some(oom) = &mut self.oom {
                    oom.note_our_kill();
                }
                if let Some(init) = &self.init {
                    init.signal(signal);
                }
                Ok(())
            }
            (Target::Init, SignalScope::Group) => {
                if kills {
                    self.kill_all();
                    return Ok(());
                }
                if self.init.is_none() {
                    return Ok(());
                }
                cgroup::signal_all(&self.container.cgroup, signal)
            }
            (Target::Exec(exec), scope) => {
                self.signal_exec(exec, signal, scope);
                Ok(())
            }
        }
    }

    pub(super) fn run_create(&mut self, program: Program) {
        let serial = self.next_serial();
        match self.spawn_create(serial, program.as_ref()) {
            Ok((purpose, call)) => self.watch_call(serial, purpose, call),
            Err(error) => {
                self.fail("run the OCI runtime", &error);
                self.happen(Event::CreateFailed);
            }
        }
    }

    fn spawn_create(
        &mut self,
        serial: u32,
        program: Option<&OwnedFd>,
    ) -> io::Result<(Purpose, Call)> {
        let caller = self.caller(serial);
        let pid_file = caller.pid_file();
        let mut command = caller.command("create", program);
        command.arg("--bundle").arg(&self.container.bundle).arg("--pid-file").arg(&pid_file);
        if self.container.terminal {
            let console = Console::listen(format!("console-{serial}"))?;
            command.arg("--console-socket").arg(console.path()).arg(&self.container.id);
            let call = caller.start_listening("create", command)?;
            return Ok((Purpose::Create { pid_file, console: Some(console) }, call));
        }
        let (streams, theirs) = Streams::pipes(&self.container)?;
        command.stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
        command.arg(&self.container.id);
        let call = caller.start("create", command)?;
        self.streams = streams;
        Ok((Purpose::Create { pid_file, console: None }, call))
    }

    pub(super) fn stop_create(&mut self) {
        for (_, purpose, call) in &mut self.calls {
            if matches!(purpose, Purpose::Create { .. }) {
                call.kill();
            }
        }
    }

    pub(super) fn run_start(&mut self) {
        if let Err(error) = self.run_simple("start", &[], Purpose::Start) {
            self.fail("run the OCI runtime", &error);
            self.happen(Event::StartFailed);
        }
    }

    /// By force only where init may live (a `create` that failed): runc waits a tenth of a second
    /// after the SIGKILL that it then sends in any case.
    pub(super) fn run_delete(&mut self) {
        self.run_delete_as(self.state.phase == Phase::Undoing);
    }

    fn run_delete_as(&mut self, forced: bool) {
        let options: &[&str] = if forced { &["--force"] } else { &[] };
        if let Err(error) = self.run_simple("delete", options, Purpose::Delete { forced }) {
            self.note_delete_failure(oci::system("run the OCI runtime", &error));
            self.happen(Event::DeleteFailed);
        }
    }

    fn run_simple(&mut self, verb: &str, options: &[&str], purpose: Purpose) -> io::Result<()> {
        let serial = self.next_serial();
        let caller = self.caller(serial);
        let mut command = caller.command(verb, None);
        command.args(options).arg(&self.container.id);
        let call = caller.start_listening(verb, command)?;
        self.watch_call(serial, purpose, call);
        Ok(())
    }

    pub(super) fn watch_call(&mut self, serial: u32, purpose: Purpose, call: Call) {
        // Where it cannot be watched its end is still seen, by SIGCHLD.
        let _ = self.watch(call.pidfd.as_fd(), Source::Call(serial));
        self.calls.push((serial, purpose, call));
    }

    /// The OCI runtime has returned.
    pub(super) fn call_ended(&mut self, serial: u32) {
        let Some(at) = self.calls.iter().position(|(found, _, _)| *found == serial) else { return };
        let (_, purpose, call) = self.calls.swap_remove(at);
        self.unwatch(call.pidfd.as_fd());
        match purpose {
            Purpose::Create { pid_file, console } => self.create_ended(call, &pid_file, console),
            Purpose::Start => match call.finish(String::new) {
                Ok(()) => {
                    let end = self.ended.map_or(i64::MAX, |ended| ended.at_ns);
                    self.started_at_ns = now_ns().min(end);
                    self.watch_outputs();
                    self.happen(Event::StartSucceeded);
                }
                Err(failure) => {
                    self.failure = Some(failure);
                    self.happen(Event::StartFailed);
                }
            },
            Purpose::Exec(pending) => self.exec_call_ended(pending, call),
            Purpose::Delete { forced } => match call.finish(String::new) {
                Ok(()) => {
                    self.forget_delete_failure();
                    self.happen(Event::Deleted);
                }
                // It does not see the end that we saw, or something is left in the cgroup.
                Err(_) if !forced => self.run_delete_as(true),
                Err(failure) => {
                    self.note_delete_failure(failure);
                    self.happen(Event::DeleteFailed);
                }
            },
        }
    }

    /// An earlier attempt may have failed.
    fn forget_delete_failure(&mut self) {
        if self.state.phase != Phase::Undoing {
            self.failure = None;
        }
    }

    /// What `create` had to say is the better reason, if it failed too.
    fn note_delete_failure(&mut self, failure: Failure) {
        if self.state.phase != Phase::Undoing {
            self.failure = Some(failure);
        }
    }

    fn create_ended(&mut self, call: Call, pid_file: &std::path::Path, console: Option<Console>) {
        let result = call.finish(|| read_rest(self.streams.stderr.as_ref()));
        let pid = oci::take_pid(pid_file);
        match result.and_then(|()| self.take_container(pid, console)) {
            Ok(()) => self.happen(Event::CreateSucceeded),
            Err(failure) => {
                self.failure = Some(failure);
                self.happen(Event::CreateFailed);
            }
        }
    }

    fn take_container(
        &mut self,
        pid: Option<i32>,
        console: Option<Console>,
    ) -> Result<(), Failure> {
        let pid = pid.ok_or(io::ErrorKind::NotFound.into());
        let pid = pid.map_err(|error| oci::system("read the OCI runtime's pid file", &error))?;
        let take = |error| oci::system("take over the container", &error);
        if let Some(console) = console {
            self.streams.terminal = Some(console.receive().map_err(take)?);
        }
        let init = Init::child(pid).map_err(take)?;
        self.watch(init.pidfd.as_fd(), Source::Init).map_err(take)?;
        self.init = Some(init);
        if let Some(path) = &self.container.cgroup.oom_counter {
            let watch = |error| oci::system("watch the container's memory", &error);
            let oom = OomWatch::new(path).map_err(watch)?;
            self.watch_oom(oom).map_err(watch)?;
        }
        Ok(())
    }
}
