//! ExecSync: a command in the container, its output in the daemon's memory, bounded.
//!
//! The bytes never pass through the monitor: the daemon makes the pipes and hands their far ends
//! over. The command ends with the connection that asked for it, at its deadline, or by itself.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cria_monitor::exit::Status;
use cria_monitor::protocol::{Exec, Reply, Request, SignalScope, Target};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::Container;
use super::spec::process::{self, Terminal};
use super::state::State;
use crate::error::Error;
use crate::monitor::{Monitor, MonitorError};
use crate::node::Node;
use crate::sys;

/// Of both streams together: the kubelet takes messages of 16 MiB, and their framing counts.
const OUTPUT_BYTES: usize = (16 << 20) - (64 << 10);

const TRUNCATED: &[u8] = b"\n[output truncated by cria]\n";

/// A command that is killed at its deadline still has to be seen to end.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// The monitor ends a command at its deadline. So long after it nobody waits for that any more: the
/// kernel may hold the process, or somebody the monitor.
const END_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct ExecOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
}

/// The commands that run in one container.
#[derive(Default)]
pub(super) struct Execs {
    next: AtomicU64,
    running: Mutex<HashMap<u64, oneshot::Sender<End>>>,
}

/// A command that runs.
pub(super) struct Begun {
    /// If it was to have one.
    pub(super) terminal: Option<OwnedFd>,
    /// Its pidfd.
    process: Option<OwnedFd>,
}

pub(super) struct End {
    pub(super) status: Status,
    timed_out: bool,
}

impl Execs {
    pub(super) fn begin(&self) -> (u64, oneshot::Receiver<End>) {
        let exec = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, end) = oneshot::channel();
        self.lock().insert(exec, sender);
        (exec, end)
    }

    pub(super) fn ended(&self, exec: u64, status: Status, timed_out: bool) {
        if let Some(sender) = self.lock().remove(&exec) {
            // Whoever asked may have given up.
            drop(sender.send(End { status, timed_out }));
        }
    }

    pub(super) fn forget(&self, exec: u64) {
        self.lock().remove(&exec);
    }

    /// The monitor has gone: nobody will say how they end.
    pub(super) fn forsake(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<End>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the command when whoever asked for it has gone.
struct Running<'a> {
    container: &'a Container,
    exec: u64,
    /// Its pidfd, once it runs.
    process: Option<OwnedFd>,
    /// The monitor died: nobody else ends it.
    forsaken: bool,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.container.execs.forget(self.exec);
        if self.ended {
            return;
        }
        let Some(monitor) = self.container.monitor().filter(|_| !self.forsaken) else {
            if let Some(process) = &self.process {
                // It may have ended: then that is what is wanted.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            return;
        };
        let target = Target::Exec(self.exec);
        let kill = Request::Signal { target, signal: libc::SIGKILL, scope: SignalScope::Group };
        tokio::spawn(async move { drop(monitor.tell(kill, END_DEADLINE).await) });
    }
}

impl Container {
    /// Runs `command` in the container; `timeout` none: as long as it takes.
    pub(crate) async fn exec_sync(
        &self,
        node: &Node,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let monitor = self.running_monitor().await?;
        let failed = |action: &'static str| {
            let id = self.id.clone();
            move |error| Error::io(format!("{action} in container {id}"), error)
        };
        let process = self.exec_process(node, command, Terminal::None)?;
        let stdout = Output::new().map_err(failed("make a pipe for a command"))?;
        let stderr = Output::new().map_err(failed("make a pipe for a command"))?;
        let (exec, end) = self.execs.begin();
        let mut running =
            Running { container: self, exec, process: None, forsaken: false, ended: false };
        let (stdout, stdout_end) = stdout;
        let (stderr, stderr_end) = stderr;
        let request = Request::Exec(Exec {
            exec,
            process,
            terminal: false,
            stdin: None,
            stdout: Some(stdout_end),
            stderr: Some(stderr_end),
            timeout,
            dies_with_connection: true,
            program: node.oci.program(),
        });
        running.process = self.begin_exec(node, &monitor, request, timeout).await?.process;
        let collected = collect(stdout, stderr, end);
        let collected = match timeout {
            Some(timeout) => tokio::time::timeout(timeout.saturating_add(END_PATIENCE), collected)
                .await
                .map_err(|_| Error::ExecTimeout(timeout))?,
            None => collected.await,
        };
        let (stdout, stderr, end) = collected.map_err(failed("read the output of a command"))?;
        running.ended = end.is_some();
        running.forsaken = end.is_none();
        let end = end.ok_or_else(|| {
            Error::internal(format!("learn how a command in {} ended", self.id), MonitorError::Gone)
        })?;
        match (end.timed_out, timeout) {
            (true, Some(timeout)) => Err(Error::ExecTimeout(timeout)),
            _ => Ok(ExecOutput { stdout, stderr, exit_code: end.status.exit_code() }),
        }
    }

    pub(crate) fn check_running(&self) -> Result<(), Error> {
        match self.state() {
            State::Created { .. } => Err(self.wrong_state("not running yet")),
            State::Exited(_) => Err(self.wrong_state("exited")),
            State::Running { .. } => Ok(()),
        }
    }

    pub(super) async fn running_monitor(&self) -> Result<std::sync::Arc<Monitor>, Error> {
        self.check_running()?;
        let monitor = self.monitor_soon().await;
        monitor.ok_or_else(|| self.wrong_state("without a monitor"))
    }

    pub(super) async fn begin_exec(
        &self,
        node: &Node,
        monitor: &Monitor,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Begun, Error> {
        match monitor.ask(request, node.oci.patience()).await {
            Ok(Reply::ExecStarted { terminal, process, .. }) => Ok(Begun { terminal, process }),
            Ok(_) => {
                let error = MonitorError::Unexpected { request: "exec" };
                Err(Error::internal(format!("run a command in container {}", self.id), error))
            }
            Err(error) => Err(match (error.timed_out(), timeout) {
                // Its own time, and not the OCI runtime's.
                (true, Some(timeout)) if timeout <= node.oci.deadline() => {
                    Error::ExecTimeout(timeout)
                }
                _ => Error::internal(format!("run a command in container {}", self.id), error),
            }),
        }
    }

    /// The OCI process object, sealed: the container's own process with another command line.
    pub(super) fn exec_process(
        &self,
        node: &Node,
        command: Vec<String>,
        terminal: Terminal,
    ) -> Result<OwnedFd, Error> {
        let failed =
            |error| Error::io(format!("describe a command for container {}", self.id), error);
        let path = node.paths.container_run(&self.id).join("config.json");
        let process = fs_err::read(path)
            .and_then(|text| Ok(serde_json::from_slice::<SpecProcess>(&text)?.process))
            .map_err(failed)?;
        let process = process::for_exec(&process, command, terminal);
        sealed(&process).map_err(failed)
    }
}

/// The part of a spec that an exec needs.
#[derive(serde::Deserialize)]
struct SpecProcess {
    process: oci_spec::runtime::Process,
}

fn sealed(process: &oci_spec::runtime::Process) -> io::Result<OwnedFd> {
    let file = memfd_create("process", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    serde_json::to_writer(&mut file, process)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// One stream of a command.
struct Output {
    pipe: AsyncFd<OwnedFd>,
    kept: Vec<u8>,
    open: bool,
    /// Of what was read beyond the bound.
    discarded: bool,
}

impl Output {
    /// And the end that the command writes into.
    fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        let pipe = sys::watch(read)?;
        Ok((Self { pipe, kept: Vec::new(), open: true, discarded: false }, write))
    }

    /// Reads something; forever pending once the stream has ended.
    async fn read(&mut self, room: usize) -> io::Result<()> {
        if !self.open {
            return std::future::pending().await;
        }
        let mut buffer = [0_u8; 16 << 10];
        loop {
            let mut ready = self.pipe.readable().await?;
            match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref().as_fd(), &mut buffer)?)) {
                Ok(count) => {
                    let count = count?;
                    drop(ready);
                    self.keep(&buffer[..count], room);
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }

    /// What the pipe holds now: all that the command wrote is in it. A background child may keep it
    /// open for ever, and keep it full: nothing is waited for, nor what comes later read.
    fn drain(&mut self, room: usize) {
        let pipe = self.pipe.get_ref();
        let held = rustix::io::ioctl_fionread(pipe).unwrap_or_default();
        let mut held = vec![0; usize::try_from(held).unwrap_or_default()];
        if let Ok(count @ 1..) = rustix::io::read(pipe, &mut held) {
            self.keep(&held[..count], room);
        }
    }

    fn keep(&mut self, bytes: &[u8], room: usize) {
        self.open = !bytes.is_empty();
        let fits = bytes.len().min(room);
        self.kept.extend_from_slice(&bytes[..fits]);
        self.discarded |= fits < bytes.len();
    }

    fn finish(mut self) -> Vec<u8> {
        if self.discarded {
            self.kept.extend_from_slice(TRUNCATED);
        }
        self.kept
    }
}

/// Reads both streams until the command has ended and they are empty. No end: the monitor is gone.
async fn collect(
    mut stdout: Output,
    mut stderr: Output,
    mut end: oneshot::Receiver<End>,
) -> io::Result<(Vec<u8>, Vec<u8>, Option<End>)> {
    let end = loop {
        let room = OUTPUT_BYTES.saturating_sub(stdout.kept.len() + stderr.kept.len());
        tokio::select! {
            read = stdout.read(room) => read?,
            read = stderr.read(room) => read?,
            end = &mut end => break end.ok(),
        }
    };
    stdout.drain(OUTPUT_BYTES.saturating_sub(stdout.kept.len() + stderr.kept.len()));
    stderr.drain(OUTPUT_BYTES.saturating_sub(stdout.kept.len() + stderr.kept.len()));
    Ok((stdout.finish(), stderr.finish(), end))
}
