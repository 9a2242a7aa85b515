//! What the mount table says: filesystems of directories, and the layout of the cgroups. Pure.

use std::collections::BTreeSet;
use std::path::Path;

/// How the cgroup hierarchies are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CgroupLayout {
    None,
    V1,
    /// v1 with its controllers, and beside them a v2 that has none.
    Hybrid,
    V2,
}

const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// The layout, and the controllers of v1, out of `/proc/self/mountinfo`.
pub(super) fn cgroups(mountinfo: &str) -> (CgroupLayout, BTreeSet<String>) {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let unified = mounts.iter().any(|mount| mount.kind == "cgroup2");
    let options = mounts.iter().filter(|mount| mount.kind == "cgroup");
    let controllers: BTreeSet<String> = options
        .flat_map(|mount| mount.options.split(','))
        .filter(|option| CONTROLLERS.contains(option))
        .map(str::to_owned)
        .collect();
    let layout = match (controllers.is_empty(), unified) {
        (true, true) => CgroupLayout::V2,
        (true, false) => CgroupLayout::None,
        (false, true) => CgroupLayout::Hybrid,
        (false, false) => CgroupLayout::V1,
    };
    (layout, controllers)
}

/// The type of the filesystem that holds `path`: of the last mount on its longest beginning.
pub(super) fn filesystem(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(Mount::parse);
    let holding = mounts.filter(|mount| path.starts_with(mount.target));
    let mount = holding.max_by_key(|mount| Path::new(mount.target).components().count())?;
    Some(mount.kind.to_owned())
}

/// What is of use in a line of proc_pid_mountinfo(5).
struct Mount<'a> {
    target: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        Some(Self { target: mount.split(' ').nth(4)?, kind, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "1 0 0:1 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n\
                      2 0 0:2 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      3 0 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    const V2: &str = "4 0 0:4 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_layout_of_cgroups_is_told_by_what_is_mounted() {
        for (table, layout, controllers) in [
            (String::new(), CgroupLayout::None, &[][..]),
            (V2.to_owned(), CgroupLayout::V2, &[]),
            (V1.to_owned(), CgroupLayout::V1, &["cpu", "cpuacct", "memory"]),
            (format!("{V1}{V2}"), CgroupLayout::Hybrid, &["cpu", "cpuacct", "memory"]),
        ] {
            let (found, names) = cgroups(&table);
            assert_eq!(found, layout, "{table}");
            assert!(names.iter().eq(controllers), "{names:?}");
        }
    }

    #[test]
    fn the_filesystem_is_that_of_the_nearest_and_last_mount() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n\
                     2 1 0:5 / /var/lib rw master:1 - xfs /dev/sdb rw\n\
                     3 1 0:6 / /var/lib rw - btrfs /dev/sdc rw\n\
                     4 1 0:7 / /run rw - tmpfs tmpfs rw\n";
        for (path, kind) in [
            ("/", "ext4"),
            ("/var/lib/cria", "btrfs"),
            ("/var/library", "ext4"),
            ("/run/cria", "tmpfs"),
        ] {
            assert_eq!(filesystem(table, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(filesystem("", Path::new("/")), None);
    }
}
