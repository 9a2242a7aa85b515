//! The container state machine. Pure: no clock, no disk, no process.
//!
//! ```text
//!            started              exited
//!  Created ──────────▶ Running ──────────▶ Exited
//!     └───────── exited, start failed ───────▲
//! ```
//!
//! Removed is not a state: a removed container has no record. Stopping is none either: a container
//! that is being stopped runs until it has ended.

use cria_monitor::exit::{Exit, Status};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// The OCI runtime's `create` has run. `broken` is its refusal, kept for StartContainer.
    Created {
        broken: Option<String>,
    },
    Running {
        init_pid: i32,
        started_at_ns: i64,
    },
    Exited(Exited),
}

/// What is left of a container that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub(crate) code: i32,
    pub(crate) reason: Reason,
    /// For people; empty where the code says all.
    pub(crate) message: String,
    /// 0: it never ran.
    pub(crate) started_at_ns: i64,
    pub(crate) finished_at_ns: i64,
}

/// The words that the kubelet and its users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    Completed,
    Error,
    #[serde(rename = "OOMKilled")]
    OomKilled,
    StartError,
    /// Nobody who could ask the kernel was left.
    Unknown,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("container is not in the created state")]
pub(crate) struct NotCreated;

impl State {
    pub(crate) fn started(self, init_pid: i32, started_at_ns: i64) -> Result<Self, NotCreated> {
        match self {
            Self::Created { .. } => Ok(Self::Running { init_pid, started_at_ns }),
            Self::Running { .. } | Self::Exited(_) => Err(NotCreated),
        }
    }

    /// The first exit wins: the monitor and a restarted daemon may both report it.
    pub(crate) fn exited(self, exit: Exited) -> Self {
        match self {
            Self::Created { .. } | Self::Running { .. } => Self::Exited(exit),
            Self::Exited(_) => self,
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self, Self::Exited(_))
    }
}

impl Exited {
    /// What the monitor recorded, in the CRI's words. Times are made monotone from `created_at_ns`
    /// on, because the kubelet orders and computes back-off from them and a clock may be set back.
    pub(crate) fn from_record(exit: &Exit, created_at_ns: i64) -> Self {
        let reason = match exit.status {
            Status::Unknown => Reason::Unknown,
            Status::Code(_) | Status::Signal(_) if exit.oom_killed => Reason::OomKilled,
            Status::Code(0) => Reason::Completed,
            Status::Code(_) | Status::Signal(_) => Reason::Error,
        };
        let started_at_ns = match exit.started_at_ns {
            0 => 0,
            at => at.max(created_at_ns),
        };
        let message = match exit.log_bytes_lost {
            0 => String::new(),
            lost => format!("{lost} bytes of output could not be written to the log"),
        };
        Self {
            code: exit.status.exit_code(),
            reason,
            message,
            started_at_ns,
            finished_at_ns: exit.finished_at_ns.max(started_at_ns).max(created_at_ns),
        }
    }

    /// A container whose `start` failed: it stays, so that the kubelet can look at it.
    pub(crate) fn never_started(message: String, now_ns: i64) -> Self {
        Self {
            code: 128,
            reason: Reason::StartError,
            message,
            started_at_ns: 0,
            finished_at_ns: now_ns,
        }
    }

    /// A container that ended while nobody was left to see how.
    pub(crate) fn unknown(message: &str, started_at_ns: i64, now_ns: i64) -> Self {
        Self {
            code: Status::Unknown.exit_code(),
            reason: Reason::Unknown,
            message: message.to_owned(),
            started_at_ns,
            finished_at_ns: now_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: Status, oom_killed: bool) -> Exit {
        Exit { status, oom_killed, started_at_ns: 20, finished_at_ns: 30, log_bytes_lost: 0 }
    }

    fn exited(code: i32) -> Exited {
        Exited {
            code,
            reason: Reason::Error,
            message: String::new(),
            started_at_ns: 1,
            finished_at_ns: 2,
        }
    }

    #[test]
    fn every_state_meets_every_event() {
        let created = State::Created { broken: None };
        let running = State::Running { init_pid: 7, started_at_ns: 1 };
        let gone = State::Exited(exited(1));

        assert_eq!(created.clone().started(7, 1), Ok(running.clone()));
        assert_eq!(running.clone().started(8, 2), Err(NotCreated));
        assert_eq!(gone.clone().started(8, 2), Err(NotCreated));

        assert_eq!(created.exited(exited(1)), gone);
        assert_eq!(running.exited(exited(1)), gone);
        assert_eq!(gone.clone().exited(exited(2)), gone, "the first exit wins");
    }

    #[test]
    fn the_reason_follows_from_what_the_kernel_said() {
        let cases = [
            (Status::Code(0), false, 0, Reason::Completed),
            (Status::Code(3), false, 3, Reason::Error),
            (Status::Signal(15), false, 143, Reason::Error),
            (Status::Signal(9), true, 137, Reason::OomKilled),
            (Status::Code(137), true, 137, Reason::OomKilled),
            (Status::Unknown, false, 255, Reason::Unknown),
        ];
        for (status, oom, code, reason) in cases {
            let exited = Exited::from_record(&exit(status, oom), 10);
            assert_eq!((exited.code, exited.reason), (code, reason), "{status:?}");
        }
    }

    #[test]
    fn times_never_run_backwards() {
        let exited = Exited::from_record(&exit(Status::Code(0), false), 100);
        assert_eq!((exited.started_at_ns, exited.finished_at_ns), (100, 100));
        let never = Exit { started_at_ns: 0, ..exit(Status::Signal(9), false) };
        assert_eq!(Exited::from_record(&never, 10).started_at_ns, 0);
    }
}
