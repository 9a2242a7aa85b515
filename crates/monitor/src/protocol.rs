//! The protocol between the daemon and a monitor: typed messages, one per packet of a unix
//! seqpacket socket, descriptors beside them. Pure: no IO.
//!
//! A new monitor finds its end of a socketpair as its standard input, and its first message there
//! is `Create` or `Adopt`. It also listens on `monitor.sock` in its run directory, where a daemon
//! that was restarted connects. Every request is answered by exactly one reply with the same
//! sequence number; events come unasked, with sequence number 0.

pub(crate) mod codec;
mod replies;
mod requests;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::exit::{Exit, Status};

pub use codec::{Packet, ProtocolError};
pub use replies::FromMonitor;

/// What a daemon asks of a monitor.
#[derive(Debug)]
pub enum Request {
    /// First message of a new container: run the OCI runtime's `create`. Answered by
    /// `Reply::State` or `Reply::Failed`; after `Failed` the monitor quits.
    Create {
        container: Box<Create>,
        program: Program,
    },
    /// First message of a monitor that replaces a dead one. Answered by `Reply::State`.
    Adopt(Box<Adopt>),
    /// Everything a daemon needs to go on. Answered by `Reply::State`.
    State,
    /// Opens the log and runs the OCI runtime's `start`. Answered by `Reply::Started` or `Failed`.
    Start,
    /// Runs a process in the container. Answered by `Reply::ExecStarted` or `Failed`; its end is
    /// an `Event::ExecExited` on the same connection.
    Exec(Exec),
    /// Answered by `Reply::Done`, also when the process has ended.
    Signal {
        target: Target,
        signal: i32,
        scope: SignalScope,
    },
    /// Copies the output to a seqpacket socket from now on; each packet begins with 1 (stdout) or 2
    /// (stderr). Answered by `Reply::Done`. Closed by the monitor when the output has ended or the
    /// other end does not keep up; with `stdin` its end is that of a stdin that serves once.
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
        socket: OwnedFd,
    },
    /// Answered by `Reply::Done` when the new file is open; a failure leaves no new file.
    ReopenLog,
    CloseStdin,
    /// To an adopted init's monitor: the daemon, init's parent, has waited for it.
    InitEnded {
        status: Status,
    },
    /// The exit (if any) has been noted: remove what is left, answer `Done`, and quit. A container
    /// that still runs is killed first.
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Init,
    Exec(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalScope {
    /// The process alone.
    Process,
    /// Every process of the container's cgroup (the PID namespace is shared, or an exec's session).
    Group,
}

/// Everything a monitor must know of its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    pub id: String,
    /// The OCI bundle: `config.json` in it names the root file system.
    pub bundle: PathBuf,
    /// The container's run directory: `monitor.sock`, `exit`, `log.state` and pid files live here.
    pub run_dir: PathBuf,
    pub runtime: OciRuntime,
    /// The CRI log; nothing is created there before `Start`. None: the output is discarded.
    pub log: Option<PathBuf>,
    pub terminal: bool,
    pub stdin: bool,
    /// Closes stdin for good when the first attached client has gone.
    pub stdin_once: bool,
    pub cgroup: ContainerCgroup,
    /// Whether the container has a PID namespace of its own, so that init's end ends all.
    pub own_pid_namespace: bool,
    /// The container's, for the OCI runtime's children; clamped by the daemon.
    pub oom_score_adj: i32,
    /// `cgroup.procs` files that the monitor writes itself into, before anything else.
    pub join_cgroups: Vec<PathBuf>,
}

/// How to call the OCI runtime: `path arguments... COMMAND ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciRuntime {
    pub path: PathBuf,
    /// Global arguments, such as `--root DIR` and `--systemd-cgroup`.
    pub arguments: Vec<String>,
    /// Each call that takes longer is killed and has failed.
    pub deadline: Duration,
}

/// Where the container's cgroup can be read, once `create` has made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerCgroup {
    /// v2: `memory.events`; v1: `memory.oom_control`. Both hold a line `oom_kill N`.
    pub oom_counter: Option<PathBuf>,
    /// `cgroup.procs` of the container's cgroup (v1: of the pids or memory hierarchy).
    pub processes: Option<PathBuf>,
    /// v2's `cgroup.kill`.
    pub kill: Option<PathBuf>,
    /// v1's `freezer.state`: a frozen process does not die before it is thawed.
    pub freezer: Option<PathBuf>,
}

/// A container whose monitor died: what the daemon held of it.
#[derive(Debug)]
pub struct Adopt {
    pub container: Create,
    pub init_pid: i32,
    pub started_at_ns: i64,
    /// What was sent of SIGKILLs before, for the OOM verdict.
    pub killed_by_us: bool,
    pub descriptors: Descriptors,
}

/// The OCI runtime's program in a sealed memfd, for one call. None: the file at its path is run.
pub type Program = Option<OwnedFd>;

/// A process to run in the container.
#[derive(Debug)]
pub struct Exec {
    /// Chosen by the daemon, unique within the container.
    pub exec: u64,
    /// The OCI process object, JSON, in a sealed memfd.
    pub process: OwnedFd,
    pub terminal: bool,
    /// Its ends: the monitor hands them to the OCI runtime and closes them. With a terminal none:
    /// the reply brings the master.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// After this its whole session is killed.
    pub timeout: Option<Duration>,
    /// Its session is killed when the connection that asked for it ends (ExecSync).
    pub dies_with_connection: bool,
    pub program: Program,
}

/// The descriptors that outlive a monitor because the daemon holds them too.
#[derive(Debug, Default)]
pub struct Descriptors {
    pub init: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
    /// Only while stdin is open.
    pub stdin: Option<OwnedFd>,
}

#[derive(Debug)]
pub enum Reply {
    Done,
    State(Box<State>),
    Started {
        at_ns: i64,
    },
    ExecStarted {
        pid: i32,
        terminal: Option<OwnedFd>,
        /// Its pidfd, by which the daemon ends it should the monitor die.
        process: Option<OwnedFd>,
    },
    Failed(Failure),
}

#[derive(Debug)]
pub struct State {
    pub phase: Phase,
    /// What `phase` says is about to change: a start is under way, or its end not yet told. A
    /// `Settled` or an `Exited` follows.
    pub settling: bool,
    /// Init's pid in the daemon's PID namespace; 0 once it is reaped.
    pub init_pid: i32,
    pub started_at_ns: i64,
    pub exit: Option<Exit>,
    pub stdin_open: bool,
    pub descriptors: Descriptors,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running,
    Exited,
}

/// Why a request failed, in the words of whoever refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The OCI runtime ran and refused; the message is its own.
    Refused,
    /// The OCI runtime did not end within its deadline, and was killed.
    TimedOut,
    /// The request does not fit the container's phase.
    WrongPhase,
    /// The system failed the monitor (fork, open, write ...).
    System,
    /// This monitor does not know the request: it is an older release.
    Unsupported,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The exit record is on disk and the log's last byte is in its file, or counted as lost.
    Exited(Exit),
    ExecExited {
        exec: u64,
        status: Status,
        timed_out: bool,
    },
    StdinClosed,
    /// A start has succeeded or failed; for the connections that did not ask for it.
    Settled,
    /// The log could not be written; counted in the exit record too.
    LogLost {
        bytes: u64,
        error: String,
    },
}
