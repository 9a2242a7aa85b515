//! Calls of the OCI runtime: `PATH arguments... --log FILE --log-format json VERB ...`. A call is
//! a child with a deadline, watched through its pidfd; nothing waits for it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cria_monitor::exit::Status;
use cria_monitor::protocol::{Create, Failure, FailureKind};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sys::{self, Wait};

/// Only the end of a long log or complaint can matter.
const LOG_BYTES: u64 = 64 << 10;

/// A call that is on its way.
pub(super) struct Call {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// As people know it: program and verb.
    name: String,
    begun: Instant,
    limit: Duration,
    timed_out: bool,
    log: PathBuf,
    stderr: Option<File>,
}

/// The arguments that all calls share.
pub(super) struct Caller<'a> {
    pub(super) container: &'a Create,
    /// Tells the files of calls that run at the same time apart.
    pub(super) serial: u32,
}

impl Caller<'_> {
    fn log(&self) -> PathBuf {
        self.container.run_dir.join(format!("oci-{}.log", self.serial))
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.container.run_dir.join(format!("pid-{}", self.serial))
    }

    /// `program`: what is run instead of the file at the runtime's path; it stays open until then.
    pub(super) fn command(&self, verb: &str, program: Option<&OwnedFd>) -> Command {
        let runtime = &self.container.runtime;
        let mut command = match program {
            Some(program) => Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())),
            None => Command::new(&runtime.path),
        };
        command.arg0(&runtime.path).args(&runtime.arguments);
        command.arg("--log").arg(self.log()).args(["--log-format", "json", verb]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        sys::as_oci_runtime(&mut command, self.container.oom_score_adj);
        command
    }

    /// Starts `command`, whose standard streams are the container's.
    pub(super) fn start(&self, verb: &str, command: Command) -> io::Result<Call> {
        self.spawn(verb, command, None)
    }

    /// Starts `command` and keeps what it complains about.
    pub(super) fn start_listening(&self, verb: &str, mut command: Command) -> io::Result<Call> {
        // A file and no pipe: it neither fills up nor waits for a grandchild that holds it.
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let stderr = File::from(nix::sys::memfd::memfd_create(c"stderr", flags)?);
        command.stderr(stderr.try_clone()?);
        self.spawn(verb, command, Some(stderr))
    }

    fn spawn(&self, verb: &str, mut command: Command, stderr: Option<File>) -> io::Result<Call> {
        let runtime = &self.container.runtime;
        let name = format!("{} {verb}", runtime.path.display());
        let (begun, limit) = (Instant::now(), runtime.deadline);
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let pidfd = sys::pidfd_open(pid)?;
        Ok(Call { pid, pidfd, name, begun, limit, timed_out: false, log: self.log(), stderr })
    }
}

impl Call {
    /// Ends a call that takes too long, with all that it started and that has not left its
    /// process group (a container's processes have).
    pub(super) fn kill(&mut self) {
        self.timed_out = true;
        // The leader is not reaped yet: its number, and so the group's, is still its own.
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        !self.timed_out && now.duration_since(self.begun) >= self.limit
    }

    /// When [`Call::kill`] is due, if it is still to come.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        (!self.timed_out).then(|| self.begun.checked_add(self.limit)).flatten()
    }

    /// How the call went, once its pidfd is readable. `complaint`: what else it may have written
    /// its error to.
    pub(super) fn finish(mut self, complaint: impl FnOnce() -> String) -> Result<(), Failure> {
        let ended = sys::wait(Some(self.pid), Wait::Reap);
        let log = tail(File::open(&self.log));
        let _ = fs::remove_file(&self.log);
        let status = match ended {
            Ok(Some((_, status))) => status,
            Ok(None) => Status::Unknown,
            Err(error) => return Err(system("wait for the OCI runtime", &error)),
        };
        if status == Status::Code(0) {
            return Ok(());
        }
        if self.timed_out {
            let message = format!("`{}` did not end within {:?}", self.name, self.limit);
            return Err(Failure { kind: FailureKind::TimedOut, message });
        }
        let message = last_error(&log)
            .or_else(|| self.stderr_text())
            .or_else(|| Some(complaint()).filter(|text| !text.is_empty()))
            .unwrap_or_else(|| format!("the OCI runtime ended with {status:?}"));
        Err(Failure { kind: FailureKind::Refused, message })
    }

    fn stderr_text(&mut self) -> Option<String> {
        let mut file = self.stderr.take()?;
        file.rewind().ok()?;
        let text = tail(Ok(file));
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

pub(super) fn system(action: &str, error: &io::Error) -> Failure {
    Failure { kind: FailureKind::System, message: format!("{action}: {error}") }
}

/// The pid that the OCI runtime wrote; the file is removed.
pub(super) fn take_pid(file: &Path) -> Option<i32> {
    let text = fs::read_to_string(file);
    let _ = fs::remove_file(file);
    text.ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

fn tail(file: io::Result<File>) -> String {
    let mut bytes = vec![];
    if let Ok(mut file) = file {
        let length = file.metadata().map_or(0, |found| found.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)));
        let _ = file.take(LOG_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The message of the last line at level error (or fatal) of a log in JSON lines.
fn last_error(log: &str) -> Option<String> {
    let is_error = |line: &&str| {
        matches!(string_value(line, "level").as_deref(), Some("error" | "fatal" | "panic"))
    };
    log.lines().rev().filter(is_error).find_map(|line| string_value(line, "msg"))
}

/// The string at `key` of a flat JSON object, such as log lines are.
fn string_value(object: &str, key: &str) -> Option<String> {
    let key = format!("\"{key}\"");
    let (_, rest) = object.split_once(&key)?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    unescape(rest)
}

/// A JSON string from behind its opening quote to the closing one.
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some(plain),
            '\\' => match characters.next()? {
                'n' => plain.push('\n'),
                't' => plain.push('\t'),
                'r' => plain.push('\r'),
                'b' | 'f' => plain.push(' '),
                'u' => {
                    let code: String = characters.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&code, 16).ok()?;
                    // Halves of surrogate pairs do not occur in file names and error texts.
                    plain.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                other => plain.push(other),
            },
            other => plain.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_reason() {
        let runc = concat!(
            r#"{"level":"warning","msg":"unable to x","time":"2026"}"#,
            "\n",
            r#"{"level":"error","msg":"runc create failed: exec: \"nope\": not found \u003ca\u003e","time":"2026"}"#,
            "\n",
            r#"{"level":"debug","msg":"after","time":"2026"}"#,
            "\n",
        );
        let reason = "runc create failed: exec: \"nope\": not found <a>";
        assert_eq!(last_error(runc).as_deref(), Some(reason));
        let crun = r#"{ "msg" : "open `x\\y`: No such file", "level" : "error" }"#;
        assert_eq!(last_error(crun).as_deref(), Some("open `x\\y`: No such file"));
        for nothing in
            ["", "plain text\n", r#"{"level":"info","msg":"fine"}"#, r#"{"level":"error"#]
        {
            assert_eq!(last_error(nothing), None, "{nothing}");
        }
    }
}
