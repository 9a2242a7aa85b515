//! What somebody asked for when they ran a pod sandbox: the CRI's `PodSandboxConfig` in domain
//! types. It never changes afterwards and is kept in the sandbox's record; fields are only ever
//! added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use crate::confinement::{NamespaceMode, NamespaceOptions, UserNamespace};
use crate::confinement::{SeccompProfile, SelinuxOptions, SupplementalGroupsPolicy};
use crate::container::config::Resources;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SandboxConfig {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) attempt: u32,
    /// Empty: the id's first characters; on the host's network: the host's.
    pub(crate) hostname: String,
    /// Where the containers' logs are; empty: none are kept.
    pub(crate) log_directory: String,
    /// `None`: the host's resolv.conf.
    pub(crate) dns: Option<Dns>,
    pub(crate) port_mappings: Vec<PortMapping>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// `/kubepods/...` (cgroupfs) or `kubepods-....slice` (systemd); empty: cria's default.
    pub(crate) cgroup_parent: String,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) overhead: Option<Resources>,
    pub(crate) resources: Option<Resources>,
    pub(crate) security: SandboxSecurity,
    /// The CRI's handler name, as asked; empty: the default.
    pub(crate) runtime_handler: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PortMapping {
    pub(crate) protocol: Protocol,
    pub(crate) container_port: i32,
    pub(crate) host_port: i32,
    pub(crate) host_ip: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SandboxSecurity {
    pub(crate) namespaces: NamespaceOptions,
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) supplemental_groups: Vec<i64>,
    pub(crate) supplemental_groups_policy: SupplementalGroupsPolicy,
    pub(crate) readonly_rootfs: bool,
    pub(crate) privileged: bool,
    pub(crate) seccomp: SeccompProfile,
    pub(crate) selinux: Option<SelinuxOptions>,
}
