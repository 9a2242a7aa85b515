//! The OCI runtime's spec of a container, from what was asked for, the image, the sandbox and the
//! node. `build` is pure; what has to be looked up on the node or in the image is looked up first:
//!
//! ```text
//! image's files ─▶ user::look_up ──────┐
//! host's paths  ─▶ volumes::look_up ───┤
//! host's /dev   ─▶ devices::look_up ───┼─▶ SpecRequest ─▶ build ─▶ Spec ─▶ config.json
//! node, at start ─▶ NodeFacts ─────────┤
//! seccomp, from capabilities::of ──────┘
//! ```
//!
//! The spec holds only what is asked for: each line of it costs every container's start.

pub(crate) mod capabilities;
pub(crate) mod devices;
mod error;
mod mountinfo;
mod mounts;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod resources;
pub(crate) mod rlimits;
pub(crate) mod seccomp;
pub(crate) mod user;
pub(crate) mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Root, Spec};
use serde::de::DeserializeOwned;

pub(crate) use error::SpecError;

use crate::container::config::ContainerConfig;
use crate::id::SandboxId;
use crate::sandbox::Files;
use crate::sandbox::config::{NamespaceMode, SandboxConfig};
use devices::HostDevice;
use node::{CgroupVersion, NodeFacts};
use user::User;
use volumes::Volume;

/// All that we use was there in it, and crun 1.8 refuses any version but a 1.0.
const OCI_VERSION: &str = "1.0.2";

pub(crate) struct SpecRequest<'a> {
    pub(crate) sandbox_id: &'a SandboxId,
    pub(crate) sandbox: &'a SandboxConfig,
    /// The sandbox's, or the host's where it shares that.
    pub(crate) hostname: &'a str,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a ImageConfiguration,
    pub(crate) user: &'a User,
    /// Absolute.
    pub(crate) rootfs: &'a Path,
    pub(crate) namespaces: &'a SpecNamespaces,
    pub(crate) files: &'a Files,
    pub(crate) volumes: &'a [Volume],
    pub(crate) devices: &'a [HostDevice],
    /// As the OCI runtime takes it: a path, or `slice:prefix:name` for systemd.
    pub(crate) cgroups_path: &'a str,
    /// What the OCI runtime is to tell systemd of the scope; empty with the other driver.
    pub(crate) scope: &'a BTreeMap<String, String>,
    /// Already chosen; `None`: unconfined. A privileged container's is `None`.
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) node: &'a NodeFacts,
}

/// The namespaces to join, by their pinned files; `None`: the host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecNamespaces {
    pub(crate) network: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    pub(crate) pid: PidNamespace,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum PidNamespace {
    #[default]
    Own,
    Host,
    Join(PathBuf),
}

pub(crate) fn build(mut request: SpecRequest<'_>) -> Result<Spec, SpecError> {
    check(request.config)?;
    let seccomp = request.seccomp.take();
    let mut root = Root::default();
    root.set_path(request.rootfs.to_owned())
        .set_readonly(request.config.security.readonly_rootfs.then_some(true));
    // No hostname: it is the UTS namespace's, and that is not the container's own. No sysctls for
    // the same reason.
    let mut spec = empty::<Spec>("{}");
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_process(Some(process::build(&request)?))
        .set_mounts(Some(mounts::list(&request)))
        .set_annotations(Some(annotations(&request)))
        .set_linux(Some(linux(&request, seccomp)));
    Ok(spec)
}

/// What is not served yet is refused, not left out.
fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    if !config.cdi_devices.is_empty() {
        return Err(SpecError::not_here("a CDI device", "they are not served"));
    }
    match &config.security.namespaces.user {
        Some(user) if user.mode != NamespaceMode::Node => {
            Err(SpecError::not_here("a user namespace", "they are not served"))
        }
        Some(_) | None => Ok(()),
    }
}

/// A spec's part with nothing in it: `Default` is a whole container of the crate's own taste.
fn empty<T: DeserializeOwned>(required: &str) -> T {
    serde_json::from_str(required).expect("every other field of the type is optional")
}

fn linux(request: &SpecRequest<'_>, seccomp: Option<LinuxSeccomp>) -> Linux {
    let security = &request.config.security;
    let rules = devices::rules(request.devices, security);
    let mut linux = empty::<Linux>("{}");
    linux
        .set_resources(Some(resources::for_create(&request.config.resources, rules, request.node)))
        .set_cgroups_path(Some(request.cgroups_path.into()))
        .set_namespaces(Some(namespaces(request)))
        .set_seccomp(seccomp)
        .set_rootfs_propagation(mounts::rootfs_propagation(request.volumes).map(str::to_owned));
    if !request.devices.is_empty() {
        linux.set_devices(Some(devices::nodes(request.devices)));
    }
    if !security.privileged {
        linux
            .set_masked_paths(nonempty(&security.masked_paths))
            .set_readonly_paths(nonempty(&security.readonly_paths));
    }
    linux
}

fn namespaces(request: &SpecRequest<'_>) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};

    let asked = request.namespaces;
    let mut namespaces = vec![namespace(Mount, None)];
    let joined = [(Network, &asked.network), (Ipc, &asked.ipc), (Uts, &asked.uts)];
    namespaces.extend(
        joined.into_iter().filter_map(|(typ, path)| Some(namespace(typ, Some(path.as_ref()?)))),
    );
    match &asked.pid {
        PidNamespace::Own => namespaces.push(namespace(Pid, None)),
        PidNamespace::Join(path) => namespaces.push(namespace(Pid, Some(path))),
        PidNamespace::Host => {}
    }
    // On v1 the OCI runtime shows the container its own cgroups without one. A privileged
    // container is to see the node's.
    match request.node.cgroups.version {
        CgroupVersion::V2 if !request.config.security.privileged => {
            namespaces.push(namespace(Cgroup, None));
        }
        CgroupVersion::V1 | CgroupVersion::V2 => {}
    }
    namespaces
}

fn namespace(typ: LinuxNamespaceType, path: Option<&PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path.cloned());
    namespace
}

/// The request's, those of the scope, and those by which tools beneath the OCI runtime know a
/// container of a pod.
fn annotations(request: &SpecRequest<'_>) -> HashMap<String, String> {
    let sandbox = request.sandbox;
    let mut annotations: HashMap<_, _> = request.config.annotations.clone().into_iter().collect();
    let own = [
        ("container-type", "container"),
        ("container-name", &request.config.name),
        ("sandbox-id", request.sandbox_id.as_str()),
        ("sandbox-name", &sandbox.name),
        ("sandbox-namespace", &sandbox.namespace),
        ("sandbox-uid", &sandbox.uid),
    ];
    annotations.extend(request.scope.clone());
    annotations
        .extend(own.map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned())));
    annotations
}

fn nonempty(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

#[cfg(test)]
mod tests;
