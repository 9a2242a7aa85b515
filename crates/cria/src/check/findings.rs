//! Judges what was found on the node: one line for each thing, with what follows for pods and what
//! to do. Pure, so that every line can be tried.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::mounts::CgroupLayout;
use super::node::{Cni, Directory, Network, Node, Policy};
use super::oci::OciRuntime;
use super::overlay::OverlayMount;
use super::{Finding, Verdict};
use crate::config::CgroupDriver;
use crate::release::Release;

/// Judges everything, what matters most first.
pub(super) fn judge(node: &Node) -> Vec<Finding> {
    vec![
        kernel(node),
        overlay(&node.overlay),
        openat2(node.openat2),
        pidfd(node.pidfd),
        seccomp(node.seccomp),
        namespaces(&node.namespaces),
        cgroups(node.cgroup_layout),
        controllers(&node.controllers, node.cgroup_layout),
        cgroup_driver(node),
        oci_runtime(&node.oci_runtimes),
        monitor(node.monitor.as_ref()),
        capabilities(&node.lacking_capabilities),
        no_new_privs(node.no_new_privs),
        oom_score_adj(node.oom_score_adj_floor),
        directory("root directory", &node.root, root_filesystem),
        directory("run directory", &node.run_dir, run_filesystem),
        cni_network(&node.cni),
        cni_plugins(&node.cni),
        policy(&node.policy),
        kubelet(node.kubelet.as_ref()),
        swap(node.swap),
    ]
}

fn good(subject: &'static str, found: impl Into<String>, follows: impl Into<String>) -> Finding {
    let (found, follows) = (found.into(), follows.into());
    Finding { subject, verdict: Verdict::Good, found, follows, remedy: None }
}

impl Finding {
    /// Pods run, but.
    fn lacking(self, remedy: &'static str) -> Self {
        Self { verdict: Verdict::Lacking, remedy: Some(remedy), ..self }
    }

    /// Pods could not run.
    fn failing(self, remedy: &'static str) -> Self {
        Self { verdict: Verdict::Failing, remedy: Some(remedy), ..self }
    }
}

/// PIDFD_GET_INFO tells the exit code of a process that is not our child, since 6.15.
fn kernel(node: &Node) -> Finding {
    let finding = |follows: &str| good("kernel", format!("Linux {}", node.kernel), follows);
    match version(&node.kernel) {
        Some(version) if version >= (6, 15) => finding("It has everything that cria can use"),
        Some(version) if version >= (5, 10) => finding(
            "Where a monitor and the daemon that started it both die, the container's exit code is \
             reported as unknown (255)",
        ),
        Some(_) | None => finding("cria needs openat2, pidfds and overlayfs' volatile mounts")
            .failing("use Linux 5.10 or newer"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn overlay(overlay: &Result<OverlayMount, String>) -> Finding {
    match overlay {
        Ok(OverlayMount::LayerByLayer) => {
            good("overlayfs", "mounted with lowerdir+", "Images of up to 500 layers can be mounted")
        }
        Ok(OverlayMount::OnePage) => {
            good("overlayfs", "mounted by mount(2)", "Images of very many layers cannot be mounted")
                .lacking("use Linux 6.8 or newer")
        }
        Err(reason) => good("overlayfs", reason, "No container has a root filesystem").failing(
            "load the module `overlay`, and put the root directory on ext4 or xfs (not on overlay)",
        ),
    }
}

fn openat2(there: bool) -> Finding {
    if there {
        return good("openat2", "there", "Paths of images and containers cannot escape their root");
    }
    good("openat2", "missing", "No layer can be unpacked safely")
        .failing("use Linux 5.10 or newer, and allow the call where cria itself is confined")
}

fn pidfd(there: bool) -> Finding {
    if there {
        return good("pidfd", "there", "No signal can reach a process that took over a pid");
    }
    good("pidfd", "missing", "No container can be watched")
        .failing("use Linux 5.10 or newer, and allow the call where cria itself is confined")
}

fn seccomp(there: bool) -> Finding {
    if there {
        return good("seccomp", "there", "Pods can have RuntimeDefault and their own profiles");
    }
    good("seccomp", "missing", "Every container runs unconfined or fails")
        .failing("use a kernel with CONFIG_SECCOMP_FILTER")
}

fn namespaces(there: &BTreeSet<String>) -> Finding {
    let lacking = |wanted: &[&str]| -> Vec<String> {
        wanted.iter().filter(|name| !there.contains(**name)).map(ToString::to_string).collect()
    };
    let needed = lacking(&["ipc", "mnt", "net", "pid", "uts"]);
    let useful = lacking(&["cgroup", "user"]);
    if !needed.is_empty() {
        return good("namespaces", missing(&needed), "Pods cannot be kept apart")
            .failing("use a kernel with all kinds of namespaces");
    }
    if !useful.is_empty() {
        return good("namespaces", missing(&useful), "Pods that ask for them fail")
            .lacking("use a kernel with all kinds of namespaces");
    }
    good("namespaces", "all kinds", "Pods can be kept apart")
}

fn cgroups(layout: CgroupLayout) -> Finding {
    match layout {
        CgroupLayout::V2 => good("cgroups", "v2", "Limits, pressure and memory protection work"),
        CgroupLayout::V1 | CgroupLayout::Hybrid => {
            let found = if layout == CgroupLayout::V1 { "v1" } else { "v1 beside an empty v2" };
            good(
                "cgroups",
                found,
                "There is no pressure information and no memory protection; the kubelet needs \
                 failCgroupV1: false",
            )
            .lacking("boot with systemd.unified_cgroup_hierarchy=1")
        }
        CgroupLayout::None => {
            good("cgroups", "not mounted", "No container can be limited, counted or stopped as one")
                .failing("mount cgroup2 on /sys/fs/cgroup")
        }
    }
}

fn controllers(there: &BTreeSet<String>, layout: CgroupLayout) -> Finding {
    let wanted: &[&str] = match layout {
        CgroupLayout::V2 => &["cpu", "cpuset", "memory"],
        CgroupLayout::V1 | CgroupLayout::Hybrid => &["cpu", "cpuacct", "cpuset", "memory"],
        CgroupLayout::None => &[],
    };
    let lacking = |wanted: &[&str]| -> Vec<String> {
        wanted.iter().filter(|name| !there.contains(**name)).map(ToString::to_string).collect()
    };
    let found = there.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let needed = lacking(wanted);
    if !needed.is_empty() {
        return good("cgroup controllers", missing(&needed), "The kubelet refuses to start")
            .failing(
                "enable them: cgroup_enable=memory on the kernel's command line, for example",
            );
    }
    let useful = lacking(&["hugetlb", "pids"]);
    if !useful.is_empty() {
        return good("cgroup controllers", missing(&useful), "These limits of pods are not kept")
            .lacking("use a kernel that has them");
    }
    good("cgroup controllers", found, "Limits of pods are kept")
}

fn cgroup_driver(node: &Node) -> Finding {
    let subject = "cgroup driver";
    match (node.cgroup_driver, node.systemd) {
        (CgroupDriver::Systemd, true) => {
            good(subject, "systemd", "Pods are slices and containers are scopes of systemd")
        }
        (CgroupDriver::Systemd, false) => {
            good(subject, "systemd is configured, but is not PID 1", "No cgroup can be made")
                .failing("set cgroup-driver to \"auto\" or \"cgroupfs\"")
        }
        (CgroupDriver::Cgroupfs, true) => {
            good(subject, "cgroupfs, under systemd", "Two would manage the same cgroups")
                .lacking("set cgroup-driver to \"auto\" or \"systemd\"")
        }
        (CgroupDriver::Cgroupfs | CgroupDriver::Auto, _) => {
            good(subject, "cgroupfs", "cria and the OCI runtime make the cgroups themselves")
        }
    }
}

fn oci_runtime(runtimes: &[OciRuntime]) -> Finding {
    let subject = "OCI runtime";
    let Some(chosen) = runtimes.iter().find(|runtime| runtime.refusal.is_none()) else {
        let refusals: Vec<_> = runtimes.iter().map(refusal).collect();
        let found =
            if refusals.is_empty() { "none is installed".to_owned() } else { refusals.join("; ") };
        return good(subject, found, "No container can be made")
            .failing("install crun 1.9 or newer, or runc 1.1 or newer, or set oci-runtime");
    };
    let passed_over: String = runtimes
        .iter()
        .take_while(|runtime| *runtime != chosen)
        .map(|runtime| format!("; not {}", refusal(runtime)))
        .collect();
    let found = format!("{} ({}){passed_over}", chosen.path.display(), chosen.version);
    match chosen.recursive_read_only {
        true => good(subject, found, "It creates containers here, and has all features"),
        false => good(
            subject,
            found,
            "It creates containers here, but has no recursive read-only mounts",
        )
        .lacking("install crun 1.9 or newer, or runc 1.2 or newer"),
    }
}

fn refusal(runtime: &OciRuntime) -> String {
    let reason = runtime.refusal.as_deref().unwrap_or("not tried");
    format!("{} ({}): {reason}", runtime.path.display(), runtime.version)
}

fn monitor(path: Option<&PathBuf>) -> Finding {
    match path {
        Some(path) => good("monitor", path.display().to_string(), "Each container can have one"),
        None => good("monitor", "cria-monitor is not there", "No container can be started")
            .failing("install it beside cria, or set monitor"),
    }
}

/// What cria itself, the OCI runtime and ordinary pods need: mounts, namespaces, interfaces, the
/// owners of files, other users.
const NEEDED_CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

fn capabilities(lacking: &BTreeSet<String>) -> Finding {
    let all: Vec<String> = lacking.iter().cloned().collect();
    let needed: Vec<String> =
        all.iter().filter(|name| NEEDED_CAPABILITIES.contains(&name.as_str())).cloned().collect();
    if !needed.is_empty() {
        return good("capabilities", missing(&needed), "Pods cannot be set up")
            .failing("run cria as root, outside of a container or in a privileged one");
    }
    if !all.is_empty() {
        return good("capabilities", missing(&all), "Privileged containers get all the others")
            .lacking("run cria outside of a container if pods need these");
    }
    good("capabilities", "all", "Privileged containers get all of them")
}

/// A service has it by systemd's NoNewPrivileges, also by options that imply it.
fn no_new_privs(set: bool) -> Finding {
    if !set {
        return good("no_new_privs", "not set", "Pods have it where they ask for it");
    }
    good("no_new_privs", "set", "Every container has it: sudo, ping and the like fail in pods")
        .lacking("run cria without NoNewPrivileges")
}

/// The kubelet gives -997 to pods with guaranteed resources and to critical ones.
fn oom_score_adj(floor: i32) -> Finding {
    if floor <= -998 {
        return good("oom_score_adj", format!("down to {floor}"), "Pods get what the kubelet asks");
    }
    good(
        "oom_score_adj",
        format!("not below {floor}"),
        "Lower values are raised to it, so guaranteed pods are killed for memory as early as others",
    )
    .lacking("run cria with CAP_SYS_RESOURCE")
}

fn directory(
    subject: &'static str,
    directory: &Directory,
    judge: fn(Finding, &str) -> Finding,
) -> Finding {
    let Directory { path, filesystem, refusal } = directory;
    let kind = filesystem.as_deref().unwrap_or("an unknown filesystem");
    if let Some(refusal) = refusal {
        let found = format!("{} ({kind}): {refusal}", path.display());
        return good(subject, found, "Nothing can be kept there")
            .failing("make it writable for cria, or choose another directory");
    }
    judge(good(subject, format!("{} ({kind})", path.display()), ""), kind)
}

fn root_filesystem(finding: Finding, kind: &str) -> Finding {
    match kind {
        "tmpfs" | "ramfs" => {
            let follows = "Images take memory, and are gone after a reboot".to_owned();
            Finding { follows, ..finding }.lacking("put the root directory on a disk")
        }
        _ => Finding { follows: "Images and records outlive a reboot".to_owned(), ..finding },
    }
}

fn run_filesystem(finding: Finding, kind: &str) -> Finding {
    match kind {
        "tmpfs" | "ramfs" => {
            let follows = "A full disk stops no exit record".to_owned();
            Finding { follows, ..finding }
        }
        _ => {
            let follows = "A full disk can stop exit records".to_owned();
            Finding { follows, ..finding }.lacking("put the run directory on a tmpfs")
        }
    }
}

/// Not a failure: on a new node the network's own pods, on the host's network, bring the file.
fn cni_network(cni: &Cni) -> Finding {
    let subject = "CNI network";
    let follows = "Only pods on the host's network can run, and the node is NotReady";
    match &cni.network {
        Network::Named { name, plugins, broken, .. } => {
            let found = format!("`{name}` ({})", plugins.join(", "));
            let follows = "Pods get their interfaces from it";
            if broken.is_empty() {
                return good(subject, found, follows);
            }
            good(subject, format!("{found}; not {}", broken.join("; ")), follows)
                .lacking("correct or remove the other files")
        }
        Network::None => good(subject, format!("no file in {}", cni.directory.display()), follows)
            .lacking("install a network, or copy the example from cria's packaging"),
        Network::Unusable(reason) => {
            good(subject, reason, follows).lacking("correct or remove the file")
        }
    }
}

fn cni_plugins(cni: &Cni) -> Finding {
    let directories: Vec<_> = cni.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let directories = directories.join(", ");
    match &cni.network {
        Network::Named { missing, .. } if !missing.is_empty() => {
            let found = format!("{} not in {directories}", missing.join(", "));
            good("CNI plugins", found, "Pods on the pod network fail")
                .failing("install the CNI plugins, or set cni-bin-dirs")
        }
        Network::Named { .. } => good("CNI plugins", "all there", "The network can be set up"),
        Network::None | Network::Unusable(_) => good(
            "CNI plugins",
            "none is named",
            format!("They will be looked for in {directories}"),
        ),
    }
}

fn policy(policy: &Policy) -> Finding {
    match policy {
        Policy::Read(path) => {
            good("image policy", path.display().to_string(), "Images are used as it says")
        }
        Policy::None(path) => good(
            "image policy",
            format!("{} is missing", path.display()),
            "Every image is taken, signed or not",
        ),
        Policy::Unusable(reason) => good("image policy", reason, "The daemon does not start")
            .failing("correct the file; what cria cannot check it does not accept"),
    }
}

/// Kubernetes' version skew policy, as it is for runtimes that are released with it.
fn kubelet(version: Option<&Result<String, String>>) -> Finding {
    let subject = "kubelet";
    let served = format!("{} to {}", Release::oldest(), Release::own());
    let remedy = "install the cria of the kubelet's release, or a kubelet that this cria serves";
    let found = |found: &str| good(subject, found, format!("cria serves Kubernetes {served}"));
    match version {
        None => found("none in $PATH"),
        Some(Err(reason)) => {
            let found = format!("its version is unknown: {reason}");
            good(subject, found, format!("It should be of Kubernetes {served}")).lacking(remedy)
        }
        Some(Ok(version)) => match Release::parse(version) {
            Some(release) if release.is_served() => found(version),
            Some(_) | None => {
                let follows = format!(
                    "It is not of Kubernetes {served}, and may ask for what is not served, or differently"
                );
                good(subject, version, follows).lacking(remedy)
            }
        },
    }
}

fn swap(there: bool) -> Finding {
    if there {
        return good("swap", "there is some", "The kubelet needs failSwapOn: false to start");
    }
    good("swap", "none", "Containers over their memory are killed, not slowed")
}

fn missing(names: &[String]) -> String {
    format!("{} missing", names.join(", "))
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
