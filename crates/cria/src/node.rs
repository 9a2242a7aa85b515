//! What this node has and allows: looked up once at the start, the same for every operation.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use cria_images::Store;
use oci_spec::runtime::LinuxSeccomp;

use crate::cgroup::{Driver, Hierarchy};
use crate::cni::Cni;
use crate::config::{CgroupDriver, Config, PidsLimit};
use crate::container::spec::capabilities::Capabilities;
use crate::container::spec::node::NodeFacts;
use crate::container::spec::{rlimits, seccomp};
use crate::error::Error;
use crate::id::ContainerId;
use crate::oci::OciRuntime;
use crate::paths::Paths;

pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    /// The monitor's program.
    pub(crate) monitor: PathBuf,
    pub(crate) oci: OciRuntime,
    pub(crate) cgroups: Hierarchy,
    pub(crate) cgroup_driver: Driver,
    /// The `cgroup.procs` files of the monitors' own cgroup.
    pub(crate) monitor_cgroups: Vec<PathBuf>,
    pub(crate) cni: Arc<Cni>,
    pub(crate) images: Store,
    pub(crate) facts: NodeFacts,
    /// Changes with every boot: what belongs to another one is gone.
    pub(crate) boot_id: String,
}

impl Node {
    /// The default handler has its own name, and none.
    pub(crate) fn serves_handler(&self, name: &str) -> bool {
        name.is_empty() || name == self.oci.name()
    }

    /// As the OCI runtime takes it.
    pub(crate) fn cgroups_path(&self, parent: &str, id: &ContainerId) -> String {
        self.cgroups.oci_path(self.cgroup_driver, parent, id.as_str())
    }
}

pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
