//! The cgroups of the kubelet's pods, of both versions.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::site::{Site, container_id, read, status, uid};

const ROOT: &str = "/sys/fs/cgroup";

/// Makes `name` in every hierarchy: the kubelet does not make its own root.
pub(crate) fn make(name: &str) {
    let name = name.trim_start_matches('/');
    if Path::new(ROOT).join("cgroup.procs").exists() {
        fs_err::create_dir_all(Path::new(ROOT).join(name)).expect("tests run as root");
        return;
    }
    for hierarchy in fs_err::read_dir(ROOT).expect("cgroups are mounted").flatten() {
        if hierarchy.path().join("cgroup.procs").exists() && !hierarchy.path().is_symlink() {
            let mut group = hierarchy.path();
            for part in name.split('/') {
                let parent = group.clone();
                group.push(part);
                fs_err::create_dir_all(&group).expect("tests run as root");
                inherit_cpuset(&parent, &group);
            }
        }
    }
}

/// A v1 cpuset takes no process before it is given processors.
fn inherit_cpuset(parent: &Path, group: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs_err::read_to_string(parent.join(file)) {
            fs_err::write(group.join(file), value).expect("tests run as root");
        }
    }
}

/// The processes of a container.
pub(crate) fn container_pids(site: &Site, pod: &Value, container: &str) -> Vec<u32> {
    let id = container_id(status(pod, container));
    let groups = pod_groups(site, pod).into_iter();
    let groups = groups.filter(|path| !id.is_empty() && path.to_string_lossy().contains(&id));
    groups.flat_map(|group| pids(&group)).collect()
}

/// The first process of a container: of those that none of the others began, the oldest.
pub(crate) fn init(site: &Site, pod: &Value, container: &str) -> Option<u32> {
    let pids = container_pids(site, pod, container);
    let roots = pids.iter().filter_map(|&pid| {
        let (parent, begun) = parent_and_begin(pid)?;
        (!pids.contains(&parent)).then_some((begun, pid))
    });
    roots.min().map(|(_, pid)| pid)
}

/// Who began a process, and when; nothing if it is gone by now.
fn parent_and_begin(pid: u32) -> Option<(u32, u64)> {
    let stat = read(format!("/proc/{pid}/stat")).ok()?;
    // After the name in brackets: state, parent ... and as the 20th the time of its begin.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// All processes of a pod.
pub(crate) fn pod_pids(site: &Site, pod: &Value) -> Vec<u32> {
    pod_groups(site, pod).iter().flat_map(|group| pids(group)).collect()
}

/// The value of the first of `files` there is, in the cgroup of a container's first process.
pub(crate) fn value(site: &Site, pod: &Value, container: &str, files: &[&str]) -> Result<String> {
    let pid = init(site, pod, container).with_context(|| format!("{container} has no process"))?;
    of_process(pid, files)
}

/// The same in the cgroup of a process.
pub(crate) fn of_process(pid: u32, files: &[&str]) -> Result<String> {
    let table = read(format!("/proc/{pid}/cgroup"))?;
    // "4:memory:/path" with v1, "0::/path" with v2.
    let groups = table.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let controller = controllers.trim_start_matches("name=").split(',').next()?;
        Some(Path::new(ROOT).join(controller).join(path.trim_start_matches('/')))
    });
    let candidates = groups.flat_map(|group| files.iter().map(move |file| group.join(file)));
    let found = candidates.into_iter().find(|path| path.exists());
    let found = found.with_context(|| format!("none of {files:?} for {pid} in:\n{table}"))?;
    Ok(read(found)?.trim().to_owned())
}

/// What is there of pods beneath the kubelet's cgroup.
pub(crate) fn of_pods(site: &Site) -> Vec<PathBuf> {
    let mut found = vec![];
    for hierarchy in fs_err::read_dir(ROOT).into_iter().flatten().flatten() {
        collect(&hierarchy.path().join(site.cgroup.trim_start_matches('/')), &mut found);
    }
    collect(&Path::new(ROOT).join(site.cgroup.trim_start_matches('/')), &mut found);
    found.retain(|path| path.file_name().is_some_and(|name| is_pod(&name.to_string_lossy())));
    found
}

/// Whether a cgroup is a pod's: `podUID`, or with systemd `kubepods-burstable-podUID.slice`.
fn is_pod(name: &str) -> bool {
    name.starts_with("pod")
        || name.starts_with("kubepods-") && name.contains("-pod") && name.ends_with(".slice")
}

/// The cgroups of a pod and below, in the one hierarchy that counts processes.
fn pod_groups(site: &Site, pod: &Value) -> Vec<PathBuf> {
    let uid = uid(pod);
    let v1 = Path::new(ROOT).join("pids");
    let root = if v1.is_dir() { v1 } else { PathBuf::from(ROOT) };
    let mut found = vec![];
    collect(&root.join(site.cgroup.trim_start_matches('/')), &mut found);
    let names = [format!("/pod{uid}"), format!("-pod{}.slice", uid.replace('-', "_"))];
    found.retain(|path| {
        let path = path.to_string_lossy();
        !uid.is_empty() && names.iter().any(|name| path.contains(name))
    });
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = folder.read_dir() else { return };
    found.push(folder.to_owned());
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        collect(&entry.path(), found);
    }
}

fn pids(group: &Path) -> Vec<u32> {
    // The group may be gone by now.
    let text = fs_err::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
