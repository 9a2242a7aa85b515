//! Which OCI runtime works here: each candidate runs a real container once.
//!
//! Debian 12's crun refuses the hybrid cgroup layout, and one that is started in a mount namespace
//! of its own would lose Bidirectional mounts: neither shows before a container is run. The answer
//! is kept for the boot, by the program's path, size and time of change, because every start of the
//! daemon would otherwise wait for it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Features, OciError, OciRuntime};
use crate::checkpoint;
use crate::{mounts, programs};

/// In the order of preference: crun starts a container in a third of runc's time.
const CANDIDATES: [&str; 2] = ["crun", "runc"];

/// For one call of a trial: much longer than any takes.
const DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// Where and how a candidate is tried.
pub(crate) struct Probe<'a> {
    /// From the configuration; none: the first candidate that works.
    pub(crate) configured: Option<&'a Path>,
    pub(crate) run: &'a Path,
    pub(crate) state: &'a Path,
    /// The static binary that the trial container runs.
    pub(crate) monitor: &'a Path,
    pub(crate) systemd_cgroup: bool,
    pub(crate) deadline: Duration,
    pub(crate) boot_id: &'a str,
}

/// What was found out about one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    program: Program,
    boot_id: String,
    systemd_cgroup: bool,
    /// The first line of what it says of itself.
    pub(crate) version: String,
    mount_options: Vec<String>,
    /// Why it does not work; none: it does.
    pub(crate) fault: Option<String>,
}

/// Tells one build of a program from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    path: PathBuf,
    size: u64,
    changed_ns: i64,
}

impl Program {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs_err::metadata(path)?;
        let changed_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
        Ok(Self { path: path.to_owned(), size: found.len(), changed_ns })
    }
}

/// Those that are installed.
pub(crate) fn candidates() -> Vec<PathBuf> {
    CANDIDATES.iter().filter_map(|name| programs::find(name.as_ref())).collect()
}

impl Finding {
    /// Whether it is new enough to say what it can do.
    pub(crate) fn tells_features(&self) -> bool {
        !self.mount_options.is_empty()
    }

    /// Whether it can make a mount read-only with all that is mounted below it.
    pub(crate) fn recursive_read_only(&self) -> bool {
        self.mount_options.iter().any(|option| option == "rro")
    }
}

/// The runtime that is configured, or the first candidate that works. Blocking.
pub(crate) fn choose(probe: &Probe<'_>) -> Result<OciRuntime, OciError> {
    let candidates = match probe.configured {
        Some(path) => vec![path.to_owned()],
        None => candidates(),
    };
    let mut tried = Vec::new();
    for path in candidates {
        let finding = probe.look_at(&path)?;
        let Some(fault) = finding.fault else {
            let reason = match (probe.configured, tried.is_empty()) {
                (Some(_), _) => "it is configured".to_owned(),
                (None, true) => "it works, and is the fastest".to_owned(),
                (None, false) => format!("it works; {}", tried.join("; ")),
            };
            return Ok(OciRuntime {
                path,
                state: probe.state.to_owned(),
                systemd_cgroup: probe.systemd_cgroup,
                deadline: probe.deadline,
                version: finding.version,
                reason,
                features: Features { mount_options: finding.mount_options },
            });
        };
        tried.push(format!("{} does not work here: {fault}", path.display()));
    }
    let tried = if tried.is_empty() {
        format!("neither {} is installed", CANDIDATES.join(" nor "))
    } else {
        tried.join("; ")
    };
    Err(OciError::None { tried })
}

impl Probe<'_> {
    fn look_at(&self, path: &Path) -> Result<Finding, OciError> {
        let failed = |source| OciError::Spawn { runtime: path.to_owned(), source };
        let program = Program::at(path).map_err(failed)?;
        let cache = self.run.join("oci-probe.json");
        let mut known: Vec<Finding> =
            checkpoint::read(&cache).map(|Known { findings }| findings).unwrap_or_default();
        let fits = |finding: &&Finding| {
            finding.program == program
                && finding.boot_id == self.boot_id
                && finding.systemd_cgroup == self.systemd_cgroup
        };
        if let Some(finding) = known.iter().find(fits) {
            return Ok(finding.clone());
        }
        let finding = self.try_out(path).map_err(failed)?;
        known.retain(|other| other.program.path != finding.program.path);
        known.push(finding.clone());
        if let Err(error) = checkpoint::write(&cache, &Known { findings: known }) {
            tracing::warn!(%error, "cannot keep what was found out about the OCI runtime");
        }
        Ok(finding)
    }

    /// The trial itself, whatever was found before.
    pub(crate) fn try_out(&self, path: &Path) -> io::Result<Finding> {
        let program = Program::at(path)?;
        let version = output(Command::new(path).arg("--version"))?;
        let version =
            String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or("").to_owned();
        let trial = Trial { probe: self, path, directory: self.run.join("oci-probe") };
        let fault = trial.run();
        trial.clear()?;
        Ok(Finding {
            program,
            boot_id: self.boot_id.to_owned(),
            systemd_cgroup: self.systemd_cgroup,
            version,
            mount_options: features(path).mount_options,
            fault: fault.err().map(|error| error.to_string()),
        })
    }
}

/// Runs `command` to its end, which must come soon: a runtime that hangs must not hang whoever asks
/// about it. What it says fits into a pipe.
fn output(command: &mut Command) -> io::Result<Output> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let mut poll = [PollFd::new(&process, PollFlags::IN)];
    if rustix::event::poll(&mut poll, Some(&DEADLINE))? == 0 {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end in time"));
    }
    child.wait_with_output()
}

/// The file of findings.
#[derive(Serialize, Deserialize)]
struct Known {
    findings: Vec<Finding>,
}

/// An old runtime has no such command: then nothing special is known of it.
fn features(path: &Path) -> Features {
    let output = output(Command::new(path).arg("features"));
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default()
}

/// One container that mounts something in a Bidirectional mount.
struct Trial<'a> {
    probe: &'a Probe<'a>,
    path: &'a Path,
    directory: PathBuf,
}

impl Trial<'_> {
    fn run(&self) -> io::Result<()> {
        self.clear()?;
        let (rootfs, shared) = (self.directory.join("rootfs"), self.directory.join("shared"));
        for directory in [rootfs.join("shared"), shared.join("mounted")] {
            fs_err::create_dir_all(directory)?;
        }
        mount_bind(&shared, &shared)?;
        mount_change(&shared, MountPropagationFlags::SHARED)?;
        fs_err::copy(self.probe.monitor, rootfs.join("monitor"))?;
        let spec = serde_json::to_vec(&self.spec(&shared))?;
        fs_err::write(self.directory.join("config.json"), spec)?;

        let output = self.call(&["run", "--bundle", &self.directory.display().to_string()])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().rev().find(|line| !line.trim().is_empty());
            return Err(io::Error::other(line.unwrap_or("it says nothing").to_owned()));
        }
        match mounts::is_mount_point(&shared.join("mounted"))? {
            true => Ok(()),
            false => Err(io::Error::other("a Bidirectional mount does not reach the host")),
        }
    }

    fn call(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(self.path);
        command.arg("--root").arg(self.probe.state);
        if self.probe.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        output(command.args(arguments).arg(self.name()))
    }

    /// Unique beside another daemon's trial.
    fn name(&self) -> String {
        format!("cria-probe-{}", std::process::id())
    }

    fn spec(&self, shared: &Path) -> serde_json::Value {
        let cgroup = match self.probe.systemd_cgroup {
            true => format!("system.slice:cria:{}", self.name()),
            false => format!("/{}", self.name()),
        };
        let capabilities = ["CAP_SYS_ADMIN"];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/monitor", "probe-mount", "/shared/mounted"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rshared"]},
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}],
                "rootfsPropagation": "rshared",
            },
        })
    }

    /// Removes what this trial, or one that a crash cut short, has left.
    fn clear(&self) -> io::Result<()> {
        mounts::detach(&self.directory.join("shared/mounted"))?;
        mounts::detach(&self.directory.join("shared"))?;
        match fs_err::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
