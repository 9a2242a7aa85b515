//! One run of one plugin: found, started with nothing but what it is told, read, and ended at its
//! deadline with all that it started.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::io::Read;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::Access;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

use crate::orphans;
use crate::sys;

/// More than this is no answer of a plugin.
const STDOUT_LIMIT: usize = 1 << 20;

/// What is kept of a plugin's complaints.
const STDERR_LIMIT: usize = 16 << 10;

/// A killed process that is not gone by then hangs in the kernel; we do not hang with it.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// How often it is looked whether killed processes are gone: a process group cannot be waited for
/// without a thread.
const DEATH_LOOK: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Status,
    Gc,
}

/// Why a plugin did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginFailure {
    #[error("it is in none of {}", join(.searched))]
    Missing { searched: Vec<PathBuf> },
    #[error("it cannot be run")]
    Start(#[source] io::Error),
    #[error("it did not finish within {0:?} and was killed")]
    TimedOut(Duration),
    /// The plugin's own words.
    #[error("{message} (code {code}){}", prefixed(.details))]
    Refused { code: u32, message: String, details: String },
    #[error("it ended with {status} and no reason{}", prefixed(.output))]
    Died { status: ExitStatus, output: String },
    #[error("its answer cannot be read ({reason}){}", prefixed(.output))]
    Garbage { reason: String, output: String },
    #[error("its answer is longer than {STDOUT_LIMIT} bytes; it was killed")]
    TooMuchOutput,
}

/// Where plugins are, and how long each may take.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) deadline: Duration,
}

/// A plugin's run.
pub(super) struct Run<'a> {
    pub(super) plugin: &'a str,
    pub(super) command: Command,
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// By this it is found should the daemon die before it does.
    pub(super) mark: String,
    pub(super) input: Vec<u8>,
}

impl Command {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    /// Whether a plugin may be cut short because the daemon ends. Where it changes something it may
    /// not: not every plugin can then be told to undo it. (Debian 12's bridge removes its rules only
    /// together with the interface, and fails where it had not made all of them.)
    pub(super) fn dies_with_daemon(self) -> bool {
        match self {
            Self::Status | Self::Gc => true,
            Self::Add | Self::Del => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Plugins {
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, PluginFailure> {
        let candidates = self.dirs.iter().map(|dir| dir.join(plugin));
        candidates
            .into_iter()
            .find(|path| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok())
            .ok_or_else(|| PluginFailure::Missing { searched: self.dirs.clone() })
    }

    /// What the plugin wrote, if it succeeded.
    pub(super) async fn run(&self, run: Run<'_>) -> Result<Vec<u8>, PluginFailure> {
        let started = self.start(&run).map_err(|error| match error {
            StartError::Plugin(failure) => failure,
            StartError::System(error) => PluginFailure::Start(error),
        })?;
        let Finished { status, stdout, stderr } = started.finish(run.input, self.deadline).await?;
        if status.success() { Ok(stdout) } else { Err(refusal(status, &stdout, &stderr)) }
    }

    fn start(&self, run: &Run<'_>) -> Result<Started, StartError> {
        let path = self.find(run.plugin).map_err(StartError::Plugin)?;
        let (stdout_end, stdout) = pipe::pipe()?;
        let (stderr_end, stderr) = pipe::pipe()?;
        let mut command = tokio::process::Command::new(path);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
            .env("CNI_COMMAND", run.command.as_str())
            .env("CNI_PATH", std::env::join_paths(&self.dirs).map_err(io::Error::other)?)
            .env(orphans::MARK, &run.mark)
            .envs(run.environment.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(stdout_end.into_blocking_fd()?)
            .stderr(stderr_end.into_blocking_fd()?)
            .process_group(0);
        let child = match run.command.dies_with_daemon() {
            true => sys::dies_with_daemon(command.kill_on_drop(true)).spawn()?,
            false => sys::outlives_daemon(&mut command).spawn()?,
        };
        Ok(Started {
            group: Group::of(&child, run.command),
            child,
            stdout: Output { pipe: stdout, text: Vec::new() },
            stderr: Output { pipe: stderr, text: Vec::new() },
        })
    }
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum StartError {
    Plugin(PluginFailure),
    System(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

struct Started {
    group: Group,
    child: Child,
    stdout: Output,
    stderr: Output,
}

struct Finished {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum End {
    Exited(io::Result<ExitStatus>),
    TooMuchOutput,
    TimedOut,
}

impl Started {
    async fn finish(
        mut self,
        input: Vec<u8>,
        deadline: Duration,
    ) -> Result<Finished, PluginFailure> {
        let stdin = self.child.stdin.take();
        let end = tokio::select! {
            status = self.child.wait() => End::Exited(status),
            () = self.stdout.overflow(STDOUT_LIMIT) => End::TooMuchOutput,
            () = tokio::time::sleep(deadline) => End::TimedOut,
            // These two only keep the pipes moving; they never end the wait.
            () = feed(stdin, input) => unreachable!("feeding a plugin does not complete"),
            () = self.stderr.drain(STDERR_LIMIT) => unreachable!("draining does not complete"),
        };
        match end {
            End::Exited(status) => {
                self.group.forget();
                let status = status.map_err(PluginFailure::Start)?;
                let stdout = self.stdout.rest(STDOUT_LIMIT).map_err(PluginFailure::Start)?;
                let stderr = self.stderr.rest(STDERR_LIMIT).map_err(PluginFailure::Start)?;
                Ok(Finished { status, stdout, stderr })
            }
            End::TooMuchOutput => {
                self.kill().await;
                Err(PluginFailure::TooMuchOutput)
            }
            End::TimedOut => {
                self.kill().await;
                Err(PluginFailure::TimedOut(deadline))
            }
        }
    }

    async fn kill(mut self) {
        let group = self.group.kill();
        // Not gone in time: tokio reaps it whenever it goes.
        if timeout(DEATH_DEADLINE, self.child.wait()).await.is_ok()
            && let Some(group) = group
        {
            // Not gone in time: `reaper` takes them whenever they go.
            let _ = timeout(DEATH_DEADLINE, reap(group)).await;
        }
    }
}

/// Waits for what a killed plugin had started: its orphans are ours, because the daemon is a
/// subreaper.
async fn reap(group: Pid) {
    let Some(group) = rustix::process::Pid::from_raw(group.as_raw()) else { return };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    // ECHILD: none is left.
    while let Ok(ended) = waitid(WaitId::Pgid(Some(group)), options) {
        if ended.is_none() {
            tokio::time::sleep(DEATH_LOOK).await;
        }
    }
}

/// Writes the plugin's input, then waits for ever. A plugin may ignore its input: it is its exit
/// that tells whether that was right.
async fn feed(stdin: Option<ChildStdin>, input: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&input).await;
    }
    std::future::pending().await
}

/// The process group of a plugin that has not been waited for, killed when dropped unless it is to
/// finish: what the plugin started goes with it, also if the caller stops waiting.
struct Group {
    leader: Option<Pid>,
    finishes: bool,
}

impl Group {
    fn of(child: &Child, command: Command) -> Self {
        let leader = child.id().and_then(|pid| pid.try_into().ok()).map(Pid::from_raw);
        Self { leader, finishes: !command.dies_with_daemon() }
    }

    /// The plugin was waited for: its number may now be another's.
    fn forget(&mut self) {
        self.leader = None;
    }

    fn kill(&mut self) -> Option<Pid> {
        let group = self.leader.take()?;
        // It may have ended by itself; there is nothing else to do about a failure.
        let _ = killpg(group, Signal::SIGKILL);
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.finishes {
            self.kill();
        }
    }
}

struct Output {
    pipe: pipe::Receiver,
    text: Vec<u8>,
}

impl Output {
    /// Reads on; completes only once there are more than `limit` bytes.
    async fn overflow(&mut self, limit: usize) {
        let mut buffer = vec![0; 16 << 10];
        while self.text.len() <= limit {
            match self.pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => std::future::pending().await,
                Ok(length) => self.text.extend_from_slice(&buffer[..length]),
            }
        }
    }

    /// Reads on for ever and keeps the first `limit` bytes.
    async fn drain(&mut self, limit: usize) {
        self.overflow(limit).await;
        let mut buffer = [0; 4096];
        while self.pipe.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        std::future::pending().await
    }

    /// All that was written, once the writer has ended: what it left running may hold the pipe
    /// open for ever, so the end of the file is not waited for.
    fn rest(self, limit: usize) -> io::Result<Vec<u8>> {
        let mut text = self.text;
        let mut pipe = std::fs::File::from(self.pipe.into_nonblocking_fd()?);
        let mut buffer = [0; 4096];
        while text.len() <= limit {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        text.truncate(limit);
        Ok(text)
    }
}

/// The specification's error object.
#[derive(Deserialize)]
struct ErrorAnswer {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn refusal(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> PluginFailure {
    match serde_json::from_slice::<ErrorAnswer>(stdout) {
        Ok(ErrorAnswer { code, msg, details }) => {
            PluginFailure::Refused { code, message: msg, details }
        }
        Err(_) => {
            let output = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
            PluginFailure::Died { status, output: excerpt(output) }
        }
    }
}

/// The beginning of what a plugin wrote, for a message.
pub(super) fn excerpt(output: &[u8]) -> String {
    const LIMIT: usize = 512;
    let text = output.trim_ascii();
    let shown = String::from_utf8_lossy(&text[..text.len().min(LIMIT)]);
    if text.len() > LIMIT { format!("{shown}...") } else { shown.into_owned() }
}

fn prefixed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn join(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}
