//! What this node has and allows: looked up once at the start, the same for every operation, but
//! for the settings, which a reload replaces.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cria_images::Store;
use oci_spec::runtime::LinuxSeccomp;

use crate::cgroup::{Driver, Hierarchy, Version};
use crate::cni::Cni;
use crate::config::{CgroupDriver, Config, PidsLimit};
use crate::container::config::SeccompProfile;
use crate::container::spec::node::{CgroupFacts, CgroupVersion, NodeFacts, NodeSettings};
use crate::container::spec::rlimits::Rlimit;
use crate::container::spec::seccomp;
use crate::container::spec::seccomp::file::{self, Subject};
use crate::disk::DiskMeter;
use crate::error::Error;
use crate::live::Live;
use crate::oci::OciRuntime;
use crate::paths::Paths;
use crate::spawner::Spawner;

pub(crate) struct Node {
    pub(crate) settings: Live<Settings>,
    pub(crate) paths: Paths,
    /// Starts monitors, and the other roles of their program.
    pub(crate) spawner: Spawner,
    pub(crate) oci: OciRuntime,
    pub(crate) cgroups: Hierarchy,
    pub(crate) cgroup_driver: Driver,
    /// The systemd service that this daemon is.
    pub(crate) unit: Option<String>,
    /// The `cgroup.procs` files by which a process joins the monitors' own cgroup, where it is not
    /// born there.
    pub(crate) monitor_cgroups: Vec<PathBuf>,
    pub(crate) cni: Arc<Cni>,
    pub(crate) images: Store,
    /// What the kubelet is told as the images' filesystem: a path that stays.
    pub(crate) images_mountpoint: PathBuf,
    pub(crate) disk: DiskMeter,
    /// Changes with every boot: what belongs to another one is gone.
    pub(crate) boot_id: String,
}

/// What a reload can change, and what follows from it.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) facts: NodeFacts,
}

impl Node {
    /// The default handler has its own name, and none.
    pub(crate) fn serves_handler(&self, name: &str) -> bool {
        name.is_empty() || name == self.oci.name()
    }

    /// The profile that `asked` means for a container with these capabilities.
    pub(crate) fn seccomp(
        &self,
        asked: &SeccompProfile,
        capabilities: &BTreeSet<String>,
    ) -> Result<Option<LinuxSeccomp>, Error> {
        let from_file = |path: &Path| {
            let subject =
                Subject { capabilities, arch: seccomp::native_arch(), kernel: kernel_version() };
            file::from_file(path, subject).map(Some).map_err(|error| {
                let field = format!("seccomp profile {}", path.display());
                Error::invalid(field, crate::error::chain(&error))
            })
        };
        match (asked, &self.settings.get().config.runtime.seccomp_profile) {
            (SeccompProfile::Unconfined, _) => Ok(None),
            (SeccompProfile::RuntimeDefault, None) => {
                Ok(Some(seccomp::runtime_default(capabilities, seccomp::native_arch())))
            }
            (SeccompProfile::RuntimeDefault, Some(path)) => from_file(path),
            (SeccompProfile::Localhost(path), _) => from_file(path.as_ref()),
        }
    }
}

pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The driver that is configured, or systemd's where systemd is PID 1.
pub(crate) fn cgroup_driver(config: &Config) -> Driver {
    match config.runtime.cgroup_driver {
        CgroupDriver::Systemd => Driver::Systemd,
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Auto => Driver::probe(),
    }
}

pub(crate) fn facts(
    config: &Config,
    paths: &Paths,
    cgroups: &Hierarchy,
    oci: &OciRuntime,
) -> anyhow::Result<NodeFacts> {
    let nofile = config.runtime.rlimits.nofile;
    let pids_limit = match config.runtime.pids_limit {
        PidsLimit::Unlimited => None,
        PidsLimit::Most(most) => Some(most.get().into()),
    };
    let own_dirs = [&paths.root, &paths.run, &paths.netns];
    let own_dirs = own_dirs.iter().map(fs_err::canonicalize).collect::<Result<_, _>>()?;
    Ok(NodeFacts::look_up(NodeSettings {
        cgroups: cgroup_facts(cgroups),
        default_capabilities: config.runtime.capability_names(),
        nofile: Rlimit { soft: nofile.soft(), hard: nofile.hard() },
        pids_limit,
        recursive_read_only: oci.recursive_read_only,
        own_dirs,
    })?)
}

fn cgroup_facts(cgroups: &Hierarchy) -> CgroupFacts {
    CgroupFacts {
        version: match cgroups.version() {
            Version::V1 => CgroupVersion::V1,
            Version::V2 => CgroupVersion::V2,
        },
        swap: cgroups.accounts_swap(),
        hugetlb: cgroups.controllers().iter().any(|name| name == "hugetlb"),
    }
}

/// The capabilities that this kernel knows and this process lacks.
pub(crate) fn missing_capabilities(facts: &NodeFacts) -> Vec<String> {
    let all = caps::runtime::procfs_all_supported(None).unwrap_or_else(|_| caps::all());
    let names = all.iter().map(ToString::to_string);
    let mut missing: Vec<_> = names.filter(|name| !facts.capabilities.contains(name)).collect();
    missing.sort();
    missing
}

/// Whether this process can gain no privilege by what it runs. No child can get rid of that.
pub(crate) fn no_new_privs() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// Major and minor version, as seccomp profiles ask for them.
pub(crate) fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
