//! Whether an OCI runtime works on this node: the daemon's own trial, made afresh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::Hierarchy;
use crate::oci::{Finding, Probe};

/// What is known of an OCI runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OciRuntime {
    pub(crate) path: PathBuf,
    /// The first line of what it says of itself.
    pub(crate) version: String,
    /// Whether it can make a mount read-only with all that is mounted below it.
    pub(crate) recursive_read_only: bool,
    /// Why it could not run a container here, in its own words.
    pub(crate) refusal: Option<String>,
}

/// Tries the executable `path`, with systemd's cgroups or without, in a directory of its own below
/// `below`, which should be where the daemon tries it: mount options make a difference. The trial's
/// container runs the monitor.
pub(crate) fn probe(
    path: &Path,
    monitor: Option<&Path>,
    below: &Path,
    systemd_cgroup: bool,
) -> OciRuntime {
    let tried = match monitor {
        Some(monitor) => {
            try_out(path, monitor, below, systemd_cgroup).map_err(|error| error.to_string())
        }
        None => Err("it cannot be tried without cria-monitor".to_owned()),
    };
    let path = path.to_owned();
    match tried {
        Ok(finding) => OciRuntime {
            path,
            recursive_read_only: finding.recursive_read_only,
            version: finding.version,
            refusal: finding.fault,
        },
        Err(refusal) => {
            let (version, refusal) = (String::new(), Some(refusal));
            OciRuntime { path, version, recursive_read_only: false, refusal }
        }
    }
}

fn try_out(
    path: &Path,
    monitor: &Path,
    below: &Path,
    systemd_cgroup: bool,
) -> std::io::Result<Finding> {
    let cgroups = Hierarchy::detect().map_err(std::io::Error::other)?;
    // Apart from a daemon's own, and from another check's.
    let run = below.join(format!(".cria-check-{}-oci", std::process::id()));
    fs_err::create_dir_all(&run)?;
    let state = run.join("state");
    let probe = Probe {
        configured: None,
        run: &run,
        state: &state,
        monitor,
        systemd_cgroup,
        cgroups: &cgroups,
        deadline: Duration::ZERO,
        boot_id: "",
    };
    let tried = probe.try_out(path);
    fs_err::remove_dir_all(&run).and(tried)
}
