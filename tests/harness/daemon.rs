//! A daemon under test as a process: started with a log file, killed or ended, and its log shown
//! when the test fails.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{until, within};

/// How many lines of its log a failed test shows.
const SHOWN: usize = 200;

pub struct Daemon {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon that does not run yet.
    pub fn new(name: &'static str, log: PathBuf) -> Self {
        Self { name, log, child: None }
    }

    /// Starts `command`; what it says is appended to the log.
    #[track_caller]
    pub fn start(&mut self, command: &mut Command) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = append(&self.log).expect("the log's folder exists");
        let errors = log.try_clone().expect("a file can be opened twice");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// The process id of the running daemon.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Ends it at once; it is reaped when this returns.
    #[track_caller]
    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// Asks it to end, with SIGTERM, and waits up to `limit`.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("pids are positive"));
        kill(pid, signal).expect("our own child takes signals");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name;
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{name} does not run"));
        let status = until(&format!("{name} ends"), limit, || child.try_wait().ok().flatten());
        self.child = None;
        status
    }

    /// Waits until `ready` answers; panics with the log if the daemon ends before, or is late.
    #[track_caller]
    pub fn await_ready<T>(&mut self, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
        let mut ended = None;
        let answer = within(limit, || {
            ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() { Some(None) } else { ready().map(Some) }
        });
        match (answer.flatten(), ended) {
            (Some(answer), _) => answer,
            (None, Some(status)) => panic!("{} ended: {status}\n{}", self.name, self.tail()),
            (None, None) => panic!("{} not ready in {limit:?}\n{}", self.name, self.tail()),
        }
    }

    /// All that it has said, over all its starts.
    pub fn log(&self) -> String {
        let bytes = fs_err::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn log_file(&self) -> &Path {
        &self.log
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(SHOWN);
        format!("--- the end of {}'s log ---\n{}\n---", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
        if let Some(mut child) = self.child.take() {
            // It may be gone already; then there is nothing to end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    Ok(fs_err::OpenOptions::new().create(true).append(true).open(path)?.into_parts().0)
}
