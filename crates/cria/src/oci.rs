//! The OCI runtime: which one this node has, whether it works here, and the calls that the daemon
//! makes itself. (`create`, `start` and `exec` are the monitor's.)

mod probe;
mod program;

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

pub(crate) use probe::{Finding, Probe, candidates, choose, output};

use self::program::SealedProgram;

use crate::id::ContainerId;

/// What the monitor may add to the runtime's own deadline before it is thought dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// What counts of what a runtime complains of.
const LONGEST_COMPLAINT: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("cannot run {runtime}")]
    Spawn { runtime: PathBuf, source: io::Error },
    #[error("`{runtime} {command}` did not end within {deadline:?}")]
    TimedOut { runtime: PathBuf, command: &'static str, deadline: Duration },
    #[error("`{runtime} {command}` failed: {message}")]
    Failed { runtime: PathBuf, command: &'static str, message: String },
    #[error("no OCI runtime works on this node: {tried}")]
    None { tried: String },
}

/// The one that this daemon uses.
#[derive(Clone, Debug)]
pub(crate) struct OciRuntime {
    path: PathBuf,
    /// None: it does not work from memory.
    sealed: Option<SealedProgram>,
    /// Its `--root`.
    state: PathBuf,
    systemd_cgroup: bool,
    deadline: Duration,
    /// Its `--version`, first line.
    pub(crate) version: String,
    /// Why this one was chosen.
    pub(crate) reason: String,
    /// Whether it can make a mount read-only with all that is mounted below it.
    pub(crate) recursive_read_only: bool,
}

impl OciRuntime {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a monitor is to run for a call that would else begin with a copy. None: the file.
    pub(crate) fn program(&self) -> Option<OwnedFd> {
        self.sealed.as_ref()?.now()
    }

    /// The runtime handler's name: the program's.
    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or("oci")
    }

    /// The arguments before every command.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--root".to_owned(), self.state.display().to_string()];
        if self.systemd_cgroup {
            arguments.push("--systemd-cgroup".to_owned());
        }
        arguments
    }

    /// How long one call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How long a monitor may take that makes one call.
    pub(crate) fn patience(&self) -> Duration {
        self.deadline + PATIENCE
    }

    /// Whether it has a state directory for the container: created, and not deleted.
    pub(crate) fn knows(&self, id: &ContainerId) -> bool {
        self.state.join(id.as_str()).exists()
    }

    /// Kills what runs, and forgets the container.
    pub(crate) async fn delete(&self, id: &ContainerId) -> Result<(), OciError> {
        self.call("delete", &["--force", id.as_str()], None).await
    }

    /// Changes a container's limits.
    pub(crate) async fn update(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), OciError> {
        let text = serde_json::to_vec(resources).expect("limits are plain values");
        self.call("update", &["--resources", "-", id.as_str()], Some(&text)).await
    }

    async fn call(
        &self,
        command: &'static str,
        arguments: &[&str],
        input: Option<&[u8]>,
    ) -> Result<(), OciError> {
        let failed = |source| OciError::Spawn { runtime: self.path.clone(), source };
        // A file and no pipe: it neither fills up nor waits for a grandchild (a hook's) that holds it.
        let complaint = memfd_create("stderr", MemfdFlags::CLOEXEC);
        let mut complaint = File::from(complaint.map_err(|error| failed(error.into()))?);
        let mut child = Command::new(&self.path)
            .args(self.arguments())
            .arg(command)
            .args(arguments)
            // As the monitors run it. (OCI runtimes act on systemd's NOTIFY_SOCKET.)
            .env_clear()
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::null())
            .stderr(complaint.try_clone().map_err(failed)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // A runtime that does not read says itself what is wrong.
            drop(stdin.write_all(input).await);
        }
        let status = timeout(self.deadline, child.wait()).await.map_err(|_| {
            let (runtime, deadline) = (self.path.clone(), self.deadline);
            OciError::TimedOut { runtime, command, deadline }
        })?;
        if status.map_err(failed)?.success() {
            return Ok(());
        }
        let message = text_of(&mut complaint).map_err(failed)?;
        Err(OciError::Failed { runtime: self.path.clone(), command, message })
    }
}

fn text_of(complaint: &mut File) -> io::Result<String> {
    let mut text = vec![];
    complaint.rewind()?;
    complaint.take(LONGEST_COMPLAINT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// A runtime that is a shell script.
    fn runtime(directory: &Path, script: &str) -> OciRuntime {
        let (draft, path) = (directory.join("draft"), directory.join("runtime"));
        fs_err::write(&draft, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")).unwrap();
        fs_err::set_permissions(&draft, Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a file that a child of another test holds open for writing
        // cannot be run.
        assert!(std::process::Command::new("cp").arg(draft).arg(&path).status().unwrap().success());
        OciRuntime {
            path,
            sealed: None,
            state: directory.to_owned(),
            systemd_cgroup: false,
            deadline: Duration::from_secs(20),
            version: String::new(),
            reason: String::new(),
            recursive_read_only: false,
        }
    }

    #[tokio::test]
    async fn a_call_has_ended_when_the_runtime_has_though_a_child_of_it_holds_its_stderr() {
        let directory = tempfile::tempdir().unwrap();
        let child = directory.path().join("child");
        let script = format!("sleep 1000 &\necho $! > {}", child.display());
        let runtime = runtime(directory.path(), &script);
        runtime.call("delete", &[], None).await.unwrap();
        let pid = fs_err::read_to_string(child).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn what_a_runtime_complains_of_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = runtime(directory.path(), "cat; echo no such container >&2; exit 1");
        let error = runtime.call("update", &[], Some(b"limits")).await.unwrap_err().to_string();
        assert!(error.ends_with("update` failed: no such container"), "{error}");
    }
}
