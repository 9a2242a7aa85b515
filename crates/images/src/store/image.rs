//! An image as the store knows it.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::manifest::parse_config;
use crate::reference::Reference;
use crate::store::record::ImageRecord;
use crate::trust::Evidence;

/// A complete image. What the registry calls it may change; a changed image is a new value.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: ImageId,
    /// `registry/repository:tag`, sorted. An image loses a tag that another one takes over.
    pub tags: Vec<String>,
    /// `registry/repository@digest` of the manifests (or indexes) it was pulled by, sorted.
    pub digests: Vec<String>,
    /// Its distinct layers, unpacked, and its config and manifest. Never zero.
    pub size_bytes: u64,
    /// None: it is an artifact, which no container can run from.
    pub config: Option<Arc<ImageConfiguration>>,
    /// Diff ids, bottom first, repeated ones repeated.
    pub layers: Vec<Digest>,
    /// The node's configuration says that it is never to be collected.
    pub pinned: bool,
    /// What overlayfs mounts, top first.
    pub(crate) mounted: Vec<Digest>,
    /// Signatures that came with the pulls.
    pub(crate) evidence: Vec<Arc<Evidence>>,
}

/// Whom an image's processes run as, by its config, without the group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum User {
    Id(i64),
    Name(String),
}

impl Image {
    /// The config's user; none means that the config does not say (then it is root).
    pub fn user(&self) -> Option<User> {
        let user = self.config.as_ref()?.config().as_ref()?.user().as_deref()?;
        let name = user.split(':').next().unwrap_or_default();
        if name.is_empty() {
            return None;
        }
        Some(name.parse().map_or_else(|_| User::Name(name.to_owned()), User::Id))
    }

    pub(crate) fn from_record(record: &ImageRecord, pinned: &[String]) -> Result<Self, String> {
        let named = record.config.as_ref().unwrap_or(&record.manifest);
        if Digest::of(named.as_bytes()) != record.id.digest() {
            return Err("content and id differ".to_owned());
        }
        let manifest = Digest::of(record.manifest.as_bytes());
        if record.manifest_digest.is_some_and(|known| known != manifest) {
            return Err("the manifest differs from its digest".to_owned());
        }
        let config = record.config.as_ref().map(|config| parse_config(config.as_bytes()));
        let config = config.transpose().map_err(|error| error.to_string())?;
        let names = || record.tags.iter().chain(&record.digests);
        Ok(Self {
            id: record.id,
            tags: record.tags.clone(),
            digests: record.digests.clone(),
            size_bytes: record.size_bytes,
            config: config.map(Arc::new),
            layers: record.layers.clone(),
            pinned: names().any(|name| pinned.iter().any(|pattern| matches(pattern, name))),
            mounted: record.mounted.clone(),
            evidence: record.evidence.clone(),
        })
    }

    /// Whether `reference` is one of the image's names.
    pub(crate) fn has_name(&self, reference: &Reference) -> bool {
        match reference.digest() {
            Some(digest) => self.digests.contains(&format!("{}@{digest}", reference.repository())),
            None => reference.tagged().is_some_and(|tagged| self.tags.contains(&tagged)),
        }
    }
}

/// What a name that somebody looks an image up by can be.
#[derive(Debug, PartialEq)]
pub(crate) enum Lookup {
    Id(ImageId),
    /// A reference, and perhaps the beginning of an id.
    Name {
        reference: Option<Reference>,
        id_prefix: Option<String>,
    },
}

/// The shortest piece of an id that is taken for one.
const SHORTEST_PREFIX: usize = 3;

impl Lookup {
    pub(crate) fn parse(
        name: &str,
        parse: impl FnOnce(&str) -> Result<Reference, Error>,
    ) -> Result<Self, Error> {
        if let Ok(id) = name.parse() {
            return Ok(Self::Id(id));
        }
        if let Some(digest) = Digest::from_hex(name) {
            return Ok(Self::Id(digest.into()));
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let id_prefix = (is_hex && hex.len() >= SHORTEST_PREFIX).then(|| hex.to_owned());
        match parse(name) {
            Ok(reference) => Ok(Self::Name { reference: Some(reference), id_prefix }),
            Err(_) if id_prefix.is_some() => Ok(Self::Name { reference: None, id_prefix }),
            Err(error) => Err(error),
        }
    }
}

/// Patterns of pinned images: exact, `prefix*` or `*keyword*`.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) if pattern.len() > 1 => name.contains(&pattern[1..pattern.len() - 1]),
        (_, Some(prefix)) => name.starts_with(prefix),
        (_, None) => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_patterns_are_exact_prefix_or_keyword() {
        for (pattern, name, pinned) in [
            ("a.b/c:1", "a.b/c:1", true),
            ("a.b/c:1", "a.b/c:12", false),
            ("a.b/*", "a.b/c:1", true),
            ("a.b/*", "x.a.b/c:1", false),
            ("*pause*", "a.b/pause:1", true),
            ("*pause*", "a.b/c:1", false),
            ("*", "a.b/c:1", true),
        ] {
            assert_eq!(matches(pattern, name), pinned, "{pattern} {name}");
        }
    }

    #[test]
    fn names_and_ids_are_told_apart() {
        let hex = Digest::of(b"x").hex();
        let id = ImageId::from(Digest::of(b"x"));
        let parse = |name: &str| Lookup::parse(name, |name| Reference::parse(name, None));
        assert_eq!(parse(&hex).unwrap(), Lookup::Id(id));
        assert_eq!(parse(&format!("sha256:{hex}")).unwrap(), Lookup::Id(id));
        for (name, has_reference, prefix) in [
            ("nginx", true, None),
            ("cafe", true, Some("cafe")),
            ("ab", true, None),
            ("sha256:abc", true, Some("abc")),
            ("sha256:abcg", true, None),
        ] {
            let Lookup::Name { reference, id_prefix } = parse(name).unwrap() else {
                panic!("{name} is no id");
            };
            assert_eq!(
                (reference.is_some(), id_prefix.as_deref()),
                (has_reference, prefix),
                "{name}"
            );
        }
        assert!(parse("not an image").is_err());
    }
}
