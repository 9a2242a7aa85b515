//! Mounts and the images that they or containers are made of, as they are asked for and told.

use cria_proto as proto;

use super::known;
use super::namespaces::{id_mapping, id_mapping_asked};
use crate::container::config::{ImageRequest, Mount, Propagation};
use crate::error::Error;

pub(super) fn image_request(image: proto::ImageSpec) -> ImageRequest {
    ImageRequest {
        image: image.image,
        user_specified_image: image.user_specified_image,
        runtime_handler: image.runtime_handler,
        annotations: image.annotations,
        image_ref: image.image_ref,
    }
}

pub(super) fn mount(mount: proto::Mount) -> Result<Mount, Error> {
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

pub(in crate::cri) fn mount_asked(mount: &Mount) -> proto::Mount {
    use proto::MountPropagation as Theirs;
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
        uid_mappings: mount.uid_mappings.iter().map(id_mapping_asked).collect(),
        gid_mappings: mount.gid_mappings.iter().map(id_mapping_asked).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_as_it_was_asked_for() {
        let asked = proto::Mount {
            container_path: "/a".to_owned(),
            propagation: proto::MountPropagation::PropagationBidirectional.into(),
            image: Some(proto::ImageSpec { image: "x".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(mount_asked(&mount(asked.clone()).unwrap()), asked);
    }
}
