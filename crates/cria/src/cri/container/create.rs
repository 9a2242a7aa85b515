//! CreateContainer.

use std::sync::Arc;

use cria_proto::{CreateContainerRequest, CreateContainerResponse};

use super::super::span::record;
use super::super::{convert, sandbox};
use crate::container::config::{ContainerConfig, ImageRequest, Mount};
use crate::container::spec::SpecError;
use crate::container::state::State as ContainerState;
use crate::container::{self, Container, Creation, ImageVolume, PidNamespaceFile};
use crate::daemon::Daemon;
use crate::error::{Error, chain};
use crate::node::Node;
use crate::registry::ContainerKey;
use crate::sandbox::config::NamespaceMode;
use crate::sandbox::{Sandbox, namespaces};

/// A repeated request attaches to the first one; after it, the same container is answered as long
/// as it has not ended.
pub(in crate::cri) async fn create_container(
    daemon: &Daemon,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Error> {
    let sandbox = sandbox::find(daemon, &request.pod_sandbox_id)?;
    let config = Arc::new(convert::container_config(request.config)?);
    let key = ContainerKey {
        sandbox: sandbox.id.clone(),
        name: config.name.clone(),
        attempt: config.attempt,
    };
    let target = target(daemon, &config)?;
    let maker = daemon.clone();
    let create = || async move { create(&maker, sandbox, config, target).await };
    let container = daemon.containers.get_or_create(key, create).await?;
    record("container", &container.id);
    Ok(CreateContainerResponse { container_id: container.id.to_string() })
}

async fn create(
    daemon: &Daemon,
    sandbox: Arc<Sandbox>,
    config: Arc<ContainerConfig>,
    target: Option<Arc<Container>>,
) -> Result<Arc<Container>, Error> {
    let node = &daemon.node;
    sandbox.check_ready()?;
    let asked = &config.image.image;
    let missing = || Error::NotFound { kind: "image", id: asked.clone() };
    let image = node.images.find_intact(asked).await?.ok_or_else(missing)?;
    // Whoever pulled it, and whatever held then: this namespace's policy decides, as it is now.
    node.images.check_use(&image, config.image.written(), &sandbox.config.namespace)?;
    let creation = Creation {
        sandbox: Arc::clone(&sandbox),
        pid_namespace: pid_namespace(node, &sandbox, &config, target.as_deref())?,
        image_config: image.config.clone().ok_or_else(|| artifact(asked))?,
        lease: Arc::new(node.images.lease(&image.id)?),
        image_volumes: image_volumes(node, &config, &sandbox.config.namespace).await?,
        image,
        config,
    };
    let container = container::create(Arc::clone(node), creation).await?;
    daemon.containers.insert(Arc::clone(&container));
    // A sandbox that is stopped from here on sees this container; of one that was before, it is told
    // here. What cannot be removed stays listed, for the pod's removal to try again.
    if let Err(stopped) = sandbox.check_ready() {
        if let Err(error) = daemon.remove_container(&container).await {
            tracing::warn!(container = %container.id, error = chain(&error), "cannot undo a creation");
        }
        return Err(stopped);
    }
    Ok(container)
}

/// It has neither a root file system nor a command; as a volume it is served.
fn artifact(image: &str) -> Error {
    Error::from(SpecError::image(format!("{image} is an artifact, which no container can run")))
}

/// The images that are to be volumes: the kubelet has pulled them before.
async fn image_volumes(
    node: &Node,
    config: &ContainerConfig,
    namespace: &str,
) -> Result<Vec<ImageVolume>, Error> {
    let mut volumes = Vec::new();
    for mount in &config.mounts {
        let Some(asked) = &mount.image else { continue };
        let volume = find_volume(node, mount, asked, namespace).await;
        volumes.push(volume.map_err(|error| Error::image_volume(&asked.image, error))?);
    }
    Ok(volumes)
}

async fn find_volume(
    node: &Node,
    mount: &Mount,
    asked: &ImageRequest,
    namespace: &str,
) -> Result<ImageVolume, Error> {
    let name = &asked.image;
    let missing = || Error::NotFound { kind: "image", id: name.clone() };
    let image = node.images.find_intact(name).await?.ok_or_else(missing)?;
    node.images.check_use(&image, asked.written(), namespace)?;
    Ok(ImageVolume {
        name: name.clone(),
        container_path: mount.container_path.clone(),
        sub_path: mount.image_sub_path.clone(),
        reference: asked.reference_among(&image.digests),
        lease: Arc::new(node.images.lease(&image.id)?),
    })
}

/// The container whose PID namespace is to be joined: of the same pod, and running.
fn target(daemon: &Daemon, config: &ContainerConfig) -> Result<Option<Arc<Container>>, Error> {
    let namespaces = &config.security.namespaces;
    if namespaces.pid != NamespaceMode::Target {
        return Ok(None);
    }
    super::find(daemon, &namespaces.target_id).map(Some)
}

fn pid_namespace(
    node: &Node,
    sandbox: &Sandbox,
    config: &ContainerConfig,
    target: Option<&Container>,
) -> Result<Option<PidNamespaceFile>, Error> {
    match (config.security.namespaces.pid, target) {
        (NamespaceMode::Target, Some(target)) => {
            if target.sandbox != sandbox.id {
                return Err(Error::invalid("target_id", "the container is of another pod"));
            }
            if !matches!(target.state(), ContainerState::Running { .. }) {
                return Err(Error::invalid("target_id", "the container does not run"));
            }
            target.pid_namespace().map(Some)
        }
        (NamespaceMode::Pod, _) => {
            let pin = namespaces::pid_pin(&node.paths, &sandbox.id);
            Ok(Some(PidNamespaceFile::Pinned(pin)))
        }
        (NamespaceMode::Container | NamespaceMode::Node | NamespaceMode::Target, _) => Ok(None),
    }
}
