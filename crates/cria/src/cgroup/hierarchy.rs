//! Which hierarchies this node has, and which files of a container are where in them.

use std::path::{Path, PathBuf};

use cria_monitor::protocol::ContainerCgroup;

use super::CgroupError;
use super::path::CgroupPath;

/// Who accounts for containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// All controllers in one tree.
    V2,
    /// A tree for each controller, or for some together. There may be an empty v2 tree beside them
    /// (the hybrid layout), in which OCI runtimes make cgroups too.
    V1,
}

/// The mounted cgroup trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    version: Version,
    trees: Vec<Tree>,
}

/// The files by which the monitors' cgroups are joined: whoever writes `0` is in.
#[derive(Debug, Default)]
pub(crate) struct MonitorCgroups {
    /// By the thread that starts the monitors: they are born where it is.
    pub(crate) by_thread: Vec<PathBuf>,
    /// By each monitor for itself.
    pub(crate) by_process: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    mount: PathBuf,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Unified,
    /// v1: the controllers, and `name=...` of a named one.
    Controllers(Vec<String>),
}

impl Hierarchy {
    pub(crate) fn detect() -> Result<Self, CgroupError> {
        Self::parse(&fs_err::read_to_string("/proc/self/mountinfo")?).ok_or(CgroupError::NotMounted)
    }

    /// From the text of a mountinfo file (proc_pid_mountinfo(5)).
    fn parse(mountinfo: &str) -> Option<Self> {
        let mut trees: Vec<Tree> = Vec::new();
        for tree in mountinfo.lines().filter_map(Tree::parse) {
            // The same tree can be mounted twice; the first is where everybody looks.
            if !trees.iter().any(|known| known.kind == tree.kind) {
                trees.push(tree);
            }
        }
        let accounts = |tree: &Tree| tree.has("memory") || tree.has("cpu");
        let version = if trees.iter().any(accounts) { Version::V1 } else { Version::V2 };
        let complete = version == Version::V1 || trees.iter().any(|t| t.kind == Kind::Unified);
        complete.then_some(Self { version, trees })
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The controllers that containers can be limited by.
    pub(crate) fn controllers(&self) -> Vec<String> {
        match self.version {
            Version::V1 => {
                let all = self.trees.iter().flat_map(Tree::names);
                all.filter(|name| !name.starts_with("name=")).cloned().collect()
            }
            Version::V2 => {
                let root = self.unified().map(|root| root.join("cgroup.controllers"));
                let text = root.and_then(|file| fs_err::read_to_string(file).ok());
                text.iter().flat_map(|text| text.split_whitespace()).map(Into::into).collect()
            }
        }
    }

    /// Whether containers' swap can be limited and seen.
    pub(crate) fn accounts_swap(&self) -> bool {
        match self.version {
            Version::V1 => self
                .trees
                .iter()
                .find(|tree| tree.has("memory"))
                .is_some_and(|tree| tree.mount.join("memory.memsw.limit_in_bytes").exists()),
            // v2 has the files wherever the kernel has swap at all.
            Version::V2 => Path::new("/proc/swaps").exists(),
        }
    }

    /// The directory of `cgroup` in which `controller`'s files are.
    pub(super) fn dir(&self, controller: &str, cgroup: &CgroupPath) -> Option<PathBuf> {
        let root = match self.version {
            Version::V2 => self.unified()?,
            Version::V1 => &self.trees.iter().find(|tree| tree.has(controller))?.mount,
        };
        Some(cgroup.below(root))
    }

    /// The v2 tree, also that of the hybrid layout.
    pub(super) fn unified(&self) -> Option<&Path> {
        let tree = self.trees.iter().find(|tree| tree.kind == Kind::Unified)?;
        Some(&tree.mount)
    }

    /// Where every tree is mounted.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.trees.iter().map(|tree| tree.mount.as_path())
    }

    /// The files by which a monitor follows its container. They need not exist yet.
    pub(crate) fn for_monitor(&self, cgroup: &CgroupPath) -> ContainerCgroup {
        let file = |controller, name| Some(self.dir(controller, cgroup)?.join(name));
        match self.version {
            Version::V2 => ContainerCgroup {
                oom_counter: file("memory", "memory.events"),
                processes: file("", "cgroup.procs"),
                kill: file("", "cgroup.kill"),
                freezer: None,
            },
            Version::V1 => ContainerCgroup {
                oom_counter: file("memory", "memory.oom_control"),
                processes: file("pids", "cgroup.procs").or_else(|| file("memory", "cgroup.procs")),
                kill: None,
                freezer: file("freezer", "freezer.state"),
            },
        }
    }

    /// How monitors come into cgroups of their own, so that the daemon's limits are not theirs; the
    /// cgroups are made. Few, as every move waits for all processors:
    ///
    /// - v2: `monitors`, beside the daemon if its unit has a subgroup for it
    ///   (`DelegateSubgroup=daemon`), else below it. No controller is enabled, which would forbid
    ///   processes in the daemon's own cgroup.
    /// - v1: below the daemon's memory cgroup and its unit; nowhere where the daemon is in no
    ///   cgroup itself.
    pub(crate) fn monitors(&self) -> Result<MonitorCgroups, CgroupError> {
        let own = fs_err::read_to_string("/proc/self/cgroup")?;
        let mut cgroups = MonitorCgroups::default();
        for dir in self.monitor_dirs(&own) {
            fs_err::create_dir_all(&dir)?;
            match self.version {
                Version::V1 => cgroups.by_thread.push(dir.join("tasks")),
                Version::V2 => cgroups.by_process.push(dir.join("cgroup.procs")),
            }
        }
        Ok(cgroups)
    }

    fn monitor_dirs(&self, own_cgroups: &str) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        for (controllers, path) in own_cgroups.lines().filter_map(own_cgroup) {
            let tree = match self.version {
                Version::V2 if controllers.is_empty() => self.unified(),
                Version::V1 if !path.as_os_str().is_empty() => self.monitor_tree(controllers),
                Version::V1 | Version::V2 => None,
            };
            dirs.extend(tree.map(|root| root.join(monitors_beside(path))));
        }
        dirs
    }

    fn monitor_tree(&self, controllers: &str) -> Option<&Path> {
        let wanted = |name: &str| name == "memory" || name == "name=systemd";
        let name = controllers.split(',').find(|name| wanted(name))?;
        let tree = self.trees.iter().find(|tree| tree.has(name))?;
        Some(&tree.mount)
    }
}

impl Tree {
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount = unescape(mount.split(' ').nth(4)?).into();
        let mut filesystem = filesystem.split(' ');
        let kind = match filesystem.next()? {
            "cgroup2" => Kind::Unified,
            "cgroup" => {
                let options = filesystem.nth(1)?.split(',');
                Kind::Controllers(options.filter(|o| is_controller(o)).map(Into::into).collect())
            }
            _ => return None,
        };
        Some(Self { mount, kind })
    }

    fn names(&self) -> &[String] {
        match &self.kind {
            Kind::Unified => &[],
            Kind::Controllers(names) => names,
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.names().iter().any(|name| name == controller)
    }
}

/// The other options of a v1 mount (cgroups(7), kernel/cgroup/cgroup-v1.c).
fn is_controller(option: &str) -> bool {
    let flags = ["rw", "ro", "all", "none", "noprefix", "clone_children", "xattr"];
    let flags = flags.iter().chain(&["cpuset_v2_mode", "favordynmods"]);
    !option.starts_with("release_agent=") && !flags.into_iter().any(|flag| *flag == option)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// A line of /proc/self/cgroup: the controllers, and the path without its slash.
fn own_cgroup(line: &str) -> Option<(&str, &Path)> {
    let (_id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(":/")?;
    Some((controllers, Path::new(path)))
}

fn monitors_beside(daemon: &Path) -> PathBuf {
    match (daemon.file_name(), daemon.parent()) {
        (None, _) | (_, None) => "cria-monitors".into(),
        (Some(name), Some(unit)) if name == "daemon" => unit.join("monitors"),
        (Some(_), Some(_)) => daemon.join("monitors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "\
        24 1 0:21 / /proc rw,nosuid - proc proc rw\n\
        31 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "\
        33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:2 master:1 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        39 31 0:34 / /other/freezer rw - cgroup cgroup rw,freezer\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n";
    const HYBRID: &str = "41 31 0:38 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n";

    fn roots(hierarchy: &Hierarchy) -> Vec<&str> {
        hierarchy.roots().map(|root| root.to_str().unwrap()).collect()
    }

    #[test]
    fn the_three_layouts_are_told_apart() {
        let v2 = Hierarchy::parse(V2).unwrap();
        assert_eq!((v2.version(), roots(&v2)), (Version::V2, vec!["/sys/fs/cgroup"]));

        let v1 = Hierarchy::parse(V1).unwrap();
        assert_eq!(v1.version(), Version::V1);
        assert_eq!(v1.controllers(), ["cpu", "cpuacct", "memory", "freezer"]);
        assert_eq!(v1.unified(), None);
        assert_eq!(v1.roots().count(), 4);

        let hybrid = Hierarchy::parse(&format!("{HYBRID}{V1}")).unwrap();
        assert_eq!(hybrid.version(), Version::V1);
        assert_eq!(hybrid.unified(), Some(Path::new("/sys/fs/cgroup/a b")));

        for none in ["", "24 1 0:21 / /proc rw - proc proc rw\n"] {
            assert_eq!(Hierarchy::parse(none), None);
        }
    }

    #[test]
    fn a_monitor_gets_the_files_of_its_version() {
        let cgroup = CgroupPath::parse("/pods/one").unwrap();
        let v2 = Hierarchy::parse(V2).unwrap().for_monitor(&cgroup);
        let dir = Path::new("/sys/fs/cgroup/pods/one");
        assert_eq!(v2.oom_counter, Some(dir.join("memory.events")));
        assert_eq!(v2.processes, Some(dir.join("cgroup.procs")));
        assert_eq!((v2.kill, v2.freezer), (Some(dir.join("cgroup.kill")), None));

        let v1 = Hierarchy::parse(V1).unwrap().for_monitor(&cgroup);
        let memory = Path::new("/sys/fs/cgroup/memory/pods/one");
        assert_eq!(v1.oom_counter, Some(memory.join("memory.oom_control")));
        assert_eq!(v1.processes, Some(memory.join("cgroup.procs")));
        assert_eq!(v1.kill, None);
        assert_eq!(v1.freezer, Some("/sys/fs/cgroup/freezer/pods/one/freezer.state".into()));
    }

    #[test]
    fn monitors_live_beside_the_daemon() {
        for (mountinfo, own, expected) in [
            (
                V2,
                "0::/system.slice/cria.service/daemon\n",
                vec!["system.slice/cria.service/monitors"],
            ),
            (V2, "0::/system.slice/cria.service\n", vec!["system.slice/cria.service/monitors"]),
            (V2, "0::/\n", vec!["cria-monitors"]),
            (
                V1,
                "4:memory:/a/b\n2:freezer:/f\n1:name=systemd:/u/cria.service\n0::/u/cria.service\n",
                vec!["memory/a/b/monitors", "systemd/u/cria.service/monitors"],
            ),
            (V1, "4:memory:/\n0::/\n", vec![]),
        ] {
            let dirs = Hierarchy::parse(mountinfo).unwrap().monitor_dirs(own);
            let expected: Vec<_> =
                expected.iter().map(|dir| Path::new("/sys/fs/cgroup").join(dir)).collect();
            assert_eq!(dirs, expected, "{own}");
        }
    }
}
