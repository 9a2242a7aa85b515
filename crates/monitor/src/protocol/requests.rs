//! Requests to bytes and back. A tag, once used, keeps its meaning for ever.

use std::time::Duration;

use super::codec::{Fds, Fields, HEADER_LEN, Header, Packet, ProtocolError, Writer};
use super::replies::{read_descriptors, read_status, write_descriptors, write_status};
use super::{Adopt, ContainerCgroup, Create, Exec, OciRuntime, Request, SignalScope, Target};

mod kind {
    pub(super) const CREATE: u16 = 1;
    pub(super) const ADOPT: u16 = 2;
    pub(super) const STATE: u16 = 3;
    pub(super) const START: u16 = 4;
    pub(super) const EXEC: u16 = 5;
    pub(super) const SIGNAL: u16 = 6;
    pub(super) const ATTACH: u16 = 7;
    // 8 was "resize": who has the terminal resizes it.
    pub(super) const REOPEN_LOG: u16 = 9;
    pub(super) const CLOSE_STDIN: u16 = 10;
    pub(super) const INIT_ENDED: u16 = 11;
    pub(super) const RELEASE: u16 = 12;
}

mod create {
    pub(super) const ID: u16 = 1;
    pub(super) const BUNDLE: u16 = 2;
    pub(super) const RUN_DIR: u16 = 3;
    pub(super) const RUNTIME: u16 = 4;
    pub(super) const LOG: u16 = 5;
    pub(super) const TERMINAL: u16 = 6;
    pub(super) const STDIN: u16 = 7;
    pub(super) const STDIN_ONCE: u16 = 8;
    pub(super) const CGROUP: u16 = 9;
    pub(super) const OWN_PID_NAMESPACE: u16 = 10;
    pub(super) const OOM_SCORE_ADJ: u16 = 11;
    pub(super) const JOIN_CGROUP: u16 = 12;
    pub(super) const PROGRAM: u16 = 13;
}

mod runtime {
    pub(super) const PATH: u16 = 1;
    pub(super) const ARGUMENT: u16 = 2;
    pub(super) const DEADLINE: u16 = 3;
}

mod cgroup {
    pub(super) const OOM_COUNTER: u16 = 1;
    pub(super) const PROCESSES: u16 = 2;
    pub(super) const KILL: u16 = 3;
    pub(super) const FREEZER: u16 = 4;
}

mod adopt {
    pub(super) const CONTAINER: u16 = 1;
    pub(super) const INIT_PID: u16 = 2;
    pub(super) const STARTED_AT: u16 = 3;
    pub(super) const KILLED_BY_US: u16 = 4;
    // 5 was whether the daemon will send `InitEnded`: nobody asked.
    pub(super) const DESCRIPTORS: u16 = 6;
}

mod exec {
    pub(super) const EXEC: u16 = 1;
    pub(super) const PROCESS: u16 = 2;
    pub(super) const TERMINAL: u16 = 3;
    pub(super) const STDIN: u16 = 4;
    pub(super) const STDOUT: u16 = 5;
    pub(super) const STDERR: u16 = 6;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const DIES_WITH_CONNECTION: u16 = 8;
    pub(super) const PROGRAM: u16 = 9;
}

mod signal {
    pub(super) const TARGET: u16 = 1;
    pub(super) const SIGNAL: u16 = 2;
    /// A process alone, unless this is true.
    pub(super) const GROUP: u16 = 3;
}

mod attach {
    pub(super) const STDIN: u16 = 1;
    pub(super) const STDOUT: u16 = 2;
    pub(super) const STDERR: u16 = 3;
    pub(super) const SOCKET: u16 = 4;
}

mod init_ended {
    pub(super) const STATUS: u16 = 1;
}

/// Within the target of a signal: an exec's number; init where there is none.
const TARGET_EXEC: u16 = 1;

impl Request {
    pub fn encode(self, sequence: u32) -> Packet {
        let mut writer = Writer::new(self.kind(), sequence);
        match self {
            Self::Create { container, program } => {
                write_create(&mut writer, &container);
                writer.optional_fd(create::PROGRAM, program);
            }
            Self::Adopt(adopt) => write_adopt(&mut writer, *adopt),
            Self::State | Self::Start | Self::ReopenLog | Self::CloseStdin | Self::Release => {}
            Self::Exec(exec) => write_exec(&mut writer, exec),
            Self::Signal { target, signal, scope } => {
                write_target(&mut writer, signal::TARGET, target);
                writer.signed(signal::SIGNAL, i64::from(signal));
                writer.bool(signal::GROUP, scope == SignalScope::Group);
            }
            Self::Attach { stdin, stdout, stderr, socket } => {
                writer.bool(attach::STDIN, stdin);
                writer.bool(attach::STDOUT, stdout);
                writer.bool(attach::STDERR, stderr);
                writer.fd(attach::SOCKET, socket);
            }
            Self::InitEnded { status } => write_status(&mut writer, init_ended::STATUS, status),
        }
        writer.finish()
    }

    /// The request and its sequence number. An error that has a sequence number wants an answer.
    pub fn decode(packet: Packet) -> Result<(u32, Self), ProtocolError> {
        let header = Header::parse(&packet.bytes)?;
        let fields = Fields::parse(&packet.bytes[HEADER_LEN..], header.sequence)?;
        let mut fds: Fds = packet.fds.into_iter().map(Some).collect();
        let request = match header.kind {
            kind::CREATE => Self::Create {
                container: Box::new(read_create(&fields)?),
                program: fields.optional_fd(create::PROGRAM, &mut fds, "create.program")?,
            },
            kind::ADOPT => Self::Adopt(Box::new(read_adopt(&fields, &mut fds)?)),
            kind::STATE => Self::State,
            kind::START => Self::Start,
            kind::EXEC => Self::Exec(read_exec(&fields, &mut fds)?),
            kind::SIGNAL => read_signal(&fields)?,
            kind::ATTACH => Self::Attach {
                stdin: fields.bool(attach::STDIN, "attach.stdin")?,
                stdout: fields.bool(attach::STDOUT, "attach.stdout")?,
                stderr: fields.bool(attach::STDERR, "attach.stderr")?,
                socket: fields.fd(attach::SOCKET, &mut fds, "attach.socket")?,
            },
            kind::REOPEN_LOG => Self::ReopenLog,
            kind::CLOSE_STDIN => Self::CloseStdin,
            kind::INIT_ENDED => {
                Self::InitEnded { status: read_status(&fields, init_ended::STATUS)? }
            }
            kind::RELEASE => Self::Release,
            _ => return Err(header.unknown()),
        };
        Ok((header.sequence, request))
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Create { .. } => kind::CREATE,
            Self::Adopt(_) => kind::ADOPT,
            Self::State => kind::STATE,
            Self::Start => kind::START,
            Self::Exec(_) => kind::EXEC,
            Self::Signal { .. } => kind::SIGNAL,
            Self::Attach { .. } => kind::ATTACH,
            Self::ReopenLog => kind::REOPEN_LOG,
            Self::CloseStdin => kind::CLOSE_STDIN,
            Self::InitEnded { .. } => kind::INIT_ENDED,
            Self::Release => kind::RELEASE,
        }
    }
}

fn write_create(writer: &mut Writer, value: &Create) {
    writer.text(create::ID, &value.id);
    writer.path(create::BUNDLE, &value.bundle);
    writer.path(create::RUN_DIR, &value.run_dir);
    writer.nested(create::RUNTIME, |writer| write_runtime(writer, &value.runtime));
    writer.optional_path(create::LOG, value.log.as_deref());
    writer.bool(create::TERMINAL, value.terminal);
    writer.bool(create::STDIN, value.stdin);
    writer.bool(create::STDIN_ONCE, value.stdin_once);
    writer.nested(create::CGROUP, |writer| write_cgroup(writer, &value.cgroup));
    writer.bool(create::OWN_PID_NAMESPACE, value.own_pid_namespace);
    writer.signed(create::OOM_SCORE_ADJ, i64::from(value.oom_score_adj));
    for path in &value.join_cgroups {
        writer.path(create::JOIN_CGROUP, path);
    }
}

fn read_create(fields: &Fields<'_>) -> Result<Create, ProtocolError> {
    Ok(Create {
        id: fields.text(create::ID),
        bundle: fields.path(create::BUNDLE, "create.bundle")?,
        run_dir: fields.path(create::RUN_DIR, "create.run_dir")?,
        runtime: read_runtime(&fields.required(create::RUNTIME, "create.runtime")?)?,
        log: fields.optional_path(create::LOG),
        terminal: fields.bool(create::TERMINAL, "create.terminal")?,
        stdin: fields.bool(create::STDIN, "create.stdin")?,
        stdin_once: fields.bool(create::STDIN_ONCE, "create.stdin_once")?,
        cgroup: fields
            .nested(create::CGROUP)?
            .map(|fields| read_cgroup(&fields))
            .unwrap_or_default(),
        own_pid_namespace: fields.bool(create::OWN_PID_NAMESPACE, "create.own_pid_namespace")?,
        oom_score_adj: fields.signed(create::OOM_SCORE_ADJ, "create.oom_score_adj")?,
        join_cgroups: fields.paths(create::JOIN_CGROUP),
    })
}

fn write_runtime(writer: &mut Writer, value: &OciRuntime) {
    writer.path(runtime::PATH, &value.path);
    for argument in &value.arguments {
        writer.text(runtime::ARGUMENT, argument);
    }
    writer.duration(runtime::DEADLINE, value.deadline);
}

fn read_runtime(fields: &Fields<'_>) -> Result<OciRuntime, ProtocolError> {
    Ok(OciRuntime {
        path: fields.path(runtime::PATH, "runtime.path")?,
        arguments: fields.texts(runtime::ARGUMENT),
        deadline: fields.duration(runtime::DEADLINE, "runtime.deadline")?,
    })
}

fn write_cgroup(writer: &mut Writer, value: &ContainerCgroup) {
    writer.optional_path(cgroup::OOM_COUNTER, value.oom_counter.as_deref());
    writer.optional_path(cgroup::PROCESSES, value.processes.as_deref());
    writer.optional_path(cgroup::KILL, value.kill.as_deref());
    writer.optional_path(cgroup::FREEZER, value.freezer.as_deref());
}

fn read_cgroup(fields: &Fields<'_>) -> ContainerCgroup {
    ContainerCgroup {
        oom_counter: fields.optional_path(cgroup::OOM_COUNTER),
        processes: fields.optional_path(cgroup::PROCESSES),
        kill: fields.optional_path(cgroup::KILL),
        freezer: fields.optional_path(cgroup::FREEZER),
    }
}

fn write_adopt(writer: &mut Writer, value: Adopt) {
    writer.nested(adopt::CONTAINER, |writer| write_create(writer, &value.container));
    writer.signed(adopt::INIT_PID, i64::from(value.init_pid));
    writer.signed(adopt::STARTED_AT, value.started_at_ns);
    writer.bool(adopt::KILLED_BY_US, value.killed_by_us);
    write_descriptors(writer, adopt::DESCRIPTORS, value.descriptors);
}

fn read_adopt(fields: &Fields<'_>, fds: &mut Fds) -> Result<Adopt, ProtocolError> {
    Ok(Adopt {
        container: read_create(&fields.required(adopt::CONTAINER, "adopt.container")?)?,
        init_pid: fields.signed(adopt::INIT_PID, "adopt.init_pid")?,
        started_at_ns: fields.signed(adopt::STARTED_AT, "adopt.started_at_ns")?,
        killed_by_us: fields.bool(adopt::KILLED_BY_US, "adopt.killed_by_us")?,
        descriptors: read_descriptors(fields, adopt::DESCRIPTORS, fds)?,
    })
}

fn write_exec(writer: &mut Writer, value: Exec) {
    writer.unsigned(exec::EXEC, value.exec);
    writer.fd(exec::PROCESS, value.process);
    writer.bool(exec::TERMINAL, value.terminal);
    writer.optional_fd(exec::STDIN, value.stdin);
    writer.optional_fd(exec::STDOUT, value.stdout);
    writer.optional_fd(exec::STDERR, value.stderr);
    if let Some(timeout) = value.timeout {
        writer.duration(exec::TIMEOUT, timeout);
    }
    writer.bool(exec::DIES_WITH_CONNECTION, value.dies_with_connection);
    writer.optional_fd(exec::PROGRAM, value.program);
}

fn read_exec(fields: &Fields<'_>, fds: &mut Fds) -> Result<Exec, ProtocolError> {
    Ok(Exec {
        exec: fields.number(exec::EXEC, "exec.exec")?,
        process: fields.fd(exec::PROCESS, fds, "exec.process")?,
        terminal: fields.bool(exec::TERMINAL, "exec.terminal")?,
        stdin: fields.optional_fd(exec::STDIN, fds, "exec.stdin")?,
        stdout: fields.optional_fd(exec::STDOUT, fds, "exec.stdout")?,
        stderr: fields.optional_fd(exec::STDERR, fds, "exec.stderr")?,
        timeout: read_timeout(fields)?,
        dies_with_connection: fields
            .bool(exec::DIES_WITH_CONNECTION, "exec.dies_with_connection")?,
        program: fields.optional_fd(exec::PROGRAM, fds, "exec.program")?,
    })
}

fn read_timeout(fields: &Fields<'_>) -> Result<Option<Duration>, ProtocolError> {
    match fields.get(exec::TIMEOUT) {
        Some(_) => fields.duration(exec::TIMEOUT, "exec.timeout").map(Some),
        None => Ok(None),
    }
}

fn read_signal(fields: &Fields<'_>) -> Result<Request, ProtocolError> {
    let scope = match fields.bool(signal::GROUP, "signal.scope")? {
        true => SignalScope::Group,
        false => SignalScope::Process,
    };
    Ok(Request::Signal {
        target: read_target(fields, signal::TARGET)?,
        signal: fields.signed(signal::SIGNAL, "signal.signal")?,
        scope,
    })
}

fn write_target(writer: &mut Writer, tag: u16, target: Target) {
    writer.nested(tag, |writer| match target {
        Target::Init => {}
        Target::Exec(exec) => writer.unsigned(TARGET_EXEC, exec),
    });
}

fn read_target(fields: &Fields<'_>, tag: u16) -> Result<Target, ProtocolError> {
    let target = fields.required(tag, "target")?;
    match target.get(TARGET_EXEC) {
        Some(_) => Ok(Target::Exec(target.number(TARGET_EXEC, "target.exec")?)),
        None => Ok(Target::Init),
    }
}
