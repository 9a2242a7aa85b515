//! The names of cgroups. Pure.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CgroupError;
use crate::id::{ContainerId, SandboxId};

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    /// The OCI runtime, by mkdir.
    Cgroupfs,
    /// systemd, at the OCI runtime's request.
    Systemd,
}

/// A cgroup's place in every hierarchy, relative to the hierarchy's root and never leading out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct CgroupPath(String);

/// Where the containers of a pod are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    driver: Driver,
    path: CgroupPath,
    owner: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Owner {
    /// The pod's cgroup, which the kubelet made and will remove.
    Kubelet,
    /// The pod's cgroup, which is cria's to remove (a client that named none).
    Cria,
    /// A slice for all such pods: systemd keeps a slice once it is there.
    Shared,
}

/// A container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerPath {
    pub(crate) path: CgroupPath,
    /// `linux.cgroupsPath` of the OCI runtime's spec.
    pub(crate) oci: String,
}

impl Driver {
    /// systemd's, if it runs this node: sd_booted(3), and it is really the first process, which is
    /// not so in a container on such a host.
    pub(crate) fn probe() -> Self {
        let first = fs_err::read_to_string("/proc/1/comm").unwrap_or_default();
        let systemd = Path::new("/run/systemd/system").is_dir() && first.trim() == "systemd";
        if systemd { Self::Systemd } else { Self::Cgroupfs }
    }
}

impl CgroupPath {
    /// `None` if it would lead out of the hierarchy, or is its root.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for part in Path::new(text.trim_start_matches('/')).components() {
            match part {
                Component::Normal(part) => parts.push(part.to_str()?),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
            }
        }
        (!parts.is_empty()).then(|| Self(parts.join("/")))
    }

    pub(super) fn below(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }

    fn child(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl Parent {
    /// From the CRI's `cgroup_parent`, empty if the client does not care.
    pub(crate) fn new(
        driver: Driver,
        asked: &str,
        sandbox: &SandboxId,
    ) -> Result<Self, CgroupError> {
        let bad = |reason| CgroupError::Parent { parent: asked.to_owned(), reason };
        let (path, owner) = match (driver, asked) {
            (Driver::Cgroupfs, "") => (CgroupPath(format!("cria-{sandbox}")), Owner::Cria),
            (Driver::Systemd, "") => (CgroupPath("cria.slice".into()), Owner::Shared),
            (Driver::Cgroupfs, asked) if asked.ends_with(".slice") => {
                return Err(bad("is a systemd slice, and cria's cgroup driver is cgroupfs"));
            }
            (Driver::Cgroupfs, asked) => {
                (CgroupPath::parse(asked).ok_or_else(|| bad("is no cgroup"))?, Owner::Kubelet)
            }
            (Driver::Systemd, asked) => (slice(asked).map_err(bad)?, Owner::Kubelet),
        };
        Ok(Self { driver, path, owner })
    }

    pub(crate) fn driver(&self) -> Driver {
        self.driver
    }

    /// The pod's cgroup, whose usage is the pod's. `None`: it has none of its own, and its usage
    /// is the sum of its containers'.
    pub(crate) fn pod(&self) -> Option<&CgroupPath> {
        match self.owner {
            Owner::Kubelet | Owner::Cria => Some(&self.path),
            Owner::Shared => None,
        }
    }

    /// The pod's cgroup, if it is to be removed with the pod.
    pub(crate) fn to_remove(&self) -> Option<&CgroupPath> {
        match self.owner {
            Owner::Cria => Some(&self.path),
            Owner::Kubelet | Owner::Shared => None,
        }
    }

    pub(crate) fn container(&self, id: &ContainerId) -> ContainerPath {
        match self.driver {
            Driver::Cgroupfs => {
                let path = self.path.child(id.as_str());
                ContainerPath { oci: path.to_string(), path }
            }
            Driver::Systemd => {
                let slice = self.path.0.rsplit('/').next().unwrap_or(&self.path.0);
                ContainerPath {
                    path: self.path.child(&scope(id)),
                    oci: format!("{slice}:cria:{id}"),
                }
            }
        }
    }
}

/// The directory names that a container's cgroup can have.
pub(super) fn container_names(id: &ContainerId) -> [String; 2] {
    [id.to_string(), scope(id)]
}

fn scope(id: &ContainerId) -> String {
    format!("cria-{id}.scope")
}

/// Where systemd puts a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)). The kubelet names it
/// with its directories; the last name says it all.
fn slice(asked: &str) -> Result<CgroupPath, &'static str> {
    let name = asked.rsplit('/').next().unwrap_or(asked);
    let stem = name
        .strip_suffix(".slice")
        .ok_or("is no systemd slice, and cria's cgroup driver is systemd")?;
    let parts: Vec<&str> = stem.split('-').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err("is not a valid slice name");
    }
    let slices = (1..=parts.len()).map(|count| format!("{}.slice", parts[..count].join("-")));
    Ok(CgroupPath(slices.collect::<Vec<_>>().join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxId {
        SandboxId::parse(&"5".repeat(64)).unwrap()
    }

    #[test]
    fn containers_are_where_the_driver_has_them() {
        let id = ContainerId::parse(&"c".repeat(64)).unwrap();
        let pod = sandbox();
        for (driver, asked, path, oci) in [
            (
                Driver::Cgroupfs,
                "/kubepods/burstable/pod1",
                format!("/kubepods/burstable/pod1/{id}"),
                format!("/kubepods/burstable/pod1/{id}"),
            ),
            (Driver::Cgroupfs, "mine//x/.", format!("/mine/x/{id}"), format!("/mine/x/{id}")),
            (Driver::Cgroupfs, "", format!("/cria-{pod}/{id}"), format!("/cria-{pod}/{id}")),
            (
                Driver::Systemd,
                "kubepods-burstable-pod1_2.slice",
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cria-{id}.scope"
                ),
                format!("kubepods-burstable-pod1_2.slice:cria:{id}"),
            ),
            (
                Driver::Systemd,
                "/kubepods.slice/kubepods-pod1.slice",
                format!("/kubepods.slice/kubepods-pod1.slice/cria-{id}.scope"),
                format!("kubepods-pod1.slice:cria:{id}"),
            ),
            (
                Driver::Systemd,
                "",
                format!("/cria.slice/cria-{id}.scope"),
                format!("cria.slice:cria:{id}"),
            ),
        ] {
            let container = Parent::new(driver, asked, &pod).unwrap().container(&id);
            assert_eq!((container.path.to_string(), container.oci), (path, oci), "{asked}");
        }
    }

    #[test]
    fn a_parent_that_does_not_fit_the_driver_is_refused() {
        for (driver, asked) in [
            (Driver::Cgroupfs, "/"),
            (Driver::Cgroupfs, "/a/../../b"),
            (Driver::Cgroupfs, "kubepods-pod1.slice"),
            (Driver::Systemd, "/kubepods/pod1"),
            (Driver::Systemd, "a.slice/b"),
            (Driver::Systemd, ".slice"),
            (Driver::Systemd, "-.slice"),
            (Driver::Systemd, "a--b.slice"),
            (Driver::Systemd, "-a.slice"),
        ] {
            let refused = Parent::new(driver, asked, &sandbox());
            assert!(matches!(refused, Err(CgroupError::Parent { .. })), "{asked}");
        }
    }

    #[test]
    fn only_what_cria_made_for_the_pod_is_removed_with_it() {
        let of = |driver, asked| Parent::new(driver, asked, &sandbox()).unwrap();
        for (parent, own, removed) in [
            (of(Driver::Cgroupfs, "/kubepods/pod1"), true, false),
            (of(Driver::Cgroupfs, ""), true, true),
            (of(Driver::Systemd, "kubepods-pod1.slice"), true, false),
            (of(Driver::Systemd, ""), false, false),
        ] {
            assert_eq!((parent.pod().is_some(), parent.to_remove().is_some()), (own, removed));
        }
    }
}
