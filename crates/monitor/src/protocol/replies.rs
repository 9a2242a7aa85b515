//! Replies and events to bytes and back, and the parts that requests share with them.

use super::codec::{Fds, Fields, HEADER_LEN, Header, Packet, ProtocolError, Writer};
use super::{Descriptors, Event, Failure, FailureKind, Phase, Reply, State};
use crate::exit::{Exit, Status};

mod kind {
    pub(super) const DONE: u16 = 0x101;
    pub(super) const STATE: u16 = 0x102;
    pub(super) const STARTED: u16 = 0x103;
    pub(super) const EXEC_STARTED: u16 = 0x104;
    pub(super) const FAILED: u16 = 0x105;

    pub(super) const EXITED: u16 = 0x201;
    pub(super) const EXEC_EXITED: u16 = 0x202;
    pub(super) const STDIN_CLOSED: u16 = 0x203;
    pub(super) const LOG_LOST: u16 = 0x204;
    pub(super) const SETTLED: u16 = 0x205;
}

mod state {
    pub(super) const PHASE: u16 = 1;
    pub(super) const INIT_PID: u16 = 2;
    pub(super) const STARTED_AT: u16 = 3;
    pub(super) const EXIT: u16 = 4;
    pub(super) const STDIN_OPEN: u16 = 5;
    pub(super) const DESCRIPTORS: u16 = 6;
    pub(super) const SETTLING: u16 = 7;
}

mod descriptors {
    pub(super) const INIT: u16 = 1;
    pub(super) const STDOUT: u16 = 2;
    pub(super) const STDERR: u16 = 3;
    pub(super) const TERMINAL: u16 = 4;
    pub(super) const STDIN: u16 = 5;
}

mod exit {
    pub(super) const STATUS: u16 = 1;
    pub(super) const OOM_KILLED: u16 = 2;
    pub(super) const STARTED_AT: u16 = 3;
    pub(super) const FINISHED_AT: u16 = 4;
    pub(super) const LOG_BYTES_LOST: u16 = 5;
}

mod status {
    pub(super) const CODE: u16 = 1;
    pub(super) const SIGNAL: u16 = 2;
}

mod started {
    pub(super) const AT: u16 = 1;
}

mod exec_started {
    pub(super) const PID: u16 = 1;
    pub(super) const TERMINAL: u16 = 2;
    pub(super) const PROCESS: u16 = 3;
}

mod failed {
    pub(super) const KIND: u16 = 1;
    pub(super) const MESSAGE: u16 = 2;
}

mod exited {
    pub(super) const EXIT: u16 = 1;
}

mod exec_exited {
    pub(super) const EXEC: u16 = 1;
    pub(super) const STATUS: u16 = 2;
    pub(super) const TIMED_OUT: u16 = 3;
}

mod log_lost {
    pub(super) const BYTES: u16 = 1;
    pub(super) const ERROR: u16 = 2;
}

/// Whatever a monitor sends.
#[derive(Debug)]
pub enum FromMonitor {
    /// The answer to the request with this sequence number.
    Reply(u32, Reply),
    Event(Event),
}

impl FromMonitor {
    pub fn encode(self) -> Packet {
        match self {
            Self::Reply(sequence, reply) => encode_reply(sequence, reply),
            Self::Event(event) => encode_event(event),
        }
    }

    /// An unknown kind without a sequence number is a newer release's event: to be ignored.
    pub fn decode(packet: Packet) -> Result<Self, ProtocolError> {
        let header = Header::parse(&packet.bytes)?;
        let fields = Fields::parse(&packet.bytes[HEADER_LEN..], header.sequence)?;
        let mut fds: Fds = packet.fds.into_iter().map(Some).collect();
        let message = match header.kind {
            kind::DONE => Self::Reply(header.sequence, Reply::Done),
            kind::STATE => {
                let state = Box::new(read_state(&fields, &mut fds)?);
                Self::Reply(header.sequence, Reply::State(state))
            }
            kind::STARTED => {
                let at_ns = fields.signed(started::AT, "started.at_ns")?;
                Self::Reply(header.sequence, Reply::Started { at_ns })
            }
            kind::EXEC_STARTED => {
                let pid = fields.signed(exec_started::PID, "exec_started.pid")?;
                let terminal = fields.optional_fd(
                    exec_started::TERMINAL,
                    &mut fds,
                    "exec_started.terminal",
                )?;
                let process =
                    fields.optional_fd(exec_started::PROCESS, &mut fds, "exec_started.process")?;
                Self::Reply(header.sequence, Reply::ExecStarted { pid, terminal, process })
            }
            kind::FAILED => Self::Reply(header.sequence, Reply::Failed(read_failure(&fields)?)),
            kind::EXITED => {
                Self::Event(Event::Exited(read_exit(&fields.required(exited::EXIT, "exit")?)?))
            }
            kind::EXEC_EXITED => Self::Event(Event::ExecExited {
                exec: fields.number(exec_exited::EXEC, "exec_exited.exec")?,
                status: read_status(&fields, exec_exited::STATUS)?,
                timed_out: fields.bool(exec_exited::TIMED_OUT, "exec_exited.timed_out")?,
            }),
            kind::STDIN_CLOSED => Self::Event(Event::StdinClosed),
            kind::SETTLED => Self::Event(Event::Settled),
            kind::LOG_LOST => Self::Event(Event::LogLost {
                bytes: fields.number(log_lost::BYTES, "log_lost.bytes")?,
                error: fields.text(log_lost::ERROR),
            }),
            _ => return Err(header.unknown()),
        };
        Ok(message)
    }
}

fn encode_reply(sequence: u32, reply: Reply) -> Packet {
    let new = |kind| Writer::new(kind, sequence);
    let writer = match reply {
        Reply::Done => new(kind::DONE),
        Reply::State(state) => {
            let mut writer = new(kind::STATE);
            write_state(&mut writer, *state);
            writer
        }
        Reply::Started { at_ns } => {
            let mut writer = new(kind::STARTED);
            writer.signed(started::AT, at_ns);
            writer
        }
        Reply::ExecStarted { pid, terminal, process } => {
            let mut writer = new(kind::EXEC_STARTED);
            writer.signed(exec_started::PID, i64::from(pid));
            writer.optional_fd(exec_started::TERMINAL, terminal);
            writer.optional_fd(exec_started::PROCESS, process);
            writer
        }
        Reply::Failed(failure) => {
            let mut writer = new(kind::FAILED);
            writer.unsigned(failed::KIND, failure_number(failure.kind));
            writer.text(failed::MESSAGE, &failure.message);
            writer
        }
    };
    writer.finish()
}

fn encode_event(event: Event) -> Packet {
    let new = |kind| Writer::new(kind, 0);
    let writer = match event {
        Event::Exited(exit) => {
            let mut writer = new(kind::EXITED);
            writer.nested(exited::EXIT, |writer| write_exit(writer, &exit));
            writer
        }
        Event::ExecExited { exec, status, timed_out } => {
            let mut writer = new(kind::EXEC_EXITED);
            writer.unsigned(exec_exited::EXEC, exec);
            write_status(&mut writer, exec_exited::STATUS, status);
            writer.bool(exec_exited::TIMED_OUT, timed_out);
            writer
        }
        Event::StdinClosed => new(kind::STDIN_CLOSED),
        Event::Settled => new(kind::SETTLED),
        Event::LogLost { bytes, error } => {
            let mut writer = new(kind::LOG_LOST);
            writer.unsigned(log_lost::BYTES, bytes);
            writer.text(log_lost::ERROR, &error);
            writer
        }
    };
    writer.finish()
}

fn write_state(writer: &mut Writer, value: State) {
    writer.unsigned(state::PHASE, phase_number(value.phase));
    writer.signed(state::INIT_PID, i64::from(value.init_pid));
    writer.signed(state::STARTED_AT, value.started_at_ns);
    if let Some(exit) = &value.exit {
        writer.nested(state::EXIT, |writer| write_exit(writer, exit));
    }
    writer.bool(state::STDIN_OPEN, value.stdin_open);
    writer.bool(state::SETTLING, value.settling);
    write_descriptors(writer, state::DESCRIPTORS, value.descriptors);
}

fn read_state(fields: &Fields<'_>, fds: &mut Fds) -> Result<State, ProtocolError> {
    let phase = match fields.number(state::PHASE, "state.phase")? {
        1u64 => Phase::Created,
        2 => Phase::Running,
        3 => Phase::Exited,
        _ => return Err(fields.malformed("state.phase")),
    };
    Ok(State {
        phase,
        settling: fields.bool(state::SETTLING, "state.settling")?,
        init_pid: fields.signed(state::INIT_PID, "state.init_pid")?,
        started_at_ns: fields.signed(state::STARTED_AT, "state.started_at_ns")?,
        exit: fields.nested(state::EXIT)?.map(|fields| read_exit(&fields)).transpose()?,
        stdin_open: fields.bool(state::STDIN_OPEN, "state.stdin_open")?,
        descriptors: read_descriptors(fields, state::DESCRIPTORS, fds)?,
    })
}

fn phase_number(phase: Phase) -> u64 {
    match phase {
        Phase::Created => 1,
        Phase::Running => 2,
        Phase::Exited => 3,
    }
}

fn failure_number(kind: FailureKind) -> u64 {
    match kind {
        FailureKind::Refused => 1,
        FailureKind::TimedOut => 2,
        FailureKind::WrongPhase => 3,
        FailureKind::System => 4,
        FailureKind::Unsupported => 5,
    }
}

fn read_failure(fields: &Fields<'_>) -> Result<Failure, ProtocolError> {
    let kind = match fields.number(failed::KIND, "failed.kind")? {
        1u64 => FailureKind::Refused,
        2 => FailureKind::TimedOut,
        3 => FailureKind::WrongPhase,
        5 => FailureKind::Unsupported,
        // A newer release's reason is a failure all the same, and its message says more.
        _ => FailureKind::System,
    };
    Ok(Failure { kind, message: fields.text(failed::MESSAGE) })
}

pub(super) fn write_descriptors(writer: &mut Writer, tag: u16, value: Descriptors) {
    writer.nested(tag, |writer| {
        writer.optional_fd(descriptors::INIT, value.init);
        writer.optional_fd(descriptors::STDOUT, value.stdout);
        writer.optional_fd(descriptors::STDERR, value.stderr);
        writer.optional_fd(descriptors::TERMINAL, value.terminal);
        writer.optional_fd(descriptors::STDIN, value.stdin);
    });
}

pub(super) fn read_descriptors(
    fields: &Fields<'_>,
    tag: u16,
    fds: &mut Fds,
) -> Result<Descriptors, ProtocolError> {
    let Some(fields) = fields.nested(tag)? else { return Ok(Descriptors::default()) };
    Ok(Descriptors {
        init: fields.optional_fd(descriptors::INIT, fds, "descriptors.init")?,
        stdout: fields.optional_fd(descriptors::STDOUT, fds, "descriptors.stdout")?,
        stderr: fields.optional_fd(descriptors::STDERR, fds, "descriptors.stderr")?,
        terminal: fields.optional_fd(descriptors::TERMINAL, fds, "descriptors.terminal")?,
        stdin: fields.optional_fd(descriptors::STDIN, fds, "descriptors.stdin")?,
    })
}

fn write_exit(writer: &mut Writer, value: &Exit) {
    write_status(writer, exit::STATUS, value.status);
    writer.bool(exit::OOM_KILLED, value.oom_killed);
    writer.signed(exit::STARTED_AT, value.started_at_ns);
    writer.signed(exit::FINISHED_AT, value.finished_at_ns);
    writer.unsigned(exit::LOG_BYTES_LOST, value.log_bytes_lost);
}

fn read_exit(fields: &Fields<'_>) -> Result<Exit, ProtocolError> {
    Ok(Exit {
        status: read_status(fields, exit::STATUS)?,
        oom_killed: fields.bool(exit::OOM_KILLED, "exit.oom_killed")?,
        started_at_ns: fields.signed(exit::STARTED_AT, "exit.started_at_ns")?,
        finished_at_ns: fields.signed(exit::FINISHED_AT, "exit.finished_at_ns")?,
        log_bytes_lost: fields.number(exit::LOG_BYTES_LOST, "exit.log_bytes_lost")?,
    })
}

pub(super) fn write_status(writer: &mut Writer, tag: u16, value: Status) {
    writer.nested(tag, |writer| match value {
        Status::Code(code) => writer.unsigned(status::CODE, u64::from(code)),
        Status::Signal(signal) => writer.unsigned(status::SIGNAL, u64::from(signal)),
        Status::Unknown => {}
    });
}

pub(super) fn read_status(fields: &Fields<'_>, tag: u16) -> Result<Status, ProtocolError> {
    let fields = fields.required(tag, "status")?;
    if fields.get(status::CODE).is_some() {
        Ok(Status::Code(fields.number(status::CODE, "status.code")?))
    } else if fields.get(status::SIGNAL).is_some() {
        Ok(Status::Signal(fields.number(status::SIGNAL, "status.signal")?))
    } else {
        Ok(Status::Unknown)
    }
}
