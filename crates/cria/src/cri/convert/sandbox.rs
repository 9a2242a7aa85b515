//! What is asked of a pod sandbox.

use cria_proto as proto;

use super::namespaces::namespace_options;
use super::security::{groups_policy, profile, selinux};
use super::{known, list, resources};
use crate::error::Error;
use crate::sandbox::config::{Dns, PortMapping, Protocol, SandboxConfig, SandboxSecurity};

pub(in crate::cri) fn sandbox_config(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_cannot_be_named_is_refused_with_its_field() {
        let sandbox = |config| sandbox_config(config, String::new()).unwrap_err().to_string();
        assert_eq!(sandbox(None), "invalid config: it is missing");
        let config = proto::PodSandboxConfig::default();
        assert_eq!(sandbox(Some(config)), "invalid metadata: it is missing");
    }
}
