//! What the specs of all containers on a node depend on: looked up once, when the daemon starts.

use std::collections::BTreeSet;
use std::path::PathBuf;

use oci_spec::runtime::PosixRlimit;

#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) cgroups: CgroupVersion,
    /// cria's own bounding set, each with `CAP_` in front. Nobody can give what they do not have.
    pub(crate) capabilities: BTreeSet<String>,
    /// The lowest `oom_score_adj` the kernel lets cria set.
    pub(crate) oom_score_adj_floor: i64,
    /// All sixteen: see `rlimits`.
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// Most tasks of a container; `None`: as many as the pod has.
    pub(crate) pids_limit: Option<i64>,
    /// Whether kernel and OCI runtime know the mount option `rro`.
    pub(crate) recursive_read_only: bool,
    /// Whether the kernel accounts swap to cgroups (`memory.swap.max`, `memory.memsw.*`).
    pub(crate) swap_accounting: bool,
    /// Where cria's own mounts are (its directories, the network namespaces), without symbolic
    /// links.
    pub(crate) own_dirs: Vec<PathBuf>,
    /// Whether there is a hugetlb cgroup controller.
    pub(crate) hugetlb: bool,
    pub(crate) apparmor: bool,
    pub(crate) selinux: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupVersion {
    V1,
    V2,
}
