//! What pods and containers are both asked to be confined by: namespaces, profiles, labels, groups.
//! Kept in the records of both; fields are only ever added.

use serde::{Deserialize, Serialize};

/// Which namespaces a pod or container has of its own (the CRI's `NamespaceOption`), reported
/// exactly as it was asked: the kubelet recreates a pod whose answer differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NamespaceOptions {
    pub(crate) network: NamespaceMode,
    pub(crate) pid: NamespaceMode,
    pub(crate) ipc: NamespaceMode,
    /// The container whose PID namespace is joined; only with `NamespaceMode::Target`.
    pub(crate) target_id: String,
    pub(crate) user: Option<UserNamespace>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    Container,
    /// The host's.
    Node,
    Target,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UserNamespace {
    pub(crate) mode: NamespaceMode,
    pub(crate) uids: Vec<IdMapping>,
    pub(crate) gids: Vec<IdMapping>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct IdMapping {
    pub(crate) host_id: u32,
    pub(crate) container_id: u32,
    pub(crate) length: u32,
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
