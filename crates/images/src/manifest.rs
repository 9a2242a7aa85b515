//! Manifests, indexes and image configs as registries serve them: parsed, checked, and made into
//! what a pull needs. Pure.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::{Platform, choose};

/// What is asked for, in the Accept header. Schema 1 is not: a registry that has nothing else
/// says so, or serves it anyway and is refused.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The kernel's limit on the layers of one overlay mount (OVL_MAX_STACK).
pub(crate) const MOST_LAYERS: usize = 500;

/// A config is held in memory; no real one comes near.
const LARGEST_CONFIG_BYTES: u64 = 8 << 20;

/// Config media types that mean a container image.
const CONFIGS: &[&str] = &[
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    // Early buildkit and some registries.
    "application/octet-stream",
    "",
];

/// Layer media types that are archives kept by the registry. The compression is told by the bytes
/// themselves: media types lie about it, digests do not.
const LAYERS: &[&str] = &[
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
    platform: Option<Platform>,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// What a registry answers when asked for a manifest.
#[derive(Debug, PartialEq)]
pub(crate) enum Manifest {
    /// One image.
    Image(ImageManifest),
    /// The same image for several platforms: the entry that fits.
    Index(Descriptor),
}

#[derive(Debug, PartialEq)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

/// A layer of an image: the archive to fetch, and what it must be when unpacked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerBlob {
    pub(crate) diff_id: Digest,
    pub(crate) blob: Descriptor,
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde_json::Value>,
}

impl Manifest {
    /// Reads a manifest or an index; of an index, the entry for `host`.
    pub(crate) fn parse(bytes: &[u8], host: &Platform) -> Result<Self, Refusal> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        if raw.schema_version == 1 || raw.fs_layers.is_some() {
            return Err(Refusal::Unsupported("Docker manifest schema 1".to_owned()));
        }
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                ImageManifest { config, layers }.checked().map(Self::Image)
            }
            (None, None, Some(entries)) => {
                let place = choose(host, entries.iter().map(|entry| entry.platform.as_ref()));
                let fitting = place.and_then(|place| entries.into_iter().nth(place));
                fitting.map(Self::Index).ok_or_else(|| {
                    let (os, architecture) = (&host.os, &host.architecture);
                    Refusal::Unsupported(format!("it has nothing for {os}/{architecture}"))
                })
            }
            // Both at once would be an image to one reader and an index to another.
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                Err(Refusal::Inconsistent("manifest and index in one".to_owned()))
            }
            (Some(_), None, None) | (None, Some(_), None) | (None, None, None) => {
                Err(Refusal::Inconsistent("neither manifest nor index".to_owned()))
            }
        }
    }
}

impl ImageManifest {
    fn checked(self) -> Result<Self, Refusal> {
        if !CONFIGS.contains(&self.config.media_type.as_str()) {
            let media_type = &self.config.media_type;
            return Err(Refusal::Unsupported(format!("config of media type {media_type}")));
        }
        if self.config.size > LARGEST_CONFIG_BYTES {
            return Err(Refusal::Unsupported(format!("config of {} bytes", self.config.size)));
        }
        for layer in &self.layers {
            let media_type = layer.media_type.as_str();
            let elsewhere = layer.urls.as_ref().is_some_and(|urls| !urls.is_empty());
            if elsewhere || media_type.contains("foreign") || media_type.contains("nondistrib") {
                let reason = format!("foreign layer {} ({media_type})", layer.digest);
                return Err(Refusal::Unsupported(reason));
            }
            if !LAYERS.contains(&media_type) {
                return Err(Refusal::Unsupported(format!("layer of media type {media_type}")));
            }
        }
        Ok(self)
    }

    /// Pairs the layers with their diff ids, bottom first.
    pub(crate) fn layers(&self, config: &ImageConfiguration) -> Result<Vec<LayerBlob>, Refusal> {
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != self.layers.len() {
            let (have, want) = (self.layers.len(), diff_ids.len());
            return Err(Refusal::Inconsistent(format!(
                "the manifest has {have} layers, the config {want}"
            )));
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (diff_id, blob) in diff_ids.iter().zip(&self.layers) {
            let diff_id =
                diff_id.parse().map_err(|_| Refusal::Inconsistent(format!("diff id {diff_id}")))?;
            layers.push(LayerBlob { diff_id, blob: blob.clone() });
        }
        let distinct = mounted(layers.iter().map(|layer| layer.diff_id)).len();
        if distinct > MOST_LAYERS {
            return Err(Refusal::TooManyLayers(distinct));
        }
        Ok(layers)
    }
}

/// Reads an image's config.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration, Refusal> {
    Ok(serde_json::from_slice(bytes)?)
}

/// The layers as overlayfs stacks them, top first. One that occurs twice is mounted once, at its
/// topmost place (twice is ELOOP); what it brings is on top either way.
pub(crate) fn mounted(layers: impl DoubleEndedIterator<Item = Digest>) -> Vec<Digest> {
    let mut stack: Vec<Digest> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    stack.extend(layers.rev().filter(|layer| seen.insert(*layer)));
    stack
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn host() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    fn blob(media_type: &str, content: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": 7})
    }

    fn parse(value: &Value) -> Result<Manifest, Refusal> {
        Manifest::parse(&serde_json::to_vec(value).unwrap(), &host())
    }

    fn image(config: &str, layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "config": blob(config, "config"), "layers": layers})
    }

    #[test]
    fn every_media_type_of_images_is_accepted_and_every_other_is_named() {
        for config in CONFIGS {
            let layers: Vec<_> = LAYERS.iter().map(|layer| blob(layer, layer)).collect();
            let Manifest::Image(manifest) = parse(&image(config, &layers)).unwrap() else {
                panic!("{config} is no image");
            };
            assert_eq!(manifest.layers.len(), LAYERS.len());
        }
        for (manifest, named) in [
            (image("application/vnd.cncf.helm.config.v1+json", &[]), "helm"),
            (image(CONFIGS[0], &[blob("text/html", "x")]), "text/html"),
            (
                image(
                    CONFIGS[1],
                    &[blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "x")],
                ),
                "foreign layer",
            ),
            (
                image(
                    CONFIGS[0],
                    &[blob("application/vnd.oci.image.layer.nondistributable.v1.tar", "x")],
                ),
                "foreign layer",
            ),
            (json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
            (json!({"schemaVersion": 2, "manifests": []}), "nothing for linux/amd64"),
        ] {
            match parse(&manifest) {
                Err(Refusal::Unsupported(reason)) => assert!(reason.contains(named), "{reason}"),
                other => panic!("{named}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_index_leads_to_the_entry_of_this_platform() {
        let entry = |architecture: &str| {
            let mut entry = blob("", architecture);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let index = json!({"schemaVersion": 2, "manifests": [entry("arm64"), entry("amd64")]});
        let Manifest::Index(chosen) = parse(&index).unwrap() else { panic!("no index") };
        assert_eq!(chosen.digest, Digest::of(b"amd64"));
    }

    #[test]
    fn ambiguous_and_malformed_manifests_are_refused() {
        let both =
            json!({"schemaVersion": 2, "config": blob("", "c"), "layers": [], "manifests": []});
        for manifest in [both, json!({}), json!({"schemaVersion": 2, "layers": []})] {
            assert!(matches!(parse(&manifest), Err(Refusal::Inconsistent(_))), "{manifest}");
        }
        for manifest in [json!([]), json!({"config": {"digest": "x", "size": 1}})] {
            assert!(matches!(parse(&manifest), Err(Refusal::Malformed(_))), "{manifest}");
        }
    }

    fn config(diff_ids: usize) -> ImageConfiguration {
        let diff_ids: Vec<_> =
            (0..diff_ids).map(|n| Digest::of(n.to_string().as_bytes()).to_string()).collect();
        let config = json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        parse_config(&serde_json::to_vec(&config).unwrap()).unwrap()
    }

    #[test]
    fn layers_and_diff_ids_must_agree_and_stay_mountable() {
        let manifest = |count: usize| ImageManifest {
            config: serde_json::from_value(blob("", "c")).unwrap(),
            layers: vec![serde_json::from_value(blob(LAYERS[0], "l")).unwrap(); count],
        };
        assert_eq!(manifest(3).layers(&config(3)).unwrap().len(), 3);
        assert!(matches!(manifest(3).layers(&config(2)), Err(Refusal::Inconsistent(_))));
        assert!(manifest(500).layers(&config(500)).is_ok());
        assert!(matches!(manifest(501).layers(&config(501)), Err(Refusal::TooManyLayers(501))));
    }

    #[test]
    fn a_repeated_layer_is_mounted_once_at_its_topmost_place() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Digest::of(name.as_bytes()));
        assert_eq!(mounted([a, b, a, c, b].into_iter()), [b, c, a]);
        assert_eq!(mounted([].into_iter()), []);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes, &host());
            let _ = parse_config(&bytes);
        }
    }
}
