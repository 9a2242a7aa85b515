//! What is asked of a container.

use std::path::{Component, Path};

use cria_proto as proto;

use super::mounts::{image_request, mount};
use super::namespaces::namespace_options;
use super::security::{groups_policy, profile, selinux};
use super::{known, list, resources, signal_number};
use crate::container::config::{ContainerConfig, Device, SecurityContext};
use crate::error::Error;

pub(in crate::cri) fn container_config(
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

fn device(device: proto::Device) -> Device {
    Device {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Option<proto::ContainerMetadata> {
        Some(proto::ContainerMetadata { name: "web".to_owned(), attempt: 3 })
    }

    #[test]
    fn a_container_without_an_image_is_refused_with_its_field() {
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
}
