//! The init of a pod whose containers share one PID namespace.
//!
//! It is the monitor binary in its `pod-init` role, a child of the daemon, and lives on when the
//! daemon dies: a restarted one finds it by pid and start time. If it dies, every process in the
//! namespace dies with it, and the sandbox is NotReady.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

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
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let answer = monitor::run_role(spawner, &arguments, DEADLINE)?.answer.clone();
        let pid = answer.parse().map_err(io::Error::other)?;
        let init = Self { pid, start_time: process::start_time(pid)? };
        let namespace = format!("/proc/{pid}/ns/pid");
        namespaces::pin(Path::new(&namespace), &namespaces::pid_pin(paths, id))?;
        Ok(init)
    }

    /// The process itself, if it still is the one that was started.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        process::open(self.pid, self.start_time)
    }

    /// Ends it, and with it every process in its namespace.
    pub(crate) async fn end(self) -> io::Result<()> {
        let Some(process) = self.open() else { return Ok(()) };
        pidfd_send_signal(&process, Signal::KILL)?;
        monitor::reap(process).await;
        Ok(())
    }

    /// Returns when it has ended.
    pub(crate) async fn ended(self) {
        let Some(process) = self.open() else { return };
        if let Ok(process) = sys::watch(process) {
            drop(process.readable().await);
        }
    }
}
