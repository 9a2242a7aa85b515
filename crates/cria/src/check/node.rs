//! Looks at the node. Nothing here judges: what could not be found out is kept as the reason.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use caps::CapSet;
use cria_images::Trust;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::mounts::{self, CgroupLayout};
use super::oci::{self, OciRuntime};
use super::overlay::{OverlayMount, try_overlay};
use crate::cgroup::{Driver, Hierarchy};
use crate::cni::{self, ConfigDir};
use crate::config::{CgroupDriver, Config, NetworkConfig};
use crate::error::chain;
use crate::{programs, reload};

/// What was found, before anybody thinks about it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// As uname(2) tells it: `6.12.0-1-amd64`.
    pub(super) kernel: String,
    pub(super) overlay: Result<OverlayMount, String>,
    pub(super) openat2: bool,
    pub(super) pidfd: bool,
    pub(super) seccomp: bool,
    /// As the links in `/proc/self/ns` are named.
    pub(super) namespaces: BTreeSet<String>,
    pub(super) cgroup_layout: CgroupLayout,
    pub(super) controllers: BTreeSet<String>,
    /// Whether systemd is PID 1.
    pub(super) systemd: bool,
    pub(super) cgroup_driver: CgroupDriver,
    /// Those that were looked for and found, in the order of preference.
    pub(super) oci_runtimes: Vec<OciRuntime>,
    pub(super) cni: Cni,
    pub(super) policy: Policy,
    pub(super) lacking_capabilities: BTreeSet<String>,
    pub(super) no_new_privs: bool,
    /// The lowest oom_score_adj that cria may give.
    pub(super) oom_score_adj_floor: i32,
    pub(super) monitor: Option<PathBuf>,
    pub(super) root: Directory,
    pub(super) run_dir: Directory,
    /// What the node's kubelet says of its version, if there is one; or why it says nothing.
    pub(super) kubelet: Option<Result<String, String>>,
    /// Whether there is any swap.
    pub(super) swap: bool,
}

/// Which images may be used, as the daemon would read it.
#[derive(Clone, Debug)]
pub(super) enum Policy {
    /// There is no file.
    None(PathBuf),
    Read(PathBuf),
    /// With the reason, which names the file.
    Unusable(String),
}

/// The pods' network, as configured.
#[derive(Clone, Debug)]
pub(super) struct Cni {
    pub(super) directory: PathBuf,
    pub(super) bin_dirs: Vec<PathBuf>,
    pub(super) network: Network,
}

#[derive(Clone, Debug)]
pub(super) enum Network {
    /// There is no file.
    None,
    /// No file can be used, for these reasons.
    Unusable(String),
    /// The plugins it names, those of them that are in no directory, and the files before its own that
    /// cannot be used.
    Named { name: String, plugins: Vec<String>, missing: Vec<String>, broken: Vec<String> },
}

#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// The filesystem's type.
    pub(super) filesystem: Option<String>,
    /// Why nothing can be written there.
    pub(super) refusal: Option<String>,
}

impl Node {
    pub(super) fn gather(config: &Config) -> Self {
        let mountinfo = fs_err::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (cgroup_layout, controllers) = cgroups(&mountinfo);
        let systemd = Driver::probe() == Driver::Systemd;
        let cgroup_driver = match config.runtime.cgroup_driver {
            CgroupDriver::Auto if systemd => CgroupDriver::Systemd,
            CgroupDriver::Auto => CgroupDriver::Cgroupfs,
            chosen @ (CgroupDriver::Systemd | CgroupDriver::Cgroupfs) => chosen,
        };
        let with_systemd = systemd && cgroup_driver == CgroupDriver::Systemd;
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            overlay: try_overlay(&existing(&config.root)).map_err(|error| error.to_string()),
            openat2: openat2(CWD, "/", OFlags::PATH, Mode::empty(), ResolveFlags::IN_ROOT).is_ok(),
            pidfd: pidfd_open(getpid(), PidfdFlags::empty()).is_ok(),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            namespaces: names_in(Path::new("/proc/self/ns")).unwrap_or_default(),
            cgroup_layout,
            controllers,
            systemd,
            cgroup_driver,
            oci_runtimes: oci_runtimes(config, with_systemd),
            cni: Cni::gather(&config.network),
            policy: Policy::gather(config),
            lacking_capabilities: lacking_capabilities(),
            no_new_privs: crate::node::no_new_privs(),
            oom_score_adj_floor: oom_score_adj_floor(),
            monitor: programs::find_monitor(&config.runtime),
            root: Directory::gather(&config.root, &mountinfo),
            run_dir: Directory::gather(&config.run_dir, &mountinfo),
            kubelet: programs::find(Path::new("kubelet")).map(|path| kubelet_version(&path)),
            // The first line is the heading.
            swap: fs_err::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1),
        }
    }
}

impl Policy {
    fn gather(config: &Config) -> Self {
        let path = config.images.policy_file.to_path_buf();
        match Trust::default().reload(&reload::trust_files(config)) {
            Ok(trust) if trust.has_policy() => Self::Read(path),
            Ok(_) => Self::None(path),
            Err(error) => Self::Unusable(chain(&error)),
        }
    }
}

/// `Kubernetes v1.37.2`, without the name.
fn kubelet_version(path: &Path) -> Result<String, String> {
    let said = crate::oci::output(Command::new(path).arg("--version"));
    let said = said.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    said.strip_prefix("Kubernetes ").map(str::to_owned).ok_or(format!("it says {said:?}"))
}

fn cgroups(mountinfo: &str) -> (CgroupLayout, BTreeSet<String>) {
    let (layout, controllers) = mounts::cgroups(mountinfo);
    if layout != CgroupLayout::V2 {
        return (layout, controllers);
    }
    let hierarchy = Hierarchy::detect();
    let controllers = hierarchy.map(|hierarchy| hierarchy.controllers()).unwrap_or_default();
    (layout, controllers.into_iter().collect())
}

fn oci_runtimes(config: &Config, systemd: bool) -> Vec<OciRuntime> {
    let candidates = match &config.runtime.oci_runtime {
        Some(program) => programs::find(program.as_ref()).into_iter().collect(),
        None => crate::oci::candidates(),
    };
    let monitor = programs::find_monitor(&config.runtime);
    let below = existing(&config.run_dir);
    let probe = |path: &PathBuf| oci::probe(path, monitor.as_deref(), &below, systemd);
    candidates.iter().map(probe).collect()
}

fn lacking_capabilities() -> BTreeSet<String> {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let known = caps::runtime::thread_all_supported();
    known.difference(&held).map(ToString::to_string).collect()
}

/// Tried, by halves: the kernel keeps the floor to itself. This process ends soon, so it may keep
/// the last value.
fn oom_score_adj_floor() -> i32 {
    let settable =
        |value: i32| fs_err::write("/proc/self/oom_score_adj", value.to_string()).is_ok();
    let (mut refused, mut allowed) = (-1001_i32, 1000);
    while allowed - refused > 1 {
        let middle = (refused + allowed).div_euclid(2);
        if settable(middle) {
            allowed = middle;
        } else {
            refused = middle;
        }
    }
    allowed
}

/// The nearest directory above `path`, or itself, that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn names_in(directory: &Path) -> io::Result<BTreeSet<String>> {
    let entries = fs_err::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

impl Directory {
    fn gather(path: &Path, mountinfo: &str) -> Self {
        let nearest = existing(path);
        let trial = nearest.join(format!(".cria-check-{}-write", std::process::id()));
        let written = fs_err::write(&trial, "").and_then(|()| fs_err::remove_file(&trial));
        Self {
            path: path.to_owned(),
            filesystem: mounts::filesystem(mountinfo, &nearest),
            refusal: written.err().map(|error| error.to_string()),
        }
    }
}

impl Cni {
    fn gather(config: &NetworkConfig) -> Self {
        let directory = config.cni_conf_dir.to_path_buf();
        let bin_dirs: Vec<_> = config.cni_bin_dirs.iter().map(|path| path.to_path_buf()).collect();
        let network = Network::gather(&directory, &bin_dirs);
        Self { directory, bin_dirs, network }
    }
}

impl Network {
    fn gather(directory: &Path, bin_dirs: &[PathBuf]) -> Self {
        let ConfigDir { network, broken } = match cni::read_dir(directory) {
            Ok(read) => read,
            Err(error) => return Self::Unusable(error.to_string()),
        };
        let broken: Vec<_> = broken.iter().map(ToString::to_string).collect();
        let Some(network) = network else {
            return if broken.is_empty() { Self::None } else { Self::Unusable(broken.join("; ")) };
        };
        let plugins: Vec<_> = network.plugin_types().map(str::to_owned).collect();
        let lacks = |plugin: &&String| {
            bin_dirs.iter().all(|dir| programs::find(&dir.join(plugin)).is_none())
        };
        let missing = plugins.iter().filter(lacks).cloned().collect();
        Self::Named { name: network.name, plugins, missing, broken }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_example_is_a_network() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/cni"));
        let Network::Named { name, plugins, missing, broken } = Network::gather(directory, &[])
        else {
            panic!("it is a network");
        };
        assert_eq!((name.as_str(), broken.len()), ("cria", 0));
        assert_eq!(plugins, ["bridge", "portmap", "bandwidth"]);
        assert_eq!(missing, plugins, "there is no directory of plugins");
    }

    #[test]
    fn the_floor_of_oom_score_adj_can_be_written_and_what_is_below_cannot() {
        let floor = oom_score_adj_floor();
        let write =
            |value: i32| fs_err::write("/proc/self/oom_score_adj", value.to_string()).is_ok();
        assert!(write(floor));
        assert!(!write(floor - 1));
    }

    #[test]
    fn the_first_network_that_the_daemon_could_use_is_the_one() {
        let directory = tempfile::TempDir::new().unwrap();
        let gather = || Network::gather(directory.path(), &[]);
        let write =
            |name: &str, text: &str| fs_err::write(directory.path().join(name), text).unwrap();
        assert!(matches!(gather(), Network::None));
        write("10-without-version.conf", r#"{"name": "old", "type": "bridge"}"#);
        let Network::Unusable(reason) = gather() else { panic!("the daemon would not take it") };
        assert!(reason.contains("10-without-version.conf: there is no cniVersion"), "{reason}");
        write("20.conf", r#"{"name": "pods", "cniVersion": "1.0.0", "type": "bridge"}"#);
        let Network::Named { name, broken, .. } = gather() else { panic!("the second is good") };
        assert_eq!((name.as_str(), broken.len()), ("pods", 1));
    }
}
