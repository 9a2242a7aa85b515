//! Removing cgroups with all that is in them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::poll;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::hierarchy::Hierarchy;
#[cfg(test)]
use super::hierarchy::Version;
use super::path::{CgroupPath, container_names};
use super::{CgroupError, parse};
use crate::id::ContainerId;
use crate::process::await_readable;

/// Where the hybrid layout has its v2 tree.
const USUAL_UNIFIED: &str = "/sys/fs/cgroup/unified";

impl Hierarchy {
    /// Makes `cgroup` in every tree, with what is above it. (Outside tests the OCI runtime does.)
    #[cfg(test)]
    pub(crate) fn create(&self, cgroup: &CgroupPath) -> Result<(), CgroupError> {
        for root in self.roots() {
            fs_err::create_dir_all(cgroup.below(root))?;
        }
        if self.version() == Version::V1
            && let Some(root) = self.dir("cpuset", cgroup)
        {
            inherit_cpuset(&root)?;
        }
        Ok(())
    }

    /// The processes in `cgroup` and below it; none if it does not exist.
    #[cfg(test)]
    pub(crate) fn processes(&self, cgroup: &CgroupPath) -> io::Result<BTreeSet<i32>> {
        let mut found = BTreeSet::new();
        for root in self.roots() {
            add_processes(&cgroup.below(root), &mut found)?;
        }
        Ok(found)
    }

    /// How many processes there are in `cgroup` and below it. `None` if it does not exist.
    pub(crate) fn process_count(&self, cgroup: &CgroupPath) -> io::Result<Option<u64>> {
        let dir = self.dir("pids", cgroup).or_else(|| self.dir("memory", cgroup));
        let Some(dir) = dir.filter(|dir| dir.is_dir()) else { return Ok(None) };
        let mut found = BTreeSet::new();
        add_processes(&dir, &mut found)?;
        Ok(u64::try_from(found.len()).ok())
    }

    /// Kills what is in `cgroup`, waits for its end, and removes it from every tree. One that does
    /// not exist is removed. Blocks for at most about `deadline`.
    pub(crate) fn remove(
        &self,
        cgroup: &CgroupPath,
        deadline: Duration,
    ) -> Result<(), CgroupError> {
        let dirs: Vec<PathBuf> = self.roots().map(|root| cgroup.below(root)).collect();
        remove_all(&dirs, deadline)
    }

    /// Removes what an OCI runtime has made of `cgroup` where no tree is mounted, and answers whether
    /// there was any: crun 1.8 makes plain directories in the place of a v2 tree that is not there.
    pub(crate) fn remove_stray(&self, cgroup: &CgroupPath) -> io::Result<bool> {
        let stray = cgroup.below(Path::new(USUAL_UNIFIED));
        if self.unified().is_some() || !stray.exists() {
            return Ok(false);
        }
        fs_err::remove_dir_all(stray)?;
        Ok(true)
    }

    /// Removes every cgroup that these containers have left, wherever their parents were, and
    /// answers how many directories that were. For recovery: it looks at every cgroup there is.
    pub(crate) fn remove_container_cgroups<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a ContainerId>,
        deadline: Duration,
    ) -> Result<usize, CgroupError> {
        let names: BTreeSet<String> = containers.into_iter().flat_map(container_names).collect();
        let mut dirs = Vec::new();
        for root in self.roots() {
            find(root, &names, &mut dirs)?;
        }
        remove_all(&dirs, deadline)?;
        Ok(dirs.len())
    }
}

fn remove_all(dirs: &[PathBuf], deadline: Duration) -> Result<(), CgroupError> {
    let end = Instant::now() + deadline;
    loop {
        let mut busy = None;
        for dir in dirs {
            if !remove_tree(dir)? {
                busy = Some(dir);
            }
        }
        let Some(busy) = busy else { return Ok(()) };
        let mut processes = BTreeSet::new();
        for dir in dirs {
            thaw_and_kill(dir);
            add_processes(dir, &mut processes)?;
        }
        end_processes(processes, end)?;
        if Instant::now() >= end {
            return Err(CgroupError::Busy(busy.clone()));
        }
        // A process has left its cgroup a moment after it has ended; v1 tells nobody.
        let _ = poll(&mut [], 1_u8);
    }
}

/// Removes `dir` and what is below it; whether it is gone now.
fn remove_tree(dir: &Path) -> io::Result<bool> {
    let mut empty = true;
    for below in subdirectories(dir)? {
        empty &= remove_tree(&below)?;
    }
    if !empty {
        return Ok(false);
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A frozen process of v1 does not die; v2 kills a whole tree at once, also what forks meanwhile.
/// Each file is only where it is; without them the processes are killed one by one.
fn thaw_and_kill(dir: &Path) {
    for (file, text) in [("freezer.state", "THAWED"), ("cgroup.kill", "1")] {
        let _ = fs_err::OpenOptions::new()
            .write(true)
            .open(dir.join(file))
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    }
}

fn end_processes(processes: BTreeSet<i32>, end: Instant) -> io::Result<()> {
    let others = processes.into_iter().filter_map(Pid::from_raw).filter(|pid| *pid != getpid());
    let handles: Vec<OwnedFd> =
        others.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect();
    for process in &handles {
        // It may have ended meanwhile.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    for process in &handles {
        // Whoever takes too long is looked for again.
        await_readable(process, end)?;
    }
    Ok(())
}

fn add_processes(dir: &Path, found: &mut BTreeSet<i32>) -> io::Result<()> {
    match fs_err::read(dir.join("cgroup.procs")) {
        // A process of a PID namespace that is not below ours is shown as 0.
        Ok(text) => {
            let pids = parse::lines(&text).filter_map(|pid| i32::try_from(pid).ok());
            found.extend(pids.filter(|pid| *pid > 0));
        }
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    for below in subdirectories(dir)? {
        add_processes(&below, found)?;
    }
    Ok(())
}

fn find(dir: &Path, names: &BTreeSet<String>, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for below in subdirectories(dir)? {
        let name = below.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| names.contains(name)) {
            found.push(below);
        } else {
            find(&below, names, found)?;
        }
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
            Ok((path, kind)) if kind.is_dir() => found.push(path),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// A new v1 cpuset has no processor and no memory node, and so takes no process.
#[cfg(test)]
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(dir, file)?;
    }
    Ok(())
}

#[cfg(test)]
fn inherit(dir: &Path, file: &str) -> io::Result<Vec<u8>> {
    let own = fs_err::read(dir.join(file))?;
    match dir.parent() {
        Some(parent) if own.trim_ascii().is_empty() => {
            let inherited = inherit(parent, file)?;
            fs_err::write(dir.join(file), &inherited)?;
            Ok(inherited)
        }
        Some(_) | None => Ok(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::{OwnCgroup, in_cgroup};

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_cgroup_is_removed_with_its_processes_and_what_is_below() {
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = OwnCgroup::new(&hierarchy);
        let below = CgroupPath::parse(&format!("{}/below/deep", cgroup.path)).unwrap();
        hierarchy.create(&below).unwrap();
        let mut process = in_cgroup(&cgroup, "echo; exec cat");
        assert_eq!(hierarchy.process_count(&cgroup.path).unwrap(), Some(1));

        hierarchy.remove(&cgroup.path, LONG).unwrap();
        assert!(process.0.wait().unwrap().code().is_none(), "it was killed");
        assert!(!hierarchy.roots().any(|root| cgroup.path.below(root).exists()));
        assert_eq!(hierarchy.process_count(&cgroup.path).unwrap(), None);
        assert!(hierarchy.processes(&cgroup.path).unwrap().is_empty());
        hierarchy.remove(&cgroup.path, LONG).unwrap();
    }

    #[test]
    fn a_frozen_process_is_killed_too() {
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = OwnCgroup::new(&hierarchy);
        let mut process = in_cgroup(&cgroup, "echo; exec cat");
        let Some(file) = hierarchy.for_monitor(&cgroup.path).freezer else { return };
        fs_err::write(file, "FROZEN").unwrap();
        hierarchy.remove(&cgroup.path, LONG).unwrap();
        assert!(process.0.wait().unwrap().code().is_none());
    }

    #[test]
    fn what_containers_left_is_found_by_their_ids() {
        let hierarchy = Hierarchy::detect().unwrap();
        let parent = OwnCgroup::new(&hierarchy);
        let [gone, stays] = [(); 2].map(|()| ContainerId::random().unwrap());
        let below = |name: &str| CgroupPath::parse(&format!("{}/{name}", parent.path)).unwrap();
        for name in [gone.to_string(), format!("x/cria-{gone}.scope"), stays.to_string()] {
            hierarchy.create(&below(&name)).unwrap();
        }
        let removed = hierarchy.remove_container_cgroups([&gone], LONG).unwrap();
        assert_eq!(removed, 2 * hierarchy.roots().count());
        let exists = |name: &str| hierarchy.roots().any(|root| below(name).below(root).exists());
        assert!(exists(stays.as_str()) && !exists(gone.as_str()));
        assert!(exists("x") && !exists(&format!("x/cria-{gone}.scope")));
    }
}
