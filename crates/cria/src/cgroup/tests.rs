//! Cgroups of the tests' own, on whatever this machine has.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{CgroupPath, Hierarchy};
use crate::id::ContainerId;

/// Removed at the end, with its processes.
pub(crate) struct OwnCgroup<'a> {
    hierarchy: &'a Hierarchy,
    pub(crate) path: CgroupPath,
}

impl<'a> OwnCgroup<'a> {
    pub(crate) fn new(hierarchy: &'a Hierarchy) -> Self {
        let name = format!("/cria-test-{}", ContainerId::random().unwrap());
        let path = CgroupPath::parse(&name).unwrap();
        let own = Self { hierarchy, path };
        hierarchy.create(&own.path).unwrap();
        own
    }
}

impl Drop for OwnCgroup<'_> {
    fn drop(&mut self) {
        self.hierarchy.remove(&self.path, Duration::from_secs(10)).unwrap();
    }
}

/// Killed at the end.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell in `cgroup` that has run `script` as far as its first line of output.
pub(super) fn in_cgroup(cgroup: &OwnCgroup<'_>, script: &str) -> Process {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("read go; {script}")]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    for root in cgroup.hierarchy.roots() {
        let procs = cgroup.path.below(root).join("cgroup.procs");
        fs_err::write(procs, shell.id().to_string()).unwrap();
    }
    shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    Process(shell)
}
