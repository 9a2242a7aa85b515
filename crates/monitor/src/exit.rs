//! The exit record: what is left of a container when its init has ended. One small file in the
//! container's run directory, `key value` lines, there whole or not at all.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

const FILE: &str = "exit";
const ASIDE: &str = "exit.new";

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
    /// Bytes of output that could not be written to the log (disk full, I/O error), or were not when
    /// it had been waited for long enough.
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

impl Exit {
    /// Readers skip keys that they do not know: a newer release may add some.
    pub fn encode(&self) -> String {
        let mut text = match self.status {
            Status::Code(code) => format!("status code {code}\n"),
            Status::Signal(signal) => format!("status signal {signal}\n"),
            Status::Unknown => "status unknown\n".to_owned(),
        };
        let numbers = format_args!(
            "oom_killed {}\nstarted_at_ns {}\nfinished_at_ns {}\nlog_bytes_lost {}\n",
            self.oom_killed, self.started_at_ns, self.finished_at_ns, self.log_bytes_lost
        );
        text.write_fmt(numbers).expect("writing to a string cannot fail");
        text
    }

    /// `None` for what is not an exit record. Only the status and the finish must be there.
    pub fn decode(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
            pairs.find(|(found, _)| *found == key).map(|(_, value)| value)
        };
        let status = match value("status")?.split_once(' ') {
            Some(("code", code)) => Status::Code(code.parse().ok()?),
            Some(("signal", signal)) => Status::Signal(signal.parse().ok()?),
            Some(_) | None => Status::Unknown,
        };
        Some(Self {
            status,
            oom_killed: value("oom_killed").unwrap_or("false").parse().ok()?,
            started_at_ns: value("started_at_ns").unwrap_or("0").parse().ok()?,
            finished_at_ns: value("finished_at_ns")?.parse().ok()?,
            log_bytes_lost: value("log_bytes_lost").unwrap_or("0").parse().ok()?,
        })
    }

    /// Writes aside and renames, so that a reader finds the whole record or none. Not synced: a
    /// run directory does not outlive the boot.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let aside = run_dir.join(ASIDE);
        File::create(&aside)?.write_all(self.encode().as_bytes())?;
        fs::rename(aside, run_dir.join(FILE))
    }

    /// The record in `run_dir`; `None` as long as there is none.
    pub fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(run_dir.join(FILE)) {
            Ok(text) => Self::decode(&text).map(Some).ok_or(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> impl Iterator<Item = Exit> {
        let statuses = [0, 1, 137, 255].map(Status::Code).into_iter();
        let statuses = statuses.chain([1, 9, 64].map(Status::Signal)).chain([Status::Unknown]);
        statuses.flat_map(|status| {
            [(false, 0), (true, u64::MAX)].map(|(oom_killed, log_bytes_lost)| Exit {
                status,
                oom_killed,
                started_at_ns: 0,
                finished_at_ns: 1_764_000_000_123_456_789,
                log_bytes_lost,
            })
        })
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        for exit in records() {
            assert_eq!(Exit::decode(&exit.encode()), Some(exit));
        }
    }

    #[test]
    fn a_record_of_another_release_is_read() {
        let newer = "colour red\nstatus code 3\nfinished_at_ns 7\n";
        let exit = Exit::decode(newer).unwrap();
        assert_eq!((exit.status, exit.finished_at_ns), (Status::Code(3), 7));
        assert_eq!((exit.oom_killed, exit.log_bytes_lost), (false, 0));
    }

    #[test]
    fn what_is_no_record_is_none() {
        let broken = ["", "status code", "finished_at_ns 7", "status code 256\nfinished_at_ns 7\n"];
        for text in broken {
            let decoded = Exit::decode(text);
            assert!(decoded.is_none(), "{text:?} became {decoded:?}");
        }
    }

    #[test]
    fn a_written_record_is_read_and_none_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Exit::read(dir.path()).unwrap(), None);
        for exit in records() {
            exit.write(dir.path()).unwrap();
            assert_eq!(Exit::read(dir.path()).unwrap(), Some(exit));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
