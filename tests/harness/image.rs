//! Images made from nothing: OCI or Docker schema 2, alone or in an index.

use serde_json::{Value, json};

use crate::layer::{Compression, Layer, digest};

/// Which media types an image or index is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Format {
    #[default]
    Oci,
    /// Docker image manifest, version 2, schema 2.
    Docker,
}

/// An image under construction.
#[derive(Clone, Default)]
pub struct Image {
    format: Format,
    layers: Vec<Layer>,
    platform: Option<Value>,
    /// The `config` object of the image configuration.
    config: serde_json::Map<String, Value>,
}

/// Images of several platforms under one name.
#[derive(Clone, Default)]
pub struct Index {
    format: Format,
    entries: Vec<(Image, Value)>,
}

/// What a registry stores for an image: blobs, then the manifests that name them.
pub struct Packed {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: String,
    /// The image's id: the digest of its configuration, or of an artifact's manifest.
    pub id: String,
    pub layers: Vec<PackedLayer>,
}

/// A layer as its manifest and configuration name it.
pub struct PackedLayer {
    pub digest: String,
    pub diff_id: String,
    pub size: usize,
}

impl Image {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Packs all layers so far like this.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.layers = self.layers.into_iter().map(|l| l.compression(compression)).collect();
        self
    }

    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    /// Each is `NAME=value`.
    #[must_use]
    pub fn env(self, variables: &[&str]) -> Self {
        self.set("Env", json!(variables))
    }

    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    #[must_use]
    pub fn working_dir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    #[must_use]
    pub fn stop_signal(self, signal: &str) -> Self {
        self.set("StopSignal", json!(signal))
    }

    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        let labels = self.config.entry("Labels").or_insert_with(|| json!({}));
        labels[name] = json!(value);
        self
    }

    #[must_use]
    pub fn volume(mut self, path: &str) -> Self {
        let volumes = self.config.entry("Volumes").or_insert_with(|| json!({}));
        volumes[path] = json!({});
        self
    }

    /// The platform the configuration names; linux on this machine's architecture if not called.
    #[must_use]
    pub fn platform(mut self, architecture: &str, os: &str) -> Self {
        self.platform = Some(json!({ "architecture": architecture, "os": os }));
        self
    }

    pub fn pack(&self) -> Packed {
        let layers: Vec<_> = self.layers.iter().map(Layer::blob).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let mut config = self.platform.clone().unwrap_or_else(this_platform);
        config["created"] = json!("2026-01-01T00:00:00Z");
        config["config"] = json!(self.config);
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = config.to_string().into_bytes();

        let described: Vec<_> = self
            .layers
            .iter()
            .zip(&layers)
            .map(|(layer, blob)| {
                let media_type = self.format.layer(layer.compression_used());
                json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len() })
            })
            .collect();
        let id = digest(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest(),
            "config": { "mediaType": self.format.config(), "digest": id, "size": config.len() },
            "layers": described,
        });

        let named = layers.iter().map(|layer| PackedLayer {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.bytes.len(),
        });
        let named = named.collect();
        let blobs = layers.into_iter().map(|layer| layer.bytes).chain([config]).collect();
        let manifest = manifest.to_string().into_bytes();
        Packed { blobs, manifest, media_type: self.format.manifest().to_owned(), id, layers: named }
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }
}

impl Index {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// `platform` is what the index says of the image: architecture, os, and variant if any.
    #[must_use]
    pub fn entry(mut self, image: Image, platform: Value) -> Self {
        self.entries.push((image, platform));
        self
    }

    /// The images packed, in order, and the index itself: its bytes and its media type.
    pub fn pack(&self) -> (Vec<Packed>, Vec<u8>, String) {
        let images: Vec<_> = self.entries.iter().map(|(image, _)| image.pack()).collect();
        let entries = images.iter().zip(&self.entries).map(|(packed, (_, platform))| {
            json!({
                "mediaType": packed.media_type,
                "digest": digest(&packed.manifest),
                "size": packed.manifest.len(),
                "platform": platform,
            })
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": self.format.index(),
            "manifests": entries.collect::<Vec<_>>(),
        });
        (images, index.to_string().into_bytes(), self.format.index().to_owned())
    }
}

/// Linux on the architecture the tests run on, in the words of image configurations.
pub fn this_platform() -> Value {
    json!({ "architecture": architecture(), "os": "linux" })
}

/// This machine's architecture as Go and the image specifications call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Format {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Self::Docker, Compression::Zstd) => {
                "application/vnd.docker.image.rootfs.diff.tar.zstd"
            }
        }
    }
}
