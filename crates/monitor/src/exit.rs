//! The exit record: what is left of a container when its init has ended.

/// How a container ended. Only ever what the kernel said; see [`Status::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub status: Status,
    /// The kernel killed init for memory (DESIGN 3, OOM), and not after a SIGKILL of cria's own.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch; 0 if `start` never ran.
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch, taken when the monitor saw the end.
    pub finished_at_ns: i64,
    /// Bytes of output that could not be written to the log (disk full, I/O error).
    pub log_bytes_lost: u64,
}

/// What the kernel said of a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It called exit with this code, 0 to 255.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// Nobody who could ask the kernel was left (both monitor and daemon died).
    Unknown,
}

impl Status {
    /// The code as shells and the kubelet know it: 128 + the signal; 255 where unknown.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + i32::from(signal),
            Self::Unknown => 255,
        }
    }
}
