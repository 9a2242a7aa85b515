//! Whole specs: what matters of each kind of pod, and one that the OCI runtime runs.

mod run;

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

use super::node::CgroupFacts;
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
    pub(super) files: Files,
    pub(super) volumes: Vec<Volume>,
    pub(super) devices: Vec<HostDevice>,
    pub(super) cgroups_path: String,
    pub(super) scope: BTreeMap<String, String>,
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
            files: Files {
                resolv_conf: "/run/s/resolv.conf".into(),
                hostname: "/run/s/hostname".into(),
                hosts: "/run/s/hosts".into(),
                shm: "/run/s/shm".into(),
            },
            volumes: Vec::new(),
            devices: Vec::new(),
            cgroups_path: "/kubepods/x".into(),
            scope: BTreeMap::new(),
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
            scope: &self.scope,
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
        cgroups: CgroupFacts { version: CgroupVersion::V2, swap: true, hugetlb: true },
        capabilities: capabilities.map(|cap| cap.to_string()).collect::<BTreeSet<_>>(),
        default_capabilities: crate::config::RuntimeConfig::default().capability_names(),
        oom_score_adj_floor: 0,
        rlimits: Vec::new(),
        pids_limit: Some(500),
        recursive_read_only: true,
        own_dirs: Vec::new(),
        apparmor: false,
        selinux: false,
    }
}

fn namespaces_of(spec: &Spec) -> BTreeMap<String, Option<PathBuf>> {
    let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
    namespaces.iter().map(|one| (one.typ().to_string(), one.path().clone())).collect()
}

fn expected_namespaces(list: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<PathBuf>> {
    list.iter().map(|(typ, path)| ((*typ).to_owned(), path.map(PathBuf::from))).collect()
}

#[test]
fn a_plain_container_is_in_its_pods_namespaces_and_holds_nothing_it_did_not_ask_for() {
    let mut parts = Parts::new();
    parts.config.security.masked_paths = vec!["/proc/kcore".into()];
    parts.config.security.readonly_paths = vec!["/proc/sys".into()];
    let spec = parts.build().unwrap();
    let expected = expected_namespaces(&[
        ("mnt", None),
        ("net", Some("/run/netns/n")),
        ("ipc", Some("/run/cria/ipc")),
        ("uts", Some("/run/cria/uts")),
        ("pid", None),
        ("cgroup", None),
    ]);
    assert_eq!(namespaces_of(&spec), expected);

    let json = serde_json::to_value(&spec).unwrap();
    let keys = |pointer: &str| -> Vec<String> {
        json.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(""), ["annotations", "linux", "mounts", "ociVersion", "process", "root"]);
    assert_eq!(
        keys("/linux"),
        ["cgroupsPath", "maskedPaths", "namespaces", "readonlyPaths", "resources"]
    );
    assert_eq!(
        keys("/process"),
        ["args", "capabilities", "cwd", "env", "oomScoreAdj", "rlimits", "user"]
    );
    assert_eq!(keys("/linux/resources"), ["devices", "pids"]);
    assert_eq!(json["root"], serde_json::json!({"path": "/rootfs"}));
    assert_eq!(json["process"]["user"]["umask"], 0o022);
    assert_eq!(json["linux"]["maskedPaths"], serde_json::json!(["/proc/kcore"]));
    assert_eq!(json["linux"]["readonlyPaths"], serde_json::json!(["/proc/sys"]));
}

#[test]
fn a_privileged_container_sees_the_nodes_cgroups_and_has_nothing_masked_or_denied() {
    let mut parts = Parts::new();
    parts.config.security.privileged = true;
    parts.config.security.masked_paths = vec!["/proc/kcore".into()];
    parts.config.security.readonly_paths = vec!["/proc/sys".into()];
    parts.devices = devices::of_host(Path::new("/dev")).unwrap();
    let spec = parts.build().unwrap();
    assert!(!namespaces_of(&spec).contains_key("cgroup"));
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!((linux.masked_paths(), linux.readonly_paths()), (&None, &None));
    assert_eq!(linux.devices().as_ref().unwrap().len(), parts.devices.len());
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert!(rules.len() == 1 && rules[0].allow());
    let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), parts.node.capabilities.len());
}

#[test]
fn the_hosts_namespaces_are_not_in_the_spec() {
    let pod = Parts::new().namespaces;
    for (namespaces, lacks) in [
        (SpecNamespaces { network: None, uts: None, ..pod.clone() }, &["net", "uts"][..]),
        (SpecNamespaces { ipc: None, ..pod.clone() }, &["ipc"]),
        (SpecNamespaces { pid: PidNamespace::Host, ..pod.clone() }, &["pid"]),
    ] {
        let mut parts = Parts::new();
        let mut expected = namespaces_of(&parts.build().unwrap());
        lacks.iter().for_each(|typ| drop(expected.remove(*typ)));
        parts.namespaces = namespaces;
        let spec = parts.build().unwrap();
        assert_eq!(namespaces_of(&spec), expected, "{lacks:?}");
        assert_eq!(*spec.hostname(), None);
    }
}

#[test]
fn a_shared_pid_namespace_is_joined() {
    let mut parts = Parts::new();
    parts.namespaces.pid = PidNamespace::Join("/run/cria/pid".into());
    let namespaces = namespaces_of(&parts.build().unwrap());
    assert_eq!(namespaces["pid"].as_deref(), Some(Path::new("/run/cria/pid")));
}

#[test]
fn there_is_no_cgroup_namespace_on_cgroup_v1() {
    let mut parts = Parts::new();
    parts.node.cgroups.version = CgroupVersion::V1;
    assert!(!namespaces_of(&parts.build().unwrap()).contains_key("cgroup"));
}

#[test]
fn a_user_of_the_image_is_the_process_user() {
    let mut parts = Parts::new();
    parts.user = User {
        uid: 1000,
        gid: 2000,
        additional_gids: vec![2000, 10],
        home: "/srv/app".into(),
        username: Some("app".into()),
    };
    let spec = parts.build().unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 2000));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[2000, 10][..]));
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/srv/app".to_owned()));
}

#[test]
fn identifying_annotations_are_added_and_cannot_be_forged() {
    let mut parts = Parts::new();
    parts.config.annotations = BTreeMap::from([
        ("io.kubernetes.container.hash".into(), "h".into()),
        ("io.kubernetes.cri.sandbox-id".into(), "forged".into()),
        ("org.systemd.property.KillSignal".into(), "int32 9".into()),
    ]);
    parts.scope = BTreeMap::from([("org.systemd.property.KillSignal".into(), "int32 3".into())]);
    let annotations = parts.build().unwrap().annotations().clone().unwrap();
    for (key, value) in [
        ("io.kubernetes.container.hash", "h"),
        ("io.kubernetes.cri.sandbox-id", parts.sandbox_id.as_str()),
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.container-name", "main"),
        ("io.kubernetes.cri.sandbox-name", "pod"),
        ("io.kubernetes.cri.sandbox-namespace", "default"),
        ("io.kubernetes.cri.sandbox-uid", "u1"),
        ("org.systemd.property.KillSignal", "int32 3"),
    ] {
        assert_eq!(annotations.get(key).map(String::as_str), Some(value), "{key}");
    }
}

#[test]
fn what_is_not_served_is_refused() {
    let user = |mode| Some(UserNamespace { mode, ..Default::default() });
    let mut cdi = Parts::new();
    cdi.config.cdi_devices = vec!["vendor.com/gpu=0".into()];
    let mut own_user = Parts::new();
    own_user.config.security.namespaces.user = user(NamespaceMode::Pod);
    for parts in [cdi, own_user] {
        assert!(matches!(parts.build(), Err(SpecError::NotOnThisNode { .. })));
    }
    let mut host_user = Parts::new();
    host_user.config.security.namespaces.user = user(NamespaceMode::Node);
    assert!(host_user.build().is_ok());
}
