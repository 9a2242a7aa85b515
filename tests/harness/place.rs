//! A node's own corner of the machine: a number no other node has at the time, and with it the
//! folders, cgroup, bridge and subnet. Nodes of tests that run side by side do not meet.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cria_proto::PodSandboxConfig;
use tempfile::TempDir;

use crate::cri::pod_config;
use crate::wait::{until, within};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Puts the shell into the cgroups up to `--`, then becomes the command after it.
const ENTER_CGROUPS: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@""#;

/// Mounts the cgroup v1 hierarchy of the controller `$1` beside the others, by way of the folder
/// `$2`, then becomes the command. The folder that all hierarchies lie in is replaced: an empty one
/// among them would be a hierarchy to every OCI runtime on the machine.
const MOUNT_HIERARCHY: &str = r#"all=/sys/fs/cgroup
mount --rbind "$all" "$2"
mount -t tmpfs -o mode=755 tmpfs "$all"
for old in "$2"/*; do
    mkdir "$all/${old##*/}"
    mount --bind "$old" "$all/${old##*/}"
done
umount --recursive --lazy "$2"
mkdir "$all/$1"
mount -t cgroup -o "$1" cgroup "$all/$1"
shift 2
exec "$@""#;

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

    /// The same, where the daemon sees a cgroup v1 hierarchy that the machine has not mounted. What
    /// it mounts is seen by nobody else.
    pub fn command_with_hierarchy(&self, controller: &str, program: &Path) -> Command {
        let mut command = self.command_in_cgroup(Path::new("unshare"));
        self.mount_hierarchy(&mut command, controller);
        command.arg(program);
        command
    }

    /// Removes what such a daemon left in its hierarchy, and gives the controller back.
    pub fn clear_hierarchy(&self, controller: &str) {
        // A hierarchy ends a moment after its last mount, but not while the kernel still clears a
        // cgroup away: then it takes another mount, and its end.
        until(&format!("{controller} is free"), Duration::from_secs(60), || {
            self.clear_mounted_hierarchy(controller);
            within(Duration::from_secs(2), || is_free(controller).then_some(()))
        });
    }

    fn clear_mounted_hierarchy(&self, controller: &str) {
        let own = format!("{CGROUPS}/{controller}{}", self.cgroup());
        let mut command = Command::new("unshare");
        self.mount_hierarchy(&mut command, controller);
        let remove = r#"[ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +"#;
        command.args(["sh", "-euc", remove, "sh", &own]);
        let status = command.status().expect("util-linux is installed");
        assert!(status.success(), "{own} cannot be removed");
    }

    /// The arguments of `unshare` up to the command.
    fn mount_hierarchy(&self, unshare: &mut Command, controller: &str) {
        unshare.args(["--mount", "--propagation", "private"]);
        unshare.args(["sh", "-euc", MOUNT_HIERARCHY, "sh", controller]);
        unshare.arg(self.make("hierarchies"));
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

/// Whether no cgroup v1 hierarchy has `controller` (cgroups(7), /proc/cgroups).
fn is_free(controller: &str) -> bool {
    let controllers = fs_err::read_to_string("/proc/cgroups").expect("cgroups(7)");
    controllers.lines().any(|line| line.starts_with(&format!("{controller}\t0\t")))
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
