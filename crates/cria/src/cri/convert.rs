//! CRI messages to domain types and back. Pure; what it refuses is the client's mistake.

use std::path::{Component, Path};

use cria_proto as proto;

use crate::container::config::{
    ContainerConfig, Device, IdMapping, ImageRequest, Mount, Propagation, Resources,
    SeccompProfile, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy,
};
use crate::error::Error;
use crate::sandbox::config::{
    Dns, NamespaceMode, NamespaceOptions, PortMapping, Protocol, SandboxConfig, SandboxSecurity,
    UserNamespace,
};
use crate::signal;

pub(super) fn sandbox_config(
    config: Option<proto::PodSandboxConfig>,
    runtime_handler: String,
) -> Result<SandboxConfig, Error> {
    let config = config.ok_or_else(|| Error::invalid("config", "it is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("metadata", "it is missing"))?;
    // The kubelet finds its pods by the uid, and crictl makes one up where its user gave none.
    let proto::PodSandboxMetadata { name, namespace, uid, .. } = &metadata;
    for (field, value) in [("name", name), ("namespace", namespace), ("uid", uid)] {
        if value.is_empty() {
            return Err(Error::invalid(format!("metadata.{field}"), "it is empty"));
        }
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return Err(Error::invalid("log_directory", "it is no absolute path"));
    }
    let linux = config.linux.unwrap_or_default();
    Ok(SandboxConfig {
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        attempt: metadata.attempt,
        hostname: config.hostname,
        log_directory: config.log_directory,
        dns: config.dns_config.map(|dns| Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        port_mappings: list(config.port_mappings, port_mapping)?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls,
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
        security: sandbox_security(linux.security_context.unwrap_or_default())?,
        runtime_handler,
    })
}

fn port_mapping(mapping: proto::PortMapping) -> Result<PortMapping, Error> {
    use proto::Protocol as Theirs;
    let protocol = match known::<Theirs>("port_mappings.protocol", mapping.protocol)? {
        Theirs::Tcp => Protocol::Tcp,
        Theirs::Udp => Protocol::Udp,
        Theirs::Sctp => Protocol::Sctp,
    };
    Ok(PortMapping {
        protocol,
        container_port: mapping.container_port,
        host_port: mapping.host_port,
        host_ip: mapping.host_ip,
    })
}

fn sandbox_security(context: proto::LinuxSandboxSecurityContext) -> Result<SandboxSecurity, Error> {
    Ok(SandboxSecurity {
        namespaces: namespace_options(context.namespace_options)?,
        run_as_user: context.run_as_user.map(|user| user.value),
        run_as_group: context.run_as_group.map(|group| group.value),
        supplemental_groups: context.supplemental_groups,
        supplemental_groups_policy: groups_policy(context.supplemental_groups_policy)?,
        readonly_rootfs: context.readonly_rootfs,
        privileged: context.privileged,
        seccomp: profile("seccomp", context.seccomp)?,
        selinux: context.selinux_options.map(selinux),
    })
}

fn namespace_options(options: Option<proto::NamespaceOption>) -> Result<NamespaceOptions, Error> {
    let options = options.unwrap_or_default();
    let user = options.userns_options.map(|user| {
        Ok::<_, Error>(UserNamespace {
            mode: namespace_mode("userns_options.mode", user.mode)?,
            uids: user.uids.into_iter().map(id_mapping).collect(),
            gids: user.gids.into_iter().map(id_mapping).collect(),
        })
    });
    Ok(NamespaceOptions {
        network: namespace_mode("namespace_options.network", options.network)?,
        pid: namespace_mode("namespace_options.pid", options.pid)?,
        ipc: namespace_mode("namespace_options.ipc", options.ipc)?,
        target_id: options.target_id,
        user: user.transpose()?,
    })
}

fn namespace_mode(field: &'static str, mode: i32) -> Result<NamespaceMode, Error> {
    use proto::NamespaceMode as Theirs;
    Ok(match known::<Theirs>(field, mode)? {
        Theirs::Pod => NamespaceMode::Pod,
        Theirs::Container => NamespaceMode::Container,
        Theirs::Node => NamespaceMode::Node,
        Theirs::Target => NamespaceMode::Target,
    })
}

/// The namespaces as they were asked for, field by field.
pub(super) fn namespaces_asked(options: &NamespaceOptions) -> proto::NamespaceOption {
    let mode = |mode: NamespaceMode| {
        use proto::NamespaceMode as Theirs;
        i32::from(match mode {
            NamespaceMode::Pod => Theirs::Pod,
            NamespaceMode::Container => Theirs::Container,
            NamespaceMode::Node => Theirs::Node,
            NamespaceMode::Target => Theirs::Target,
        })
    };
    let theirs = |mapping: &IdMapping| proto::IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    };
    proto::NamespaceOption {
        network: mode(options.network),
        pid: mode(options.pid),
        ipc: mode(options.ipc),
        target_id: options.target_id.clone(),
        userns_options: options.user.as_ref().map(|user| proto::UserNamespace {
            mode: mode(user.mode),
            uids: user.uids.iter().map(theirs).collect(),
            gids: user.gids.iter().map(theirs).collect(),
        }),
    }
}

pub(super) fn container_config(
    config: Option<proto::ContainerConfig>,
) -> Result<ContainerConfig, Error> {
    let config = config.ok_or_else(|| Error::invalid("config", "it is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("metadata", "it is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("metadata.name", "it is empty"));
    }
    let image = config.image.ok_or_else(|| Error::invalid("image", "it is missing"))?;
    if !stays_beneath(&config.log_path) {
        return Err(Error::invalid("log_path", "it leads out of the pod's log directory"));
    }
    let linux = config.linux.unwrap_or_default();
    let stop_signal = known::<proto::Signal>("stop_signal", config.stop_signal)?;
    Ok(ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image_request(image),
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: list(config.envs, env)?,
        mounts: list(config.mounts, mount)?,
        devices: config.devices.into_iter().map(device).collect(),
        cdi_devices: config.cdi_devices.into_iter().map(|device| device.name).collect(),
        labels: config.labels,
        annotations: config.annotations,
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: signal_number(stop_signal),
        resources: linux.resources.map(resources).unwrap_or_default(),
        security: security_context(linux.security_context.unwrap_or_default())?,
    })
}

/// Whether a path that is to be relative cannot leave the directory it is relative to.
fn stays_beneath(path: &str) -> bool {
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    Path::new(path).components().all(inside)
}

/// The OCI runtime reads its specification as JSON, which cannot hold other bytes: better to say so
/// than to hand the container something else.
fn env(env: proto::KeyValue) -> Result<(String, String), Error> {
    let value = String::from_utf8(env.value).map_err(|_| {
        Error::invalid(format!("envs[{:?}]", env.key), "the OCI runtime takes UTF-8 values only")
    })?;
    Ok((env.key, value))
}

pub(super) fn image_request(image: proto::ImageSpec) -> ImageRequest {
    ImageRequest {
        image: image.image,
        user_specified_image: image.user_specified_image,
        runtime_handler: image.runtime_handler,
        annotations: image.annotations,
        image_ref: image.image_ref,
    }
}

fn mount(mount: proto::Mount) -> Result<Mount, Error> {
    use proto::MountPropagation as Theirs;
    let propagation = match known::<Theirs>("mounts.propagation", mount.propagation)? {
        Theirs::PropagationPrivate => Propagation::Private,
        Theirs::PropagationHostToContainer => Propagation::HostToContainer,
        Theirs::PropagationBidirectional => Propagation::Bidirectional,
    };
    Ok(Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings: mount.uid_mappings.into_iter().map(id_mapping).collect(),
        gid_mappings: mount.gid_mappings.into_iter().map(id_mapping).collect(),
        image: mount.image.map(image_request),
        image_sub_path: mount.image_sub_path,
        mount_options: mount.mount_options,
    })
}

pub(super) fn mount_asked(mount: &Mount) -> proto::Mount {
    use proto::MountPropagation as Theirs;
    let theirs = |mapping: &IdMapping| proto::IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    };
    proto::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => Theirs::PropagationPrivate.into(),
            Propagation::HostToContainer => Theirs::PropagationHostToContainer.into(),
            Propagation::Bidirectional => Theirs::PropagationBidirectional.into(),
        },
        uid_mappings: mount.uid_mappings.iter().map(theirs).collect(),
        gid_mappings: mount.gid_mappings.iter().map(theirs).collect(),
        image: mount.image.as_ref().map(image_asked),
        image_sub_path: mount.image_sub_path.clone(),
        mount_options: mount.mount_options.clone(),
    }
}

fn image_asked(image: &ImageRequest) -> proto::ImageSpec {
    proto::ImageSpec {
        image: image.image.clone(),
        annotations: image.annotations.clone(),
        user_specified_image: image.user_specified_image.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: image.image_ref.clone(),
    }
}

fn id_mapping(mapping: proto::IdMapping) -> IdMapping {
    IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    }
}

fn device(device: proto::Device) -> Device {
    Device {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    }
}

pub(super) fn resources(resources: proto::LinuxContainerResources) -> Resources {
    let pages = resources.hugepage_limits.into_iter();
    Resources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_bytes: resources.memory_limit_in_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepage_limits: pages.map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: resources.unified,
    }
}

pub(super) fn resources_held(resources: &Resources) -> proto::LinuxContainerResources {
    let pages = resources.hugepage_limits.iter().cloned();
    proto::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: pages
            .map(|(page_size, limit)| proto::HugepageLimit { page_size, limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

fn security_context(
    context: proto::LinuxContainerSecurityContext,
) -> Result<SecurityContext, Error> {
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        privileged: context.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        add_ambient_capabilities: capabilities.add_ambient_capabilities,
        namespaces: namespace_options(context.namespace_options)?,
        run_as_user: context.run_as_user.map(|user| user.value),
        run_as_group: context.run_as_group.map(|group| group.value),
        run_as_username: context.run_as_username,
        supplemental_groups: context.supplemental_groups,
        supplemental_groups_policy: groups_policy(context.supplemental_groups_policy)?,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: context.masked_paths,
        readonly_paths: context.readonly_paths,
        seccomp: profile("seccomp", context.seccomp)?,
        selinux: context.selinux_options.map(selinux),
        apparmor: context
            .apparmor
            .map(|apparmor| profile("apparmor", Some(apparmor)))
            .transpose()?,
    })
}

/// The CRI's name for a signal's number; those it has no name for read as the default.
pub(super) fn signal(number: i32) -> proto::Signal {
    let same = |theirs: &proto::Signal| signal_number(*theirs) == Some(number);
    let all = (0..).map_while(|value| proto::Signal::try_from(value).ok());
    all.skip(1).find(same).unwrap_or(proto::Signal::RuntimeDefault)
}

/// The kernel's number of a signal that was asked for; none: the image's own.
pub(super) fn signal_number(signal: proto::Signal) -> Option<i32> {
    // `SIGNAL_SIGRTMINPLUS3` is `RTMIN+3` everywhere else.
    let name = signal.as_str_name().trim_start_matches("SIGNAL_SIG");
    signal::number(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

fn groups_policy(policy: i32) -> Result<SupplementalGroupsPolicy, Error> {
    use proto::SupplementalGroupsPolicy as Theirs;
    Ok(match known::<Theirs>("supplemental_groups_policy", policy)? {
        Theirs::Merge => SupplementalGroupsPolicy::Merge,
        Theirs::Strict => SupplementalGroupsPolicy::Strict,
    })
}

fn profile(
    field: &'static str,
    profile: Option<proto::SecurityProfile>,
) -> Result<SeccompProfile, Error> {
    use proto::security_profile::ProfileType;
    let Some(profile) = profile else { return Ok(SeccompProfile::Unconfined) };
    Ok(match known::<ProfileType>(field, profile.profile_type)? {
        ProfileType::RuntimeDefault => SeccompProfile::RuntimeDefault,
        ProfileType::Unconfined => SeccompProfile::Unconfined,
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            return Err(Error::invalid(field, "a Localhost profile needs a localhost_ref"));
        }
        ProfileType::Localhost => SeccompProfile::Localhost(profile.localhost_ref),
    })
}

fn selinux(options: proto::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions {
        user: options.user,
        role: options.role,
        kind: options.r#type,
        level: options.level,
    }
}

/// A value of an enum that this release knows.
fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, Error> {
    E::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is unknown")))
}

fn list<A, B>(items: Vec<A>, convert: impl Fn(A) -> Result<B, Error>) -> Result<Vec<B>, Error> {
    items.into_iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Option<proto::ContainerMetadata> {
        Some(proto::ContainerMetadata { name: "web".to_owned(), attempt: 3 })
    }

    #[test]
    fn what_cannot_be_named_is_refused_with_its_field() {
        let sandbox = |config| sandbox_config(config, String::new()).unwrap_err().to_string();
        assert_eq!(sandbox(None), "invalid config: it is missing");
        let config = proto::PodSandboxConfig::default();
        assert_eq!(sandbox(Some(config)), "invalid metadata: it is missing");

        let config = proto::ContainerConfig { metadata: metadata(), ..Default::default() };
        let error = container_config(Some(config)).unwrap_err().to_string();
        assert_eq!(error, "invalid image: it is missing");
    }

    #[test]
    fn a_log_path_stays_in_the_pods_log_directory() {
        for (path, stays) in [
            ("", true),
            ("0.log", true),
            ("web/0.log", true),
            ("./0.log", true),
            ("../0.log", false),
            ("web/../../0.log", false),
            ("/var/log/0.log", false),
        ] {
            assert_eq!(stays_beneath(path), stays, "{path}");
        }
    }

    #[test]
    fn an_enum_value_from_a_later_release_is_refused() {
        let mut config = proto::ContainerConfig {
            metadata: metadata(),
            image: Some(proto::ImageSpec::default()),
            ..Default::default()
        };
        config.mounts = vec![proto::Mount { propagation: 9, ..Default::default() }];
        let error = container_config(Some(config)).unwrap_err().to_string();
        assert_eq!(error, "invalid mounts.propagation: 9 is unknown");
    }

    #[test]
    fn an_environment_that_json_cannot_hold_is_refused_by_name() {
        let variable = proto::KeyValue { key: "RAW".to_owned(), value: vec![0xff] };
        let error = env(variable).unwrap_err().to_string();
        assert!(error.starts_with("invalid envs[\"RAW\"]: "), "{error}");
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = proto::Signal::try_from(value).unwrap();
            let number = signal_number(signal).unwrap_or_else(|| panic!("{signal:?}"));
            assert_eq!(signal_number(super::signal(number)), Some(number), "{signal:?}");
        }
        assert_eq!(signal_number(proto::Signal::RuntimeDefault), None);
    }

    #[test]
    fn what_is_reported_back_is_what_was_asked() {
        let asked = proto::NamespaceOption {
            network: proto::NamespaceMode::Node.into(),
            pid: proto::NamespaceMode::Target.into(),
            ipc: proto::NamespaceMode::Pod.into(),
            target_id: "abc".to_owned(),
            userns_options: Some(proto::UserNamespace {
                mode: proto::NamespaceMode::Node.into(),
                ..Default::default()
            }),
        };
        let options = namespace_options(Some(asked.clone())).unwrap();
        assert_eq!(namespaces_asked(&options), asked);

        let asked = proto::LinuxContainerResources {
            cpu_period: 100_000,
            memory_limit_in_bytes: -1,
            hugepage_limits: vec![proto::HugepageLimit { page_size: "2MB".into(), limit: 7 }],
            ..Default::default()
        };
        assert_eq!(resources_held(&resources(asked.clone())), asked);

        let asked = proto::Mount {
            container_path: "/a".to_owned(),
            propagation: proto::MountPropagation::PropagationBidirectional.into(),
            image: Some(proto::ImageSpec { image: "x".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(mount_asked(&mount(asked.clone()).unwrap()), asked);
    }
}
