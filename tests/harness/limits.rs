//! A container's limits: what its status tells, how they are changed, what the kernel has.

use std::path::Path;

use cria_proto::{LinuxContainerResources, UpdateContainerResourcesRequest};

use crate::cri::{Container, Pod};

impl Container {
    /// As the status reports them.
    #[track_caller]
    pub fn limits(&self) -> LinuxContainerResources {
        let resources = self.status().resources.expect("resources are reported");
        resources.linux.expect("of linux")
    }

    #[track_caller]
    pub fn limit(&self, linux: LinuxContainerResources) {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        self.cri.update_container_resources(request).expect("they are updated");
    }
}

/// A container's resource and where the kernel shows it, on cgroup v1 and v2.
#[track_caller]
pub fn in_kernel(pod: &Pod, container: &Container, v1: &str, v2: &str) -> String {
    as_seen_from(Path::new("/"), pod, container, v1, v2)
}

/// The same where `root` is.
#[track_caller]
pub fn as_seen_from(root: &Path, pod: &Pod, container: &Container, v1: &str, v2: &str) -> String {
    let parent = pod.config.linux.clone().unwrap_or_default().cgroup_parent;
    let hierarchies = root.join("sys/fs/cgroup");
    let (hierarchy, file) = match v1.split_once('/') {
        Some((controller, v1)) if !cgroup2() => (hierarchies.join(controller), v1),
        _ => (hierarchies, v2),
    };
    let folder = hierarchy.join(parent.trim_start_matches('/'));
    let mut children = folder.read_dir().expect("the pod has a cgroup").flatten();
    let child = children
        .find(|entry| entry.file_name().to_string_lossy().contains(&container.id))
        .expect("the container has a cgroup");
    let text = fs_err::read_to_string(child.path().join(file)).expect("the controller is there");
    text.trim().to_owned()
}

pub fn cgroup2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
