//! What a node has on the machine: processes, mounts, cgroups, network; listed for tests that
//! assert there is nothing, and removed when the node is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network;
use crate::place::{Place, hierarchies};
use crate::wait::within;

/// Everything of this node that its pods left, one line each. `daemon` is the running daemon's
/// pid, which is none; `expected` are mounts that are none.
pub fn list(place: &Place, daemon: Option<u32>, expected: &[PathBuf]) -> Vec<String> {
    let mut found: Vec<_> = processes(place)
        .into_iter()
        .filter(|process| Some(process.pid) != daemon)
        .map(|process| format!("process {} {}", process.pid, process.command))
        .collect();
    let mounts = mounts(place).into_iter().filter(|mount| !expected.contains(mount));
    found.extend(mounts.map(|mount| format!("mount {}", mount.display())));
    found.extend(pod_cgroups(place).into_iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(network::leftovers(place));
    found
}

/// Waits until there is nothing, and returns what is there still at the end of `limit`: somebody
/// may end a moment after the answer that said so.
pub fn await_none(limit: Duration, mut list: impl FnMut() -> Vec<String>) -> Vec<String> {
    let mut left = vec![];
    within(limit, || {
        left = list();
        left.is_empty().then_some(())
    });
    left
}

/// Removes everything. What resists is returned.
pub fn remove(place: &Place) -> Vec<String> {
    // A monitor that dies may hand its children on, and a mount may have a mount beneath it.
    within(Duration::from_secs(10), || {
        let processes = processes(place);
        for process in &processes {
            let pid = Pid::from_raw(process.pid.try_into().expect("pids fit"));
            // It may be gone since it was listed.
            let _ = kill(pid, Signal::SIGKILL);
        }
        processes.is_empty().then_some(())
    });
    for mount in mounts(place).iter().rev() {
        let _ = umount2(mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    network::take_down(place);
    within(Duration::from_secs(5), || {
        let groups = cgroups(place);
        for group in groups.iter().rev() {
            let _ = fs_err::remove_dir(group);
        }
        groups.is_empty().then_some(())
    });
    list(place, None, &[])
}

/// The running processes of the node whose program has this name.
pub fn processes_of(place: &Place, program: &str) -> Vec<u32> {
    let named = |process: &Process| {
        let first = process.command.split(' ').next().unwrap_or_default();
        Path::new(first).file_name().is_some_and(|name| name == program)
    };
    processes(place).into_iter().filter(named).map(|process| process.pid).collect()
}

struct Process {
    pid: u32,
    command: String,
}

/// Processes that name the node's folder in their arguments, or have their root filesystem in it,
/// or are in its cgroup. Not those that merely see one of its mounts: any mount namespace may.
/// Zombies count: somebody forgot them.
fn processes(place: &Place) -> Vec<Process> {
    let folder = place.folder().to_str().expect("temporary folders have plain names");
    let entries = Path::new("/proc").read_dir().expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != 1 && *pid != std::process::id());
    others
        .filter_map(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let command = text(&process.join("cmdline")).replace('\0', " ");
            let ours = command.contains(folder)
                || text(&process.join("cgroup")).lines().any(|l| in_cgroup(l, &place.cgroup()))
                || text(&process.join("mountinfo")).lines().any(|l| is_root_in(l, folder));
            let command = if command.is_empty() { stat(&process).join(" ") } else { command };
            (ours && !awaits_pid_1(&process)).then_some(Process { pid, command })
        })
        .collect()
}

/// Whether a line of mountinfo is that of a root filesystem which is, or is made of, `folder`'s.
fn is_root_in(line: &str, folder: &str) -> bool {
    line.split(' ').nth(4) == Some("/") && line.contains(folder)
}

/// Whether it has ended and only PID 1, whose business that is, has yet to take note.
fn awaits_pid_1(process: &Path) -> bool {
    stat(process).get(1..).is_some_and(|rest| rest == ["Z", "1"])
}

/// Name in brackets, state and parent of a process; nothing if it is gone by now.
fn stat(process: &Path) -> Vec<String> {
    let stat = text(&process.join("stat"));
    // "PID (NAME) STATE PARENT ...", where the name may hold spaces and brackets.
    let Some((front, rest)) = stat.rsplit_once(") ") else { return vec![] };
    let name = front.split_once(' ').map_or("", |(_, name)| name);
    [format!("{name})")].into_iter().chain(rest.split(' ').take(2).map(str::to_owned)).collect()
}

/// Whether a line of /proc/PID/cgroup ("4:memory:/cria-node-1/pod") is `group` or beneath it.
fn in_cgroup(line: &str, group: &str) -> bool {
    let path = line.splitn(3, ':').nth(2).unwrap_or("");
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Mount points under the node's folder, outermost first.
fn mounts(place: &Place) -> Vec<PathBuf> {
    let table = fs_err::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(place.folder())).collect()
}

/// What is beneath the cgroups that pods were given as their parents.
fn pod_cgroups(place: &Place) -> Vec<PathBuf> {
    let pods = format!("{}/pods/", place.cgroup());
    let beneath = |path: &PathBuf| {
        let path = path.to_string_lossy();
        path.split_once(&pods).is_some_and(|(_, rest)| rest.contains('/'))
    };
    cgroups(place).into_iter().filter(beneath).collect()
}

/// The node's cgroups in all hierarchies, parents first.
fn cgroups(place: &Place) -> Vec<PathBuf> {
    let name = place.cgroup();
    let name = name.trim_start_matches('/');
    let mut found = vec![];
    for root in hierarchies() {
        collect_folders(&root.join(name), &mut found);
    }
    found
}

fn collect_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = folder.read_dir() else { return };
    found.push(folder.to_owned());
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        collect_folders(&entry.path(), found);
    }
}

/// What `path` holds; nothing if its process is gone by now.
fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs_err::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{in_cgroup, is_root_in};

    #[test]
    fn a_cgroup_is_told_from_one_whose_name_begins_alike() {
        for (line, inside) in [
            ("4:memory:/cria-node-1", true),
            ("4:memory:/cria-node-1/pod/a", true),
            ("1:name=systemd:/cria-node-1/a:b", true),
            ("4:memory:/cria-node-10", false),
            ("4:memory:/", false),
            ("0::/", false),
            ("", false),
        ] {
            assert_eq!(in_cgroup(line, "/cria-node-1"), inside, "{line}");
        }
    }

    #[test]
    fn a_process_that_only_sees_a_mount_is_not_of_the_node() {
        for (line, ours) in [
            ("9 8 0:5 / / rw - overlay overlay rw,upperdir=/tmp/n/root/upper", true),
            ("9 8 0:5 / /tmp/n/rootfs rw - overlay overlay rw,upperdir=/tmp/n/root/upper", false),
            ("9 8 254:0 / / rw - ext4 /dev/vda rw", false),
            ("", false),
        ] {
            assert_eq!(is_root_in(line, "/tmp/n"), ours, "{line}");
        }
    }
}
