//! The blobs that manifests name, and what becomes of them. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::Platform;

/// Layer media types that are archives kept by the registry. The compression is told by the bytes
/// themselves: media types lie about it, digests do not.
pub(crate) const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A blob by digest and size.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) urls: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// A layer of an image: the blob to fetch, and what it must be when unpacked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerBlob {
    /// What it is kept under. Of an artifact's layer, another digest (see `artifact`).
    pub(crate) diff_id: Digest,
    pub(crate) blob: Descriptor,
    pub(crate) content: Content,
}

/// What a blob holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// An archive with the diff id that a config lists.
    ListedArchive,
    /// An archive of which only the blob's digest is known.
    UnlistedArchive,
    /// This one file.
    File(PathBuf),
}

/// Why a manifest or config cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("malformed")]
    Malformed(#[from] serde_json::Error),
    #[error("{0}")]
    Inconsistent(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0} distinct layers")]
    TooManyLayers(usize),
}

/// Whether a blob of this type is a layer's archive.
pub(crate) fn is_archive(media_type: &str) -> bool {
    LAYERS.contains(&media_type)
}
