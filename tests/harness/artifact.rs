//! OCI artifacts made from nothing, as `oras push` makes them: the empty configuration, and files.

use serde_json::{Value, json};

use crate::image::Packed;
use crate::layer::digest;

/// An artifact under construction.
#[derive(Clone, Default)]
pub struct Artifact {
    files: Vec<(Option<String>, Vec<u8>)>,
}

impl Artifact {
    pub fn new() -> Self {
        Self::default()
    }

    /// A file by its title, which may have directories.
    #[must_use]
    pub fn file(mut self, title: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.push((Some(title.to_owned()), content.as_ref().to_vec()));
        self
    }

    /// A file that nobody named.
    #[must_use]
    pub fn unnamed(mut self, content: impl AsRef<[u8]>) -> Self {
        self.files.push((None, content.as_ref().to_vec()));
        self
    }

    pub fn pack(&self) -> Packed {
        let config = b"{}".to_vec();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.model",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": digest(&config),
                "size": config.len(),
            },
            "layers": self.files.iter().map(descriptor).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let blobs = self.files.iter().map(|(_, content)| content.clone()).chain([config]);
        Packed {
            blobs: blobs.collect(),
            media_type: MANIFEST.to_owned(),
            id: digest(&manifest),
            manifest,
            layers: vec![],
        }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn descriptor((title, content): &(Option<String>, Vec<u8>)) -> Value {
    let mut descriptor = json!({
        "mediaType": "application/octet-stream",
        "digest": digest(content),
        "size": content.len(),
    });
    if let Some(title) = title {
        descriptor["annotations"] = json!({ "org.opencontainers.image.title": title });
    }
    descriptor
}
