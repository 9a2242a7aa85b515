//! A node's own corner of the machine: a number no other node has at the time, and with it the
//! folders, cgroup, bridge and subnet. Nodes of tests that run side by side do not meet.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use cria_proto::PodSandboxConfig;
use tempfile::TempDir;

use crate::cri::pod_config;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Puts the shell into the cgroups up to `--`, then becomes the command after it.
const ENTER_CGROUPS: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@""#;

/// One of these is locked by each node for as long as it lives.
const LOCKS: &str = "/run/lock/cria-tests";

pub struct Place {
    number: u8,
    folder: TempDir,
    _lock: File,
}

impl Place {
    /// Takes a free number and makes the folders.
    pub fn take() -> Self {
        let (number, lock) = free_number();
        let folder = tempfile::Builder::new()
            .prefix(&format!("cria-test-{number}-"))
            .tempdir()
            .expect("the temporary folder is writable");
        Self { number, folder, _lock: lock }
    }

    /// All of the node's files lie under it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Under which this node's daemon and pods have their cgroups, as a path from the root of
    /// each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/cria-node-{}", self.number)
    }

    pub fn bridge(&self) -> String {
        format!("criat{}", self.number)
    }

    /// The name in the CNI configuration, which the plugins write into their iptables rules.
    pub fn network(&self) -> String {
        format!("cria-test-{}", self.number)
    }

    /// The first three numbers of the pods' addresses.
    pub fn subnet(&self) -> String {
        format!("10.213.{}", self.number)
    }

    /// A pod whose logs and cgroup are here.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let mut config = pod_config(name);
        let uid = config.metadata.clone().unwrap_or_default().uid;
        let logs = self.make(&format!("logs/tests_{name}_{uid}"));
        config.log_directory =
            logs.to_str().expect("temporary folders have plain names").to_owned();
        let linux = config.linux.get_or_insert_default();
        linux.cgroup_parent = format!("{}/pods/{uid}", self.cgroup());
        config
    }

    /// A command that runs `program` in a cgroup of its own here, as a service manager would.
    pub fn command_in_cgroup(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-euc", ENTER_CGROUPS, "sh"]).args(self.daemon_cgroups());
        command.arg("--").arg(program);
        command
    }

    /// The `cgroup.procs` of the daemon's cgroup in each hierarchy.
    fn daemon_cgroups(&self) -> Vec<PathBuf> {
        let name = format!("{}/daemon", self.cgroup().trim_start_matches('/'));
        // A v1 cpuset takes no process before it is given processors.
        let roots = hierarchies().into_iter().filter(|root| !root.ends_with("cpuset"));
        let groups = roots.map(|root| root.join(&name));
        groups
            .map(|group| {
                fs_err::create_dir_all(&group).expect("tests run as root");
                group.join("cgroup.procs")
            })
            .collect()
    }

    /// Makes `name` under the folder.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs_err::create_dir_all(&path).expect("the temporary folder is writable");
        path
    }
}

/// The roots of the cgroup hierarchies: one with cgroup v2, many with v1.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    let entries = root.read_dir().into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let folders = folders.map(|entry| entry.path());
    folders.filter(|path| path.join("cgroup.procs").exists()).collect()
}

fn free_number() -> (u8, File) {
    fs_err::create_dir_all(LOCKS).expect("tests run as root");
    for number in 1..=250 {
        let path = Path::new(LOCKS).join(number.to_string());
        let lock = File::create(path).expect("tests run as root");
        match lock.try_lock() {
            Ok(()) => return (number, lock),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => panic!("cannot lock in {LOCKS}: {error}"),
        }
    }
    panic!("250 nodes run already");
}
