//! The init of a pod whose containers share one PID namespace.
//!
//! It is the monitor binary in its `pod-init` role, a child of the daemon, and lives on when the
//! daemon dies: a restarted one finds it by pid and start time. If it dies, every process in the
//! namespace dies with it, and the sandbox is NotReady.
//!
//! What ends it while no record names it, because RunPodSandbox failed or the daemon died:
//!
//! ```text
//! started ───────────▶ namespace pinned ──▶ confirmed ───▶ recorded
//!    by itself: nobody confirmed it   │  found by the pin   │  found by the record
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::namespaces::{self, Kind};
use crate::id::SandboxId;
use crate::paths::Paths;
use crate::spawner::Spawner;
use crate::{monitor, process, sys};

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodInit {
    pub(crate) pid: i32,
    /// See `process::start_time`.
    pub(crate) start_time: u64,
}

impl PodInit {
    /// Starts it in the pod's namespaces and pins its PID namespace. Blocking.
    pub(super) fn start(
        spawner: &Spawner,
        paths: &Paths,
        id: &SandboxId,
        kinds: &[Kind],
        cgroups: &[PathBuf],
    ) -> io::Result<Self> {
        let mut arguments = vec!["pod-init".to_owned(), id.to_string()];
        let mut add =
            |flag: String, path: &Path| arguments.extend([flag, path.display().to_string()]);
        for kind in kinds {
            add(format!("--{}", kind.name()), &kind.pin(paths, id));
        }
        for file in cgroups {
            add("--cgroup".to_owned(), file);
        }
        arguments.extend(["--confirm".to_owned(), "yes".to_owned()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let role = monitor::run_role(spawner, &arguments, DEADLINE)?;
        let pid = role.answer.parse().map_err(io::Error::other)?;
        let init = Self { pid, start_time: process::start_time(pid)? };
        namespaces::pin(&namespace_of(pid), &namespaces::pid_pin(paths, id))?;
        role.confirm()?;
        Ok(init)
    }

    /// The process itself, if it still is the one that was started.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        process::open(self.pid, self.start_time)
    }

    /// Ends it, and with it every process in its namespace.
    pub(crate) async fn end(self) -> io::Result<()> {
        match self.open() {
            Some(process) => end(process).await,
            None => Ok(()),
        }
    }

    /// Returns when it has ended.
    pub(crate) async fn ended(self) {
        let Some(process) = self.open() else { return };
        if let Ok(process) = sys::watch(process) {
            drop(process.readable().await);
        }
    }
}

/// Ends the init of the pod whose PID namespace is pinned, if there is one. For when no record names
/// it.
pub(super) async fn end_pinned(paths: &Paths, id: &SandboxId) -> io::Result<()> {
    let pin = namespaces::pid_pin(paths, id);
    match spawn_blocking(move || find(&pin)).await?? {
        Some(process) => end(process).await,
        None => Ok(()),
    }
}

async fn end(process: OwnedFd) -> io::Result<()> {
    pidfd_send_signal(&process, Signal::KILL)?;
    monitor::reap(process).await;
    Ok(())
}

/// The first process of the PID namespace that is pinned at `pin`. Looks at every process there is.
fn find(pin: &Path) -> io::Result<Option<OwnedFd>> {
    let Some(namespace) = identity(pin) else { return Ok(None) };
    for entry in fs_err::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        // The pidfd first: what is read after it is of this process, or it has ended.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let pid = pid.as_raw_pid();
        if identity(&namespace_of(pid)) == Some(namespace) && is_first(pid) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

fn namespace_of(pid: i32) -> PathBuf {
    format!("/proc/{pid}/ns/pid").into()
}

/// What two names of one namespace have in common, and nothing else has.
fn identity(file: &Path) -> Option<(u64, u64)> {
    let found = fs_err::metadata(file).ok()?;
    Some((found.dev(), found.ino()))
}

/// Whether it is pid 1 in the innermost of the PID namespaces that it is in.
fn is_first(pid: i32) -> bool {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.and_then(|pids| pids.split_whitespace().next_back()) == Some("1")
}
