//! Whole specs: what matters of each kind of pod, and one that the OCI runtime runs.

mod runc;

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

use super::*;
use crate::sandbox::config::UserNamespace;

/// What a request is made of; tests change what they are about.
pub(super) struct Parts {
    pub(super) sandbox_id: SandboxId,
    pub(super) sandbox: SandboxConfig,
    pub(super) config: ContainerConfig,
    pub(super) image: ImageConfiguration,
    pub(super) user: User,
    pub(super) rootfs: PathBuf,
    pub(super) namespaces: SpecNamespaces,
    pub(super) files: SandboxFiles,
    pub(super) volumes: Vec<Volume>,
    pub(super) devices: Vec<HostDevice>,
    pub(super) cgroups_path: String,
    pub(super) node: NodeFacts,
}

impl Parts {
    /// An ordinary container of an ordinary pod.
    pub(super) fn new() -> Self {
        let image = ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["cmd".to_owned()])
            .env(vec!["FROM=image".to_owned(), "broken".to_owned()])
            .working_dir("srv")
            .build()
            .unwrap();
        Self {
            sandbox_id: SandboxId::random().unwrap(),
            sandbox: SandboxConfig {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                ..Default::default()
            },
            config: ContainerConfig { name: "main".into(), ..Default::default() },
            image: ImageConfigurationBuilder::default().config(image).build().unwrap(),
            user: User {
                uid: 0,
                gid: 0,
                additional_gids: vec![0],
                home: "/root".into(),
                username: None,
            },
            rootfs: "/rootfs".into(),
            namespaces: SpecNamespaces {
                network: Some("/run/netns/n".into()),
                ipc: Some("/run/cria/ipc".into()),
                uts: Some("/run/cria/uts".into()),
                pid: PidNamespace::Own,
            },
            files: SandboxFiles {
                resolv_conf: "/run/s/resolv.conf".into(),
                hostname: "/run/s/hostname".into(),
                hosts: "/run/s/hosts".into(),
                shm: "/run/s/shm".into(),
            },
            volumes: Vec::new(),
            devices: Vec::new(),
            cgroups_path: "/kubepods/x".into(),
            node: node(),
        }
    }

    pub(super) fn build(&self) -> Result<Spec, SpecError> {
        build(SpecRequest {
            sandbox_id: &self.sandbox_id,
            sandbox: &self.sandbox,
            hostname: "host-of-pod",
            config: &self.config,
            image: &self.image,
            user: &self.user,
            rootfs: &self.rootfs,
            namespaces: &self.namespaces,
            files: &self.files,
            volumes: &self.volumes,
            devices: &self.devices,
            cgroups_path: &self.cgroups_path,
            seccomp: None,
            node: &self.node,
        })
    }
}

/// All capabilities but one, as on a node that is itself confined.
pub(super) fn node() -> NodeFacts {
    let capabilities =
        caps::all().into_iter().filter(|cap| *cap != caps::Capability::CAP_SYS_RESOURCE);
    NodeFacts {
        cgroups: CgroupVersion::V2,
        capabilities: capabilities.map(|cap| cap.to_string()).collect::<BTreeSet<_>>(),
        oom_score_adj_floor: 0,
        rlimits: Vec::new(),
        pids_limit: Some(500),
        recursive_read_only: true,
        swap_accounting: true,
        own_dirs: Vec::new(),
        hugetlb: true,
        apparmor: false,
        selinux: false,
    }
}
