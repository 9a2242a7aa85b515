//! Namespaces and the mappings of ids, as they are asked for and told.

use cria_proto as proto;

use super::known;
use crate::container::config::IdMapping;
use crate::error::Error;
use crate::sandbox::config::{NamespaceMode, NamespaceOptions, UserNamespace};

pub(super) fn namespace_options(
    options: Option<proto::NamespaceOption>,
) -> Result<NamespaceOptions, Error> {
    let options = options.unwrap_or_default();
    let user = options.userns_options.map(|user| {
        Ok::<_, Error>(UserNamespace {
            mode: namespace_mode("userns_options.mode", user.mode)?,
            uids: user.uids.into_iter().map(id_mapping).collect(),
            gids: user.gids.into_iter().map(id_mapping).collect(),
        })
    });
    Ok(NamespaceOptions {
        network: pods_or_nodes("namespace_options.network", options.network)?,
        pid: namespace_mode("namespace_options.pid", options.pid)?,
        ipc: pods_or_nodes("namespace_options.ipc", options.ipc)?,
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

/// For kinds of namespaces that no container has to itself (the CRI says of these two that the
/// kubelet sends no other modes).
fn pods_or_nodes(field: &'static str, mode: i32) -> Result<NamespaceMode, Error> {
    match namespace_mode(field, mode)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(Error::invalid(field, "only POD and NODE can be had"))
        }
    }
}

/// The namespaces as they were asked for, field by field.
pub(in crate::cri) fn namespaces_asked(options: &NamespaceOptions) -> proto::NamespaceOption {
    let mode = |mode: NamespaceMode| {
        use proto::NamespaceMode as Theirs;
        i32::from(match mode {
            NamespaceMode::Pod => Theirs::Pod,
            NamespaceMode::Container => Theirs::Container,
            NamespaceMode::Node => Theirs::Node,
            NamespaceMode::Target => Theirs::Target,
        })
    };
    proto::NamespaceOption {
        network: mode(options.network),
        pid: mode(options.pid),
        ipc: mode(options.ipc),
        target_id: options.target_id.clone(),
        userns_options: options.user.as_ref().map(|user| proto::UserNamespace {
            mode: mode(user.mode),
            uids: user.uids.iter().map(id_mapping_asked).collect(),
            gids: user.gids.iter().map(id_mapping_asked).collect(),
        }),
    }
}

pub(super) fn id_mapping(mapping: proto::IdMapping) -> IdMapping {
    IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    }
}

pub(super) fn id_mapping_asked(mapping: &IdMapping) -> proto::IdMapping {
    proto::IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_as_they_were_asked_for() {
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
    }

    #[test]
    fn only_processes_can_be_kept_apart_within_a_pod() {
        use proto::NamespaceMode::{Container, Node, Pod, Target};
        for mode in [Pod, Container, Node, Target] {
            let shared = matches!(mode, Pod | Node);
            let mode = i32::from(mode);
            let asked = proto::NamespaceOption::default();
            for (options, accepted) in [
                (proto::NamespaceOption { network: mode, ..asked.clone() }, shared),
                (proto::NamespaceOption { ipc: mode, ..asked.clone() }, shared),
                (proto::NamespaceOption { pid: mode, ..asked.clone() }, true),
            ] {
                assert_eq!(
                    namespace_options(Some(options.clone())).is_ok(),
                    accepted,
                    "{options:?}"
                );
            }
        }
    }
}
