//! What is on disk, and how it gets there.
//!
//! ```text
//! <root>/layers/<hex of diff id>/fs/           the layer, as overlayfs mounts it
//!                                layer.json    what is known of it
//!                                synced        it has reached the disk
//!        images/<hex of id>.json, .synced      one record per image
//!        incoming/<name>                       what is being made, and what is being removed
//! ```
//!
//! Everything is made in `incoming` and renamed. Nothing is flushed on the way: what lacks its
//! `synced` mark and is of another boot cannot be trusted, and is dropped.

use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::unpack::Usage;

const VERSION: u32 = 1;

/// A layer's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct LayerRecord {
    version: u32,
    pub(crate) diff_id: Digest,
    bytes: u64,
    inodes: u64,
    /// Directories that the archive did not list (see `unpack`), one `char` per byte: names are
    /// bytes, JSON is text.
    invented: Vec<String>,
    pub(crate) boot_id: String,
}

impl LayerRecord {
    pub(crate) fn new(diff_id: Digest, usage: Usage, invented: &[PathBuf], boot_id: &str) -> Self {
        let text =
            |path: &PathBuf| path.as_os_str().as_bytes().iter().map(|b| *b as char).collect();
        Self {
            version: VERSION,
            diff_id,
            bytes: usage.bytes,
            inodes: usage.inodes,
            invented: invented.iter().map(text).collect(),
            boot_id: boot_id.to_owned(),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { bytes: self.bytes, inodes: self.inodes }
    }

    /// Relative to the layer's root; empty is the root itself.
    pub(crate) fn invented(&self) -> impl Iterator<Item = PathBuf> {
        let bytes = |text: &String| {
            text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
        };
        self.invented.iter().map(move |text| std::ffi::OsString::from_vec(bytes(text)).into())
    }
}

/// An image's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: ImageId,
    /// As the registry served it.
    pub(crate) manifest: String,
    /// As the registry served it: its digest is the id.
    pub(crate) config: String,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) size_bytes: u64,
    /// Diff ids, bottom first, as the config lists them.
    pub(crate) layers: Vec<Digest>,
    /// What overlayfs mounts, top first.
    pub(crate) mounted: Vec<Digest>,
    pub(crate) boot_id: String,
    /// What a later release wrote: kept when this one writes the record anew.
    #[serde(flatten)]
    pub(crate) other: serde_json::Map<String, serde_json::Value>,
}

impl ImageRecord {
    pub(crate) const VERSION: u32 = VERSION;
}

/// The places under a store's root.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    next: AtomicU64,
}

impl Places {
    /// Makes what is missing.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        for name in ["layers", "images", "incoming"] {
            fs_err::create_dir_all(root.join(name))?;
        }
        let next = AtomicU64::new(1);
        Ok(Self { root: root.to_owned(), next })
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, layer: Digest) -> PathBuf {
        self.layers().join(layer.hex())
    }

    /// The directory that overlayfs mounts.
    pub(crate) fn layer_root(&self, layer: Digest) -> PathBuf {
        self.layer(layer).join("fs")
    }

    pub(crate) fn layer_record(&self, layer: Digest) -> PathBuf {
        self.layer(layer).join("layer.json")
    }

    pub(crate) fn layer_mark(&self, layer: Digest) -> PathBuf {
        self.layer(layer).join("synced")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, id: ImageId) -> PathBuf {
        self.images().join(format!("{}.json", id.digest().hex()))
    }

    pub(crate) fn image_mark(&self, id: ImageId) -> PathBuf {
        self.images().join(format!("{}.synced", id.digest().hex()))
    }

    pub(crate) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// A name in `incoming` that nothing has had, this process's or an earlier one's.
    pub(crate) fn fresh(&self) -> PathBuf {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.incoming().join(format!("{}-{number}", std::process::id()));
            if !path.exists() {
                return path;
            }
        }
    }

    /// Writes a record: complete under its name, or not at all.
    pub(crate) fn write_record(&self, path: &Path, record: &impl Serialize) -> io::Result<u64> {
        let aside = self.fresh();
        let content = serde_json::to_vec(record)?;
        let write = || {
            fs_err::File::create(&aside)?.write_all(&content)?;
            fs_err::rename(&aside, path)
        };
        write().inspect_err(|_| drop(fs_err::remove_file(&aside)))?;
        Ok(content.len() as u64)
    }

    /// Takes `path` out of sight at once; its removal is the caller's to finish.
    pub(crate) fn discard(&self, path: &Path) -> io::Result<PathBuf> {
        let aside = self.fresh();
        fs_err::rename(path, &aside)?;
        Ok(aside)
    }
}

pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs_err::read(path)?)?)
}

/// Removes something in `incoming`, whatever it is.
pub(crate) fn erase(path: &Path) {
    let erased = match fs_err::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) => Err(error),
    };
    match erased {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove; the next start tries again");
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_record_keeps_names_that_are_no_text() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(vec![b'a', 0xff, 0xc3, b'/', 0x80]));
        let invented = [PathBuf::new(), odd, PathBuf::from("tmp/ä")];
        let usage = Usage { bytes: 7, inodes: 2 };
        let record = LayerRecord::new(Digest::of(b"l"), usage, &invented, "boot");
        let text = serde_json::to_string(&record).unwrap();
        let read: LayerRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(read.invented().collect::<Vec<_>>(), invented);
        assert_eq!(read.usage(), usage);
    }
}
