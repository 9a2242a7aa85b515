//! What somebody asked for when they created a container: the CRI's `ContainerConfig` in domain
//! types. It never changes after the creation, except for the resources, and is kept in the
//! container's record; fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerConfig {
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) image: ImageRequest,
    /// Replaces the image's entrypoint, if not empty.
    pub(crate) command: Vec<String>,
    /// Replaces the image's command, if not empty (or if `command` is given).
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    /// In order; a later one wins. Checked to be UTF-8: the OCI runtime's spec is JSON.
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// Qualified CDI names.
    pub(crate) cdi_devices: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory; empty: no log is kept.
    pub(crate) log_path: String,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    /// The signal's number; `None`: the image's, else SIGTERM.
    pub(crate) stop_signal: Option<i32>,
    pub(crate) resources: Resources,
    pub(crate) security: SecurityContext,
}

/// An image as it was asked for (the CRI's `ImageSpec`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageRequest {
    pub(crate) image: String,
    pub(crate) user_specified_image: String,
    pub(crate) runtime_handler: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) image_ref: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Mount {
    pub(crate) container_path: String,
    pub(crate) host_path: String,
    pub(crate) readonly: bool,
    pub(crate) recursive_read_only: bool,
    pub(crate) selinux_relabel: bool,
    pub(crate) propagation: Propagation,
    pub(crate) uid_mappings: Vec<IdMapping>,
    pub(crate) gid_mappings: Vec<IdMapping>,
    /// An image volume (KEP-4639), in place of `host_path`.
    pub(crate) image: Option<ImageRequest>,
    pub(crate) image_sub_path: String,
    pub(crate) mount_options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct IdMapping {
    pub(crate) host_id: u32,
    pub(crate) container_id: u32,
    pub(crate) length: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Device {
    pub(crate) container_path: String,
    pub(crate) host_path: String,
    /// Some of `r`, `w`, `m`.
    pub(crate) permissions: String,
}

/// Limits, as the CRI has them: 0 and empty mean "not given", -1 "unlimited".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    pub(crate) cpu_period: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory_limit_bytes: i64,
    pub(crate) memory_swap_limit_bytes: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    /// Page size (`2MB`, `1GB`) and limit in bytes.
    pub(crate) hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files and what is to be in them.
    pub(crate) unified: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SecurityContext {
    pub(crate) privileged: bool,
    pub(crate) add_capabilities: Vec<String>,
    pub(crate) drop_capabilities: Vec<String>,
    pub(crate) add_ambient_capabilities: Vec<String>,
    pub(crate) namespaces: crate::sandbox::config::NamespaceOptions,
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_username: String,
    pub(crate) supplemental_groups: Vec<i64>,
    pub(crate) supplemental_groups_policy: SupplementalGroupsPolicy,
    pub(crate) readonly_rootfs: bool,
    pub(crate) no_new_privs: bool,
    /// As given: empty lists mean "nothing is masked" (procMount: Unmasked).
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) seccomp: SeccompProfile,
    pub(crate) selinux: Option<SelinuxOptions>,
    pub(crate) apparmor: Option<SeccompProfile>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SupplementalGroupsPolicy {
    /// The groups given and those of the image's `/etc/group`.
    #[default]
    Merge,
    /// Only the groups given.
    Strict,
}

/// Which seccomp (or AppArmor) profile is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeccompProfile {
    RuntimeDefault,
    /// Also when the request has none.
    #[default]
    Unconfined,
    /// A file on the node, or a loaded profile's name.
    Localhost(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SelinuxOptions {
    pub(crate) user: String,
    pub(crate) role: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) level: String,
}
