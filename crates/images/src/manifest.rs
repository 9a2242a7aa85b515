//! Manifests, indexes and image configs as registries serve them: parsed, checked, and made into
//! what a pull needs. Pure. What becomes of artifacts is in `artifact`.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::artifact;
use crate::blob::{Content, Descriptor, LayerBlob, Refusal, is_archive};
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

/// What a registry answers when asked for a manifest.
#[derive(Debug, PartialEq)]
pub(crate) enum Manifest {
    /// One image.
    Image(ImageManifest),
    /// Files that nobody runs.
    Artifact(ArtifactManifest),
    /// The same image for several platforms: the entry that fits.
    Index(Descriptor),
}

#[derive(Debug, PartialEq)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct ArtifactManifest {
    /// Bottom first.
    pub(crate) blobs: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    artifact_type: Option<String>,
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
                if is_artifact(raw.artifact_type.as_deref(), &config, &layers) {
                    return ArtifactManifest { blobs: layers }.checked().map(Self::Artifact);
                }
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
        if self.config.size > LARGEST_CONFIG_BYTES {
            return Err(Refusal::Unsupported(format!("config of {} bytes", self.config.size)));
        }
        for layer in &self.layers {
            check_is_kept(layer)?;
            if !is_archive(&layer.media_type) {
                let media_type = &layer.media_type;
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
            let content = Content::ListedArchive;
            layers.push(LayerBlob { diff_id, blob: blob.clone(), content });
        }
        check_is_mountable(&layers)?;
        Ok(layers)
    }
}

impl ArtifactManifest {
    fn checked(self) -> Result<Self, Refusal> {
        self.blobs.iter().try_for_each(check_is_kept)?;
        Ok(self)
    }

    /// What its blobs are made into, bottom first.
    pub(crate) fn layers(&self) -> Result<Vec<LayerBlob>, Refusal> {
        let layers = artifact::layers(&self.blobs)?;
        check_is_mountable(&layers)?;
        Ok(layers)
    }
}

/// Whether a manifest is that of an artifact. What has an image's config and only archives can be
/// run, whatever type it says it has.
fn is_artifact(artifact_type: Option<&str>, config: &Descriptor, layers: &[Descriptor]) -> bool {
    let is_typed = artifact_type.is_some_and(|artifact_type| !artifact_type.is_empty());
    !CONFIGS.contains(&config.media_type.as_str())
        || (is_typed && !layers.iter().all(|layer| is_archive(&layer.media_type)))
}

/// Refuses what the registry need not have.
fn check_is_kept(blob: &Descriptor) -> Result<(), Refusal> {
    let media_type = blob.media_type.as_str();
    let elsewhere = blob.urls.as_ref().is_some_and(|urls| !urls.is_empty());
    if elsewhere || media_type.contains("foreign") || media_type.contains("nondistrib") {
        let reason = format!("foreign layer {} ({media_type})", blob.digest);
        return Err(Refusal::Unsupported(reason));
    }
    Ok(())
}

fn check_is_mountable(layers: &[LayerBlob]) -> Result<(), Refusal> {
    let distinct = mounted(layers.iter().map(|layer| layer.diff_id)).len();
    if distinct > MOST_LAYERS {
        return Err(Refusal::TooManyLayers(distinct));
    }
    Ok(())
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
    use std::slice;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::blob::LAYERS;

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
    fn a_manifest_that_no_container_could_run_from_is_an_artifacts() {
        let with_type = |mut manifest: Value| {
            manifest["artifactType"] = json!("application/vnd.example.model");
            manifest
        };
        let (archive, text) = (blob(LAYERS[1], "x"), blob("text/plain", "x"));
        let empty = "application/vnd.oci.empty.v1+json";
        for (manifest, is_artifact) in [
            (image(CONFIGS[0], slice::from_ref(&archive)), false),
            (with_type(image(CONFIGS[0], slice::from_ref(&archive))), false),
            (with_type(image(CONFIGS[0], &[archive.clone(), text.clone()])), true),
            (image("application/vnd.cncf.helm.config.v1+json", &[]), true),
            (image(empty, slice::from_ref(&archive)), true),
            (with_type(image(empty, slice::from_ref(&text))), true),
        ] {
            let parsed = parse(&manifest).unwrap();
            assert_eq!(matches!(parsed, Manifest::Artifact(_)), is_artifact, "{manifest}");
        }
        let mut foreign = text;
        foreign["urls"] = json!(["https://elsewhere.example/x"]);
        assert!(matches!(parse(&image(empty, &[foreign])), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn an_artifact_has_no_more_blobs_than_can_be_mounted() {
        let artifact = |count: usize| {
            let blobs: Vec<_> = (0..count).map(|n| blob("text/plain", &n.to_string())).collect();
            parse(&image("application/vnd.oci.empty.v1+json", &blobs)).unwrap()
        };
        for (count, fits) in [(0, true), (500, true), (501, false)] {
            let Manifest::Artifact(artifact) = artifact(count) else { panic!("no artifact") };
            assert_eq!(artifact.layers().is_ok(), fits, "{count}");
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
