//! What the specs of all containers on a node depend on: looked up once, when the daemon starts.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use fs_err as fs;
use oci_spec::runtime::PosixRlimit;

use super::SpecError;
use super::rlimits::{self, Rlimit};

#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) cgroups: CgroupFacts,
    /// cria's own, each with `CAP_` in front. Nobody can give what they do not have.
    pub(crate) capabilities: BTreeSet<String>,
    /// What a container has that asks for nothing.
    pub(crate) default_capabilities: BTreeSet<String>,
    /// The lowest `oom_score_adj` the kernel lets cria set.
    pub(crate) oom_score_adj_floor: i64,
    /// All sixteen: see `rlimits`.
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// Most tasks of a container; `None`: as many as the pod has.
    pub(crate) pids_limit: Option<i64>,
    /// Whether kernel and OCI runtime know the mount option `rro`.
    pub(crate) recursive_read_only: bool,
    /// Where cria's own mounts are (its directories, the network namespaces), without symbolic
    /// links.
    pub(crate) own_dirs: Vec<PathBuf>,
    pub(crate) apparmor: bool,
    pub(crate) selinux: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct CgroupFacts {
    pub(crate) version: CgroupVersion,
    /// Whether swap is accounted (`memory.swap.max`, `memory.memsw.limit_in_bytes`).
    pub(crate) swap: bool,
    /// Whether there is a hugetlb controller.
    pub(crate) hugetlb: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupVersion {
    V1,
    V2,
}

/// What others know about the node, or somebody configured.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    pub(crate) cgroups: CgroupFacts,
    pub(crate) default_capabilities: BTreeSet<String>,
    pub(crate) nofile: Rlimit,
    pub(crate) pids_limit: Option<i64>,
    pub(crate) recursive_read_only: bool,
    pub(crate) own_dirs: Vec<PathBuf>,
}

impl NodeFacts {
    pub(crate) fn look_up(settings: NodeSettings) -> Result<Self, SpecError> {
        let capabilities = own_capabilities().map_err(SpecError::io("read own capabilities"))?;
        let privilege = if capabilities.contains(&Capability::CAP_SYS_RESOURCE) {
            Privilege::MayRaise
        } else {
            Privilege::MayOnlyLower
        };
        Ok(Self {
            cgroups: settings.cgroups,
            oom_score_adj_floor: oom_score_adj_floor(privilege)
                .map_err(SpecError::io("read own oom_score_adj"))?,
            rlimits: rlimits::look_up(settings.nofile, privilege)
                .map_err(SpecError::io("read own limits"))?,
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            default_capabilities: settings.default_capabilities,
            pids_limit: settings.pids_limit,
            recursive_read_only: settings.recursive_read_only,
            own_dirs: settings.own_dirs,
            apparmor: fs::read("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|enabled| enabled.starts_with(b"Y")),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        })
    }
}

/// Whether cria may go beyond limits that it has itself (`CAP_SYS_RESOURCE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    MayRaise,
    MayOnlyLower,
}

/// A child can be given what we hold, and is not barred from.
fn own_capabilities() -> io::Result<HashSet<Capability>> {
    let read = |set| caps::read(None, set).map_err(io::Error::other);
    let bounding = read(CapSet::Bounding)?;
    Ok(read(CapSet::Permitted)?.intersection(&bounding).copied().collect())
}

fn oom_score_adj_floor(privilege: Privilege) -> io::Result<i64> {
    match privilege {
        Privilege::MayRaise => Ok(-1000),
        Privilege::MayOnlyLower => {
            let own = fs::read_to_string("/proc/self/oom_score_adj")?;
            own.trim().parse().map_err(io::Error::other)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_this_node_are_such_that_a_child_can_have_them() {
        let facts = NodeFacts::look_up(NodeSettings {
            cgroups: CgroupFacts { version: CgroupVersion::V1, swap: true, hugetlb: false },
            default_capabilities: BTreeSet::new(),
            nofile: Rlimit { soft: 1024, hard: 524_288 },
            pids_limit: None,
            recursive_read_only: true,
            own_dirs: Vec::new(),
        })
        .unwrap();
        assert!(facts.capabilities.contains("CAP_CHOWN"), "{:?}", facts.capabilities);
        assert_eq!(facts.rlimits.len(), 16);
        let raise = facts.capabilities.contains("CAP_SYS_RESOURCE");
        assert_eq!(facts.oom_score_adj_floor == -1000, raise);
    }
}
