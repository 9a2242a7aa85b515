//! What somebody asked for when they created a container: the CRI's `ContainerConfig` in domain
//! types. It never changes after the creation, except for the resources, and is kept in the
//! container's record; fields are only ever added.

use std::collections::BTreeMap;

use cria_images::Reference;
use serde::{Deserialize, Serialize};

pub(crate) use crate::confinement::{
    IdMapping, NamespaceOptions, SeccompProfile, SelinuxOptions, SupplementalGroupsPolicy,
};

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

impl ImageRequest {
    /// What the pod calls the image; where nobody says, what the container is made of.
    pub(crate) fn written(&self) -> &str {
        match self.user_specified_image.as_str() {
            "" => &self.image,
            written => written,
        }
    }

    /// Which of the names by digest that an image has is to be told as this one's: that of the same
    /// repository, else the first.
    pub(crate) fn reference_among(&self, digests: &[String]) -> String {
        let repository = |name: &str| Some(Reference::parse(name, None).ok()?.repository());
        let asked = repository(self.written());
        let own = digests.iter().find(|digest| asked.is_some() && repository(digest) == asked);
        own.or(digests.first()).cloned().unwrap_or_default()
    }
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
    pub(crate) namespaces: NamespaceOptions,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_many_repositories_is_told_by_the_one_that_was_asked_for() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let [a, b, hub] = ["a.example/one", "b.example/two", "docker.io/library/nginx"]
            .map(|repository| format!("{repository}@{digest}"));
        let all = [a.clone(), b.clone(), hub.clone()];
        for (written, image, expected) in [
            ("b.example/two:1", digest.as_str(), &b),
            (&*b, &digest, &b),
            ("nginx", &digest, &hub),
            ("", "b.example/two:1", &b),
            ("", &digest, &a),
            ("b.example/other", &digest, &a),
            ("no/NAME", "b.example/two:1", &a),
        ] {
            let request = ImageRequest {
                image: image.to_owned(),
                user_specified_image: written.to_owned(),
                ..Default::default()
            };
            assert_eq!(request.reference_among(&all), *expected, "{written} {image}");
            assert_eq!(request.reference_among(&[]), "", "{written} {image}");
        }
    }
}
