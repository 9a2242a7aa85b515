//! The image service.

use std::collections::BTreeMap;
use std::path::Path;

use cria_images::{AuthFields, Credentials, Image as Held, PullRequest, User};
use cria_proto::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoRequest,
    ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use tokio::task::spawn_blocking;

use super::span::record;
use super::{Items, stream_list};
use crate::clock;
use crate::daemon::Daemon;
use crate::error::Error;

/// Asks the registry with this caller's credentials, and the policy of the pod's namespace, whatever
/// is held already; see `cria_images`.
pub(super) async fn pull_image(
    daemon: &Daemon,
    request: PullImageRequest,
) -> Result<PullImageResponse, Error> {
    let handler = request.image.as_ref().map(|image| image.runtime_handler.clone());
    let reference = name(request.image)?;
    record("image", &reference);
    // All handlers share the images, but one that does not exist is a mistake.
    if let Some(handler) = handler.filter(|handler| !daemon.node.serves_handler(handler)) {
        return Err(Error::invalid("runtime_handler", format!("there is none called {handler:?}")));
    }
    let auth = request.auth.unwrap_or_default();
    let credentials = Credentials::from_fields(fields(&auth))?;
    let pod = request.sandbox_config.and_then(|config| config.metadata);
    let namespace = pod.map(|metadata| metadata.namespace).unwrap_or_default();
    let pull = PullRequest { reference: &reference, credentials, namespace: &namespace };
    let image = daemon.node.images.pull(pull).await?;
    Ok(PullImageResponse { image_ref: image.id.to_string() })
}

fn fields(auth: &AuthConfig) -> AuthFields<'_> {
    AuthFields {
        username: &auth.username,
        password: &auth.password,
        auth: &auth.auth,
        identity_token: &auth.identity_token,
        registry_token: &auth.registry_token,
    }
}

pub(super) async fn list_images(
    daemon: &Daemon,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, Error> {
    Ok(ListImagesResponse { images: list(daemon, request.filter)? })
}

pub(super) async fn stream_images(
    daemon: &Daemon,
    request: StreamImagesRequest,
) -> Result<Items<StreamImagesResponse>, Error> {
    let images = list(daemon, request.filter)?;
    Ok(stream_list(images, |images| StreamImagesResponse { images }))
}

fn list(daemon: &Daemon, filter: Option<ImageFilter>) -> Result<Vec<Image>, Error> {
    let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    if wanted.is_empty() {
        return Ok(daemon.node.images.list().iter().map(|held| item(held)).collect());
    }
    let found = daemon.node.images.find(&wanted)?;
    Ok(found.iter().map(|held| item(held)).collect())
}

/// An unknown image is an empty answer, as the CRI demands.
pub(super) async fn image_status(
    daemon: &Daemon,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, Error> {
    let Some(held) = daemon.node.images.find_intact(&name(request.image)?).await? else {
        return Ok(ImageStatusResponse::default());
    };
    let info = match request.verbose {
        true => verbose(&held)?,
        false => BTreeMap::new(),
    };
    Ok(ImageStatusResponse { image: Some(item(&held)), info })
}

/// The image goes with all its names. What a container uses stays: the kubelet takes a removal for
/// bytes that are free. (One that is being made is not seen here; its lease keeps the layers.)
pub(super) async fn remove_image(
    daemon: &Daemon,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Error> {
    let name = name(request.image)?;
    record("image", &name);
    let images = daemon.node.images.clone();
    if let Some(held) = images.find(&name)?
        && let Some(container) = user_of(daemon, &held.id.to_string())
    {
        return Err(Error::ImageInUse { image: name, container });
    }
    spawn_blocking(move || images.remove(&name))
        .await
        .map_err(|panic| Error::internal("remove an image", panic))??;
    Ok(RemoveImageResponse {})
}

/// A container that runs from the image or has it as a volume, if there is one. Those that have
/// ended count: the kubelet still lists them, whatever became of them.
fn user_of(daemon: &Daemon, image: &str) -> Option<String> {
    let containers = daemon.containers.all();
    let user = containers.iter().find(|container| container.record.get().uses_image(image))?;
    Some(user.id.to_string())
}

/// The mount points are directories of cria's: the kubelet looks the paths up later.
pub(super) async fn image_fs_info(
    daemon: &Daemon,
    _request: ImageFsInfoRequest,
) -> Result<ImageFsInfoResponse, Error> {
    let images = daemon.node.images.usage();
    let containers = daemon.containers.all();
    let (bytes, inodes) = containers
        .iter()
        .filter_map(|container| container.stats.disk())
        .fold((0, 0), |(bytes, inodes), measured| {
            (bytes + measured.usage.bytes, inodes + measured.usage.inodes)
        });
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![usage(&daemon.node.images_mountpoint, images.bytes, images.inodes)],
        container_filesystems: vec![usage(&daemon.node.paths.root, bytes, inodes)],
    })
}

fn usage(mountpoint: &Path, bytes: u64, inodes: u64) -> FilesystemUsage {
    let mountpoint = mountpoint.display().to_string();
    FilesystemUsage {
        timestamp: clock::now_ns(),
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    }
}

fn name(image: Option<ImageSpec>) -> Result<String, Error> {
    match image.unwrap_or_default().image {
        name if name.is_empty() => Err(Error::invalid("image", "it is missing")),
        name => Ok(name),
    }
}

fn item(held: &Held) -> Image {
    let (uid, username) = match held.user() {
        Some(User::Id(uid)) => (Some(Int64Value { value: uid }), String::new()),
        Some(User::Name(name)) => (None, name),
        // Root, though the image does not say so: the kubelet checks runAsNonRoot by it.
        None => (Some(Int64Value { value: 0 }), String::new()),
    };
    Image {
        id: held.id.to_string(),
        repo_tags: held.tags.clone(),
        repo_digests: held.digests.clone(),
        size: held.size_bytes,
        uid,
        username,
        spec: Some(ImageSpec { image: held.id.to_string(), ..Default::default() }),
        pinned: held.pinned,
    }
}

/// The image's config, for people (`crictl inspecti`).
fn verbose(held: &Held) -> Result<BTreeMap<String, String>, Error> {
    let info = serde_json::json!({ "imageSpec": held.config, "layers": held.layers });
    let text = serde_json::to_string(&info)
        .map_err(|error| Error::internal(format!("describe image {}", held.id), error))?;
    Ok(BTreeMap::from([("info".to_owned(), text)]))
}
