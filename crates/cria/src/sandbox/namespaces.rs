//! A pod's namespaces: made by a short-lived child, pinned by us, joined by its containers.
//!
//! The child (the monitor binary in its `namespaces` role) is single-threaded and makes them; the
//! parent binds `/proc/CHILD/ns/*`, because a child in a new user namespace may not mount on the
//! host. The network namespace is pinned in the directory where Multus and OVN-Kubernetes look for
//! it, the others in the sandbox's run directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cria_monitor::sysctl::{self, Namespace};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change};
use rustix::system::uname;

use super::config::{NamespaceMode, SandboxConfig};
use crate::id::SandboxId;
use crate::paths::Paths;
use crate::spawner::Spawner;
use crate::{monitor, mounts};

/// Making namespaces is a handful of system calls; a child that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(30);

/// A namespace that a pod can have of its own, apart from its PID namespace (see `init`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Net,
    Ipc,
    Uts,
}

impl Kind {
    /// As `/proc/PID/ns` and the child call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        }
    }

    pub(crate) fn pin(self, paths: &Paths, id: &SandboxId) -> PathBuf {
        match self {
            Self::Net => paths.netns(id),
            Self::Ipc | Self::Uts => paths.sandbox_run(id).join(self.name()),
        }
    }
}

/// Where the pod's PID namespace is pinned, if it shares one.
pub(crate) fn pid_pin(paths: &Paths, id: &SandboxId) -> PathBuf {
    paths.sandbox_run(id).join("pid")
}

/// Which namespaces the pod has of its own.
pub(crate) fn own(config: &SandboxConfig) -> Vec<Kind> {
    let asked = &config.security.namespaces;
    let host_network = asked.network == NamespaceMode::Node;
    [
        (Kind::Net, !host_network),
        (Kind::Ipc, asked.ipc != NamespaceMode::Node),
        // On the host's network a pod without a name of its own is called what the host is called.
        (Kind::Uts, !host_network || !config.hostname.is_empty()),
    ]
    .into_iter()
    .filter_map(|(kind, own)| own.then_some(kind))
    .collect()
}

/// The namespace that a sysctl belongs to; none: no pod can have it.
pub(super) fn of_sysctl(key: &str) -> Option<Kind> {
    Some(match sysctl::namespace(&sysctl::path(key)?)? {
        Namespace::Net => Kind::Net,
        Namespace::Ipc => Kind::Ipc,
        Namespace::Uts => Kind::Uts,
    })
}

/// The name of the pod's host: its own, else the id's first characters, as every runtime does it; the
/// node's where the pod shares that namespace.
pub(crate) fn hostname(config: &SandboxConfig, id: &SandboxId) -> String {
    if !own(config).contains(&Kind::Uts) {
        return uname().nodename().to_string_lossy().into_owned();
    }
    match config.hostname.as_str() {
        "" => id.as_str()[..12].to_owned(),
        name => name.to_owned(),
    }
}

/// Makes and pins the pod's namespaces, with its sysctls set inside. Blocking.
pub(crate) fn make(
    spawner: &Spawner,
    paths: &Paths,
    id: &SandboxId,
    config: &SandboxConfig,
) -> io::Result<()> {
    let kinds = own(config);
    if kinds.is_empty() {
        return Ok(());
    }
    let arguments = arguments(&kinds, id, config);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The child lives, and with it the namespaces, until the role is dropped.
    let role = monitor::run_role(spawner, &arguments, DEADLINE)?;
    let pid = role.pid;
    for kind in kinds {
        pin(&PathBuf::from(format!("/proc/{pid}/ns/{}", kind.name())), &kind.pin(paths, id))?;
    }
    Ok(())
}

fn arguments(kinds: &[Kind], id: &SandboxId, config: &SandboxConfig) -> Vec<String> {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    let mut arguments = vec!["namespaces".to_owned(), id.to_string()];
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    add("--new", names.join(","));
    if kinds.contains(&Kind::Uts) {
        add("--hostname", hostname(config, id));
    }
    for (key, value) in &config.sysctls {
        add("--sysctl", format!("{key}={value}"));
    }
    arguments
}

/// Binds a namespace to a file, so that it lives without a process. Blocking.
pub(super) fn pin(namespace: &Path, pin: &Path) -> io::Result<()> {
    fs_err::File::create(pin)?;
    Ok(mount_bind(namespace, pin)?)
}

/// Lets go of a pin; one that is not there is no error. Blocking.
pub(crate) fn unpin(pin: &Path) -> io::Result<()> {
    mounts::detach(pin)?;
    match fs_err::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the directory of network namespaces a shared mount point if it is none, as iproute2 does:
/// whoever mounts later sees what is pinned there, and a removed pin goes everywhere. Blocking.
pub(crate) fn prepare_netns_dir(directory: &Path) -> io::Result<()> {
    fs_err::create_dir_all(directory)?;
    if !mounts::is_mount_point(directory)? {
        mount_bind_recursive(directory, directory)?;
        mount_change(directory, MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::config::{NamespaceOptions, SandboxSecurity};

    fn config(network: NamespaceMode, ipc: NamespaceMode, hostname: &str) -> SandboxConfig {
        let namespaces = NamespaceOptions { network, ipc, ..NamespaceOptions::default() };
        SandboxConfig {
            hostname: hostname.to_owned(),
            security: SandboxSecurity { namespaces, ..SandboxSecurity::default() },
            ..SandboxConfig::default()
        }
    }

    #[test]
    fn a_pod_has_the_namespaces_it_does_not_share_with_the_host() {
        use Kind::{Ipc, Net, Uts};
        use NamespaceMode::{Node, Pod};
        let cases: [(SandboxConfig, &[Kind]); 5] = [
            (config(Pod, Pod, "web"), &[Net, Ipc, Uts]),
            (config(Pod, Node, ""), &[Net, Uts]),
            (config(Node, Pod, "web"), &[Ipc, Uts]),
            (config(Node, Pod, ""), &[Ipc]),
            (config(Node, Node, ""), &[]),
        ];
        for (config, expected) in cases {
            assert_eq!(own(&config), expected, "{config:?}");
        }
    }

    #[test]
    fn a_sysctl_belongs_to_one_namespace_or_to_the_node() {
        let cases = [
            ("net.ipv4.ip_forward", Some(Kind::Net)),
            ("net/ipv4/conf/eth0.1/forwarding", Some(Kind::Net)),
            ("kernel.shmmax", Some(Kind::Ipc)),
            ("kernel.domainname", Some(Kind::Uts)),
            ("kernel.shm_next_id", None),
            ("network", None),
        ];
        for (key, kind) in cases {
            assert_eq!(of_sysctl(key), kind, "{key}");
        }
    }

    #[test]
    fn a_pod_without_a_name_is_called_by_its_id_or_on_the_hosts_network_as_the_host() {
        use NamespaceMode::{Node, Pod};
        let id = SandboxId::random().unwrap();
        let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let cases = [
            (config(Pod, Pod, ""), &id.as_str()[..12]),
            (config(Pod, Pod, "web"), "web"),
            (config(Node, Pod, ""), host.trim_end()),
            (config(Node, Pod, "web"), "web"),
        ];
        for (config, expected) in cases {
            assert_eq!(hostname(&config, &id), expected, "{config:?}");
        }
    }
}
