//! Processes run in the container beside its init. Their bytes never come here: the daemon makes
//! the pipes, and the OCI runtime gets the other ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use cria_monitor::protocol::{Event as Told, Exec, Failure, FailureKind, Reply, SignalScope};

use super::cgroup;
use super::child;
use super::connection::Asker;
use super::oci::{self, Call};
use super::requests::Purpose;
use super::run::{Monitor, Source};
use super::state::Phase;
use super::stdio::{Console, path_for_child};
use crate::sys::{self, Wait};

/// One that the OCI runtime is starting.
pub(super) struct PendingExec {
    exec: u64,
    asker: Asker,
    pid_file: PathBuf,
    console: Option<Console>,
    deadline: Option<Instant>,
    /// Its time was over before it began, and whoever asked has been told.
    given_up: bool,
    dies_with_connection: bool,
    /// The OCI runtime reads it by our path.
    _process: OwnedFd,
}

impl PendingExec {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.given_up)
    }
}

pub(super) struct RunningExec {
    serial: u32,
    exec: u64,
    pid: i32,
    session: i32,
    pidfd: OwnedFd,
    connection: u32,
    deadline: Option<Instant>,
    timed_out: bool,
    dies_with_connection: bool,
}

impl RunningExec {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.timed_out)
    }
}

impl Monitor {
    pub(super) fn run_exec(&mut self, asker: Asker, exec: Exec) {
        if self.state.phase != Phase::Running || self.state.releasing {
            let message = "the container is not running".to_owned();
            let failure = Failure { kind: FailureKind::WrongPhase, message };
            return self.reply(asker, Reply::Failed(failure));
        }
        let serial = self.next_serial();
        match self.spawn_exec(serial, asker, exec) {
            Ok((pending, call)) => self.watch_call(serial, Purpose::Exec(pending), call),
            Err(error) => {
                let failure = oci::system("run the OCI runtime", &error);
                self.reply(asker, Reply::Failed(failure));
            }
        }
    }

    fn spawn_exec(
        &mut self,
        serial: u32,
        asker: Asker,
        exec: Exec,
    ) -> io::Result<(PendingExec, Call)> {
        let deadline = exec.timeout.map(|timeout| Instant::now() + timeout);
        let caller = self.caller(serial);
        let pid_file = caller.pid_file();
        let mut command = caller.command("exec", exec.program.as_ref());
        command.arg("--process").arg(path_for_child(&exec.process));
        command.arg("--pid-file").arg(&pid_file).arg("--detach");
        let console = match exec.terminal {
            true => Some(Console::listen(format!("console-{serial}"))?),
            false => None,
        };
        let call = if let Some(console) = &console {
            command.arg("--console-socket").arg(console.path()).arg(&self.container.id);
            caller.start_listening("exec", command)?
        } else {
            let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
            command.stdin(stdio(exec.stdin));
            command.stdout(stdio(exec.stdout)).stderr(stdio(exec.stderr));
            command.arg(&self.container.id);
            caller.start("exec", command)?
        };
        let pending = PendingExec {
            exec: exec.exec,
            asker,
            pid_file,
            console,
            deadline,
            given_up: false,
            dies_with_connection: exec.dies_with_connection,
            _process: exec.process,
        };
        Ok((pending, call))
    }

    /// Whoever gave an exec a second does not wait for a runtime that takes a minute. But the runtime
    /// is let finish, and its process is ended then: one that is killed between the process's start and
    /// its pid file would leave a process that nobody knows.
    pub(super) fn give_up_late_beginnings(&mut self, now: Instant) {
        let mut late = vec![];
        for (_, purpose, _) in &mut self.calls {
            if let Purpose::Exec(pending) = purpose
                && pending.next_deadline().is_some_and(|deadline| now >= deadline)
            {
                pending.given_up = true;
                late.push(pending.asker);
            }
        }
        for asker in late {
            let message = "the OCI runtime did not start the command in its time".to_owned();
            self.reply(asker, Reply::Failed(Failure { kind: FailureKind::TimedOut, message }));
        }
    }

    /// The OCI runtime has returned: the exec is our child now, perhaps a zombie already.
    pub(super) fn exec_call_ended(&mut self, pending: PendingExec, call: Call) {
        let result = call.finish(String::new);
        let pid = oci::take_pid(&pending.pid_file);
        let asker = pending.asker;
        if pending.given_up {
            return self.end_unwanted(pid);
        }
        let reply = match (result, pid) {
            (Ok(()), Some(pid)) => match self.take_exec(pending, pid) {
                Ok((terminal, process)) => {
                    Reply::ExecStarted { pid, terminal, process: Some(process) }
                }
                Err(error) => Reply::Failed(oci::system("take over the process", &error)),
            },
            (Ok(()), None) => {
                let error = io::ErrorKind::NotFound.into();
                Reply::Failed(oci::system("read the OCI runtime's pid file", &error))
            }
            (Err(failure), pid) => {
                self.end_unwanted(pid);
                Reply::Failed(failure)
            }
        };
        self.reply(asker, reply);
        if self.connections.iter().all(|found| found.serial != asker.connection) {
            self.end_execs_of(asker.connection);
        }
        self.look_at_execs();
    }

    /// A process of a call that nobody waits for, if it has one.
    fn end_unwanted(&self, pid: Option<i32>) {
        if let Some(pid) = pid {
            let session = cgroup::session_of_exec(pid);
            cgroup::kill_session(&self.container.cgroup, session);
        }
    }

    /// Its terminal, if it has one, and its pidfd, both for the daemon.
    fn take_exec(
        &mut self,
        pending: PendingExec,
        pid: i32,
    ) -> io::Result<(Option<OwnedFd>, OwnedFd)> {
        let session = cgroup::session_of_exec(pid);
        let terminal = pending.console.map(Console::receive).transpose();
        let terminal = terminal.inspect_err(|_| {
            cgroup::kill_session(&self.container.cgroup, session);
        })?;
        let pidfd = sys::pidfd_open(pid)?;
        let process = pidfd.try_clone()?;
        let serial = self.next_serial();
        self.watch(pidfd.as_fd(), Source::Exec(serial))?;
        self.execs.push(RunningExec {
            serial,
            exec: pending.exec,
            pid,
            session,
            pidfd,
            connection: pending.asker.connection,
            deadline: pending.deadline,
            timed_out: false,
            dies_with_connection: pending.dies_with_connection,
        });
        Ok((terminal, process))
    }

    /// A process that ended before its start was answered: its end is told after that answer.
    fn look_at_execs(&mut self) {
        let serials: Vec<u32> = self.execs.iter().map(|exec| exec.serial).collect();
        for serial in serials {
            self.exec_ended(serial);
        }
    }

    pub(super) fn exec_of(&self, pid: i32) -> Option<u32> {
        self.execs.iter().find(|exec| exec.pid == pid).map(|exec| exec.serial)
    }

    pub(super) fn exec_ended(&mut self, serial: u32) {
        let Some(at) = self.execs.iter().position(|exec| exec.serial == serial) else { return };
        let RunningExec { pid, pidfd, .. } = &self.execs[at];
        let Some(status) = child::end(*pid, pidfd.as_fd(), Wait::Reap) else { return };
        let exec = self.execs.swap_remove(at);
        self.unwatch(exec.pidfd.as_fd());
        let told = Told::ExecExited { exec: exec.exec, status, timed_out: exec.timed_out };
        self.tell(exec.connection, told);
    }

    pub(super) fn end_late_execs(&mut self, now: Instant) {
        for exec in &mut self.execs {
            if exec.next_deadline().is_some_and(|deadline| now >= deadline) {
                exec.timed_out = true;
                cgroup::kill_session(&self.container.cgroup, exec.session);
                let _ = sys::pidfd_signal(exec.pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }

    /// The connection has ended that asked for them.
    pub(super) fn end_execs_of(&mut self, connection: u32) {
        for exec in &self.execs {
            if exec.connection == connection && exec.dies_with_connection {
                cgroup::kill_session(&self.container.cgroup, exec.session);
                let _ = sys::pidfd_signal(exec.pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }

    /// One that has ended, or never was, needs no signal.
    pub(super) fn signal_exec(&self, exec: u64, signal: i32, scope: SignalScope) {
        let Some(exec) = self.execs.iter().find(|found| found.exec == exec) else { return };
        match scope {
            SignalScope::Process => drop(sys::pidfd_signal(exec.pidfd.as_fd(), signal)),
            SignalScope::Group if self.container.cgroup.processes.is_some() => {
                cgroup::signal_session(&self.container.cgroup, exec.session, signal);
            }
            SignalScope::Group => drop(sys::pidfd_signal(exec.pidfd.as_fd(), signal)),
        }
    }
}
