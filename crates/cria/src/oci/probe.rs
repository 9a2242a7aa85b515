//! Which OCI runtime works here: each candidate runs a real container once.
//!
//! Debian 12's crun refuses the hybrid cgroup layout, and one that is started in a mount namespace
//! of its own would lose Bidirectional mounts: neither shows before a container is run. The answer
//! is kept for the boot, by the program's path, size and time of change, because every start of the
//! daemon would otherwise wait for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::program::{Build, SealedProgram};
use super::{OciError, OciRuntime};
use crate::cgroup::{CgroupPath, Hierarchy};
use crate::checkpoint;
use crate::process::await_readable;
use crate::{mounts, programs};

/// In the order of preference: crun starts a container in a third of runc's time.
const CANDIDATES: [&str; 2] = ["crun", "runc"];

/// The exit code of the trial's container if the read-only mount is not so below its top.
const WRITABLE_BELOW: i32 = 3;

/// For one call of a trial: much longer than any takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// For what a trial left to die.
const CGROUP_DEADLINE: Duration = Duration::from_secs(10);

/// Where and how a candidate is tried.
pub(crate) struct Probe<'a> {
    /// From the configuration; none: the first candidate that works.
    pub(crate) configured: Option<&'a Path>,
    pub(crate) run: &'a Path,
    pub(crate) state: &'a Path,
    /// The static binary that the trial container runs.
    pub(crate) monitor: &'a Path,
    pub(crate) systemd_cgroup: bool,
    pub(crate) cgroups: &'a Hierarchy,
    pub(crate) deadline: Duration,
    pub(crate) boot_id: &'a str,
}

/// What was found out about one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    program: Build,
    boot_id: String,
    systemd_cgroup: bool,
    /// The first line of what it says of itself.
    pub(crate) version: String,
    /// Whether it can make a mount read-only with all that is mounted below it.
    pub(crate) recursive_read_only: bool,
    /// Whether it works when it is run from a copy in memory. (One that looks for its file does
    /// not, nor a script.)
    sealed: bool,
    /// Why it does not work; none: it does.
    pub(crate) fault: Option<String>,
}

/// Those that are installed.
pub(crate) fn candidates() -> Vec<PathBuf> {
    CANDIDATES.iter().filter_map(|name| programs::find(name.as_ref())).collect()
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
            let sealed = if finding.sealed { seal(&path) } else { None };
            return Ok(OciRuntime {
                path,
                sealed,
                state: probe.state.to_owned(),
                systemd_cgroup: probe.systemd_cgroup,
                deadline: probe.deadline,
                version: finding.version,
                reason,
                recursive_read_only: finding.recursive_read_only,
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

/// Without a copy everything works, only slower.
fn seal(path: &Path) -> Option<SealedProgram> {
    let sealed = SealedProgram::of(path);
    sealed.inspect_err(|error| tracing::warn!(%error, "the OCI runtime is run from its file")).ok()
}

impl Probe<'_> {
    fn look_at(&self, path: &Path) -> Result<Finding, OciError> {
        let failed = |source| OciError::Spawn { runtime: path.to_owned(), source };
        let program = Build::at(path).map_err(failed)?;
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
        let program = Build::at(path)?;
        let version = output(Command::new(path).arg("--version"))?;
        let version =
            String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or("").to_owned();
        let from_memory = SealedProgram::of(path).ok().and_then(|program| program.now());
        let sealed = from_memory.map(|program| self.trial(path, Some(program)));
        let (outcome, sealed) = match sealed {
            Some(Ok(outcome @ Ok(_))) => (outcome, true),
            _ => (self.trial(path, None)?, false),
        };
        Ok(Finding {
            program,
            boot_id: self.boot_id.to_owned(),
            systemd_cgroup: self.systemd_cgroup,
            version,
            recursive_read_only: matches!(outcome, Ok(ReadOnly::Recursively)),
            sealed,
            fault: outcome.err().map(|error| error.to_string()),
        })
    }

    /// The outer error: something is left that cannot be removed.
    fn trial(
        &self,
        path: &Path,
        program: Option<OwnedFd>,
    ) -> io::Result<Result<ReadOnly, io::Error>> {
        let trial = Trial { probe: self, path, program, directory: self.run.join("oci-probe") };
        let outcome = trial.run();
        trial.clear()?;
        Ok(outcome)
    }
}

/// Runs `command` to its end, which must come soon: a runtime that hangs must not hang whoever asks
/// about it. What it says fits into a pipe.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // As the monitors run it: with systemd's NOTIFY_SOCKET it would wait for the container's message.
    let command = command.env_clear();
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    if !await_readable(&process, Instant::now() + DEADLINE)? {
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

/// What a mount that was asked to be read-only recursively has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadOnly {
    Recursively,
    AtItsTop,
}

/// Two mounts of the trial container: a Bidirectional one, and one that is to be read-only with what
/// is mounted below it. (What a runtime says of itself is not asked: old ones have no `features`,
/// and the kernel has a word in it.)
struct Trial<'a> {
    probe: &'a Probe<'a>,
    path: &'a Path,
    /// Run instead of the file.
    program: Option<OwnedFd>,
    directory: PathBuf,
}

impl Trial<'_> {
    fn run(&self) -> io::Result<ReadOnly> {
        self.clear()?;
        self.prepare()?;
        let outcome = match self.outcome("rro")? {
            // It may be the option that it refuses.
            Err(_) => self.outcome("ro")?,
            Ok(read_only) => Ok(read_only),
        };
        let read_only = outcome.map_err(io::Error::other)?;
        if self.probe.cgroups.remove_stray(&self.cgroup())? {
            return Err(io::Error::other("it makes cgroups where no cgroup v2 is mounted"));
        }
        match mounts::is_mount_point(&self.shared().join("mounted"))? {
            true => Ok(read_only),
            false => Err(io::Error::other("a Bidirectional mount does not reach the host")),
        }
    }

    fn prepare(&self) -> io::Result<()> {
        let (rootfs, kept) = (self.rootfs(), self.kept());
        for directory in [rootfs.clone(), self.shared().join("mounted"), kept.join("below")] {
            fs_err::create_dir_all(directory)?;
        }
        // /run is noexec and nodev on Debian; a container's root filesystem is neither.
        mount("tmpfs", &rootfs, "tmpfs", MountFlags::NOSUID, Some(c"mode=755"))?;
        mount("tmpfs", kept.join("below"), "tmpfs", MountFlags::NOSUID, Some(c"size=4k"))?;
        for destination in ["shared", "kept"] {
            fs_err::create_dir(rootfs.join(destination))?;
        }
        mount_bind(self.shared(), self.shared())?;
        mount_change(self.shared(), MountPropagationFlags::SHARED)?;
        fs_err::copy(self.probe.monitor, rootfs.join("monitor"))?;
        Ok(())
    }

    /// How the container ends if `option` is what makes mounts read-only; else what the runtime says.
    fn outcome(&self, option: &str) -> io::Result<Result<ReadOnly, String>> {
        let spec = serde_json::to_vec(&self.spec(option))?;
        fs_err::write(self.directory.join("config.json"), spec)?;
        let output = self.call(&["run", "--bundle", &self.directory.display().to_string()])?;
        Ok(match output.status.code() {
            Some(0) => Ok(ReadOnly::Recursively),
            Some(WRITABLE_BELOW) => Ok(ReadOnly::AtItsTop),
            Some(_) | None => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().rev().find(|line| !line.trim().is_empty());
                Err(line.unwrap_or("it says nothing").to_owned())
            }
        })
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    fn shared(&self) -> PathBuf {
        self.directory.join("shared")
    }

    fn kept(&self) -> PathBuf {
        self.directory.join("kept")
    }

    fn call(&self, arguments: &[&str]) -> io::Result<Output> {
        let mut command = match &self.program {
            Some(program) => Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())),
            None => Command::new(self.path),
        };
        command.arg0(self.path).arg("--root").arg(self.probe.state);
        if self.probe.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        output(command.args(arguments).arg(self.name()))
    }

    fn cgroup(&self) -> CgroupPath {
        CgroupPath::parse(&self.name()).expect("a plain name")
    }

    /// Unique beside another daemon's trial.
    fn name(&self) -> String {
        format!("cria-probe-{}", std::process::id())
    }

    fn spec(&self, read_only: &str) -> serde_json::Value {
        let cgroup = match self.probe.systemd_cgroup {
            true => format!("system.slice:cria:{}", self.name()),
            // One below another: what a runtime leaves are the ones above.
            false => format!("{}/trial", self.cgroup()),
        };
        let capabilities = ["CAP_SYS_ADMIN"];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/monitor", "probe-mount", "/shared/mounted", "/kept/below"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                // The devices are made here: where the root file system lies they may mean nothing.
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/shared", "type": "bind", "source": self.shared(), "options": ["rbind", "rshared"]},
                {"destination": "/kept", "type": "bind", "source": self.kept(), "options": ["rbind", read_only]},
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
        let below = [self.shared().join("mounted"), self.kept().join("below")];
        for mounted in below.into_iter().chain([self.shared(), self.rootfs()]) {
            mounts::detach(&mounted)?;
        }
        let cgroups = self.probe.cgroups;
        cgroups.remove_stray(&self.cgroup())?;
        cgroups.remove(&self.cgroup(), CGROUP_DEADLINE).map_err(io::Error::other)?;
        match fs_err::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
