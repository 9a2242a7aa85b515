//! OCI artifacts: images that nobody runs, whose blobs are files. Pure.
//!
//! An artifact has no config that lists diff ids. So each of its blobs becomes a layer of its own,
//! kept under the digest of a text that says what was made of which blob: no archive has such a
//! digest, and two artifacts with a file in common share it. What follows (leases, collection,
//! mounting) is as for any layer.
//!
//! | media type | becomes |
//! |---|---|
//! | of a layer's archive, and no title | what is in the archive |
//! | of a layer's archive, and to be unpacked (as `oras push DIRECTORY` says) | what is in it |
//! | `application/vnd.oci.empty.v1+json` | nothing |
//! | any other; and that of an archive with a title, which is what `oras push FILE` makes | a file |
//!
//! A file is called as its title says. Without a title it is `sha256-` and the digest's digits. A
//! title may have directories; one that leads out of the artifact, or is no name, is refused.

use std::path::{Component, Path, PathBuf};

use crate::blob::{Content, Descriptor, LayerBlob, Refusal, is_archive};
use crate::digest::Digest;

/// The blob that stands where a manifest must have one and there is nothing to say.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// `org.opencontainers.image.title`: the file's name (image-spec, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";
/// ORAS' mark on the archive of a directory.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// The kernel's limits (NAME_MAX, PATH_MAX).
const LONGEST_NAME: usize = 255;
const LONGEST_TITLE: usize = 4095;

/// What the blobs of an artifact are made into, bottom first.
pub(crate) fn layers(blobs: &[Descriptor]) -> Result<Vec<LayerBlob>, Refusal> {
    let kept = blobs.iter().filter(|blob| blob.media_type != EMPTY);
    kept.map(|blob| {
        let content = content(blob)?;
        Ok(LayerBlob { diff_id: key(&content, blob.digest), blob: blob.clone(), content })
    })
    .collect()
}

fn content(blob: &Descriptor) -> Result<Content, Refusal> {
    let title = blob.annotation(TITLE).filter(|title| !title.is_empty());
    if is_archive(&blob.media_type) && (title.is_none() || blob.annotation(UNPACK) == Some("true"))
    {
        return Ok(Content::UnlistedArchive);
    }
    match title {
        None => Ok(Content::File(format!("sha256-{}", blob.digest.hex()).into())),
        Some(title) => file_name(title).map(Content::File).ok_or_else(|| {
            Refusal::Unsupported(format!("a file of an artifact cannot be called {title:?}"))
        }),
    }
}

/// The title as a path below the artifact's root.
fn file_name(title: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(title).components() {
        match component {
            Component::Normal(name) if name.len() <= LONGEST_NAME => path.push(name),
            Component::CurDir => {}
            Component::Normal(_)
            | Component::ParentDir
            | Component::RootDir
            | Component::Prefix(_) => return None,
        }
    }
    let is_directory = title.ends_with('/') || path.as_os_str().is_empty();
    let is_name = !is_directory && title.len() <= LONGEST_TITLE && !title.contains('\0');
    is_name.then_some(path)
}

fn key(content: &Content, blob: Digest) -> Digest {
    let text = match content {
        Content::File(name) => format!("file, 1\n{blob}\n{}", name.display()),
        Content::UnlistedArchive | Content::ListedArchive => format!("archive, 1\n{blob}\n"),
    };
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn blob(media_type: &str, title: Option<&str>, unpack: Option<&str>) -> Descriptor {
        let mut annotations = serde_json::Map::new();
        for (key, value) in [(TITLE, title), (UNPACK, unpack)] {
            annotations.extend(value.map(|value| (key.to_owned(), json!(value))));
        }
        serde_json::from_value(json!({"mediaType": media_type, "digest": Digest::of(b"content"),
            "size": 7, "annotations": annotations}))
        .unwrap()
    }

    #[test]
    fn blobs_are_files_unless_they_are_archives_to_be_unpacked() {
        const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
        let file = |name: &str| Some(Content::File(name.into()));
        let unnamed = format!("sha256-{}", Digest::of(b"content").hex());
        for (media_type, title, unpack, expected) in [
            ("text/plain", Some("a.txt"), None, file("a.txt")),
            ("text/plain", None, None, file(&unnamed)),
            ("", Some(""), None, file(&unnamed)),
            ("text/plain", Some("a"), Some("true"), file("a")),
            (TAR, Some("a.txt"), None, file("a.txt")),
            (TAR, Some("a.txt"), Some("false"), file("a.txt")),
            (TAR, Some("directory"), Some("true"), Some(Content::UnlistedArchive)),
            (TAR, None, None, Some(Content::UnlistedArchive)),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", None, None, file(&unnamed)),
            (EMPTY, Some("a"), None, None),
        ] {
            let layers = layers(&[blob(media_type, title, unpack)]).unwrap();
            let contents: Vec<_> = layers.into_iter().map(|layer| layer.content).collect();
            assert_eq!(contents, Vec::from_iter(expected), "{media_type} {title:?} {unpack:?}");
        }
    }

    #[test]
    fn a_title_names_a_file_below_the_root_or_is_refused() {
        let long = "x".repeat(255);
        for (title, path) in [
            ("a", Some("a")),
            ("a/b.gguf", Some("a/b.gguf")),
            ("./a//b", Some("a/b")),
            (".wh.a", Some(".wh.a")),
            ("..a", Some("..a")),
            (&long, Some(&*long)),
            (&format!("{long}x"), None),
            ("../a", None),
            ("a/../b", None),
            ("/etc/passwd", None),
            ("a/", None),
            (".", None),
            ("a\0b", None),
            (&"x/".repeat(3000), None),
        ] {
            assert_eq!(file_name(title).as_deref(), path.map(Path::new), "{title:?}");
            let made = layers(&[blob("text/plain", Some(title), None)]);
            assert_eq!(made.is_ok(), path.is_some(), "{title:?}");
        }
    }

    #[test]
    fn what_is_made_differently_is_kept_apart() {
        let keys = [Content::File("a".into()), Content::File("b".into()), Content::UnlistedArchive]
            .map(|content| key(&content, Digest::of(b"content")));
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_ne!(key(&Content::UnlistedArchive, Digest::of(b"other")), keys[2]);
    }

    proptest! {
        #[test]
        fn no_title_leads_out(title in "[a/.\\x00]{0,20}") {
            if let Some(path) = file_name(&title) {
                let plain = |component| matches!(component, Component::Normal(_));
                prop_assert!(path.components().all(plain) && path.components().count() > 0);
            }
        }
    }
}
