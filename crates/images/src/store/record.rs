//! What is on disk, and how it gets there.
//!
//! ```text
//! <root>/layers/<hex of diff id>/fs/           the layer, as overlayfs mounts it
//!                                layer.json    what is known of it
//!                                synced        it has reached the disk
//!        images/<hex of id>.json, .synced      one record per image
//!        incoming/<name>                       what is being made, and what is being removed
//!        damaged/<boot id>.<hex>.<name>/       layers that were dropped while somebody mounted them
//! ```
//!
//! Everything is made in `incoming` and renamed. Nothing is flushed on the way: what lacks its
//! `synced` mark and is of another boot cannot be trusted, and is dropped.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, IFlags, ioctl_getflags, ioctl_setflags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::trust::Evidence;
use crate::unpack::{Measured, Noted, Usage, open_own_directory, remove_tree};

const VERSION: u32 = 1;

/// A layer's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct LayerRecord {
    version: u32,
    pub(crate) diff_id: Digest,
    bytes: u64,
    inodes: u64,
    /// Of all its regular files; records of earlier releases lack it.
    #[serde(default)]
    length: Option<u64>,
    /// Directories that the archive did not list (see `unpack`), one `char` per byte: names are
    /// bytes, JSON is text.
    invented: Vec<String>,
    /// Directories that hold whiteouts, likewise.
    #[serde(default)]
    whiteouts_in: Vec<String>,
    pub(crate) boot_id: String,
}

impl LayerRecord {
    pub(crate) fn new(diff_id: Digest, measured: &Measured, noted: &Noted, boot_id: &str) -> Self {
        let text =
            |path: &PathBuf| path.as_os_str().as_bytes().iter().map(|b| *b as char).collect();
        let texts = |paths: &[PathBuf]| paths.iter().map(text).collect();
        Self {
            version: VERSION,
            diff_id,
            bytes: measured.usage.bytes,
            inodes: measured.usage.inodes,
            length: Some(measured.length),
            invented: texts(&noted.invented),
            whiteouts_in: texts(&noted.whiteouts_in),
            boot_id: boot_id.to_owned(),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { bytes: self.bytes, inodes: self.inodes }
    }

    /// Whether a layer with this record can look so. Allocated bytes are the file system's own
    /// business, and differ from one to another.
    pub(crate) fn fits(&self, found: &Measured) -> bool {
        self.inodes == found.usage.inodes && self.length.is_none_or(|known| known == found.length)
    }

    pub(crate) fn noted(&self) -> Noted {
        let bytes = |text: &String| {
            text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
        };
        let path = |text| std::ffi::OsString::from_vec(bytes(text)).into();
        Noted {
            invented: self.invented.iter().map(path).collect(),
            whiteouts_in: self.whiteouts_in.iter().map(path).collect(),
        }
    }
}

/// An image's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: ImageId,
    /// As the registry served it.
    pub(crate) manifest: String,
    /// The manifest's own; records of earlier releases lack it.
    #[serde(default)]
    pub(crate) manifest_digest: Option<Digest>,
    /// As the registry served it: its digest is the id. None for an artifact: there the manifest's
    /// digest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) size_bytes: u64,
    /// Diff ids, bottom first, as the config lists them.
    pub(crate) layers: Vec<Digest>,
    /// What overlayfs mounts, top first.
    pub(crate) mounted: Vec<Digest>,
    /// Signatures that came with the pulls, for whoever asks the policy later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) evidence: Vec<Arc<Evidence>>,
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
    /// Makes what is missing. Layers have set-uid programs of whoever made the image: nobody but
    /// root shall come to where they could be run outside a container, in a store of any age.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        for name in ["layers", "images", "incoming", "damaged"] {
            fs_err::create_dir_all(root.join(name))?;
            fs_err::set_permissions(root.join(name), Permissions::from_mode(0o700))?;
        }
        spread(&root.join("incoming"));
        let next = AtomicU64::new(1);
        Ok(Self { root: root.to_owned(), next })
    }

    /// The places of a store that somebody else keeps. Nothing is made there.
    pub(crate) fn of_another(root: &Path) -> Self {
        Self { root: root.to_owned(), next: AtomicU64::new(1) }
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

    pub(crate) fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
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

    /// Takes a damaged layer out of the way, but not from those who mount it: until the next boot.
    pub(crate) fn set_aside(&self, layer: &Path, boot_id: &str) -> io::Result<()> {
        let name = layer.file_name().unwrap_or_default().to_string_lossy();
        let fresh = self.fresh();
        let fresh = fresh.file_name().unwrap_or_default().to_string_lossy();
        fs_err::rename(layer, self.damaged().join(format!("{boot_id}.{name}.{fresh}")))
    }
}

/// Has ext4 put each directory made in `path` into a block group of its own. Otherwise all layers
/// share one, and a layer that comes soon after another was removed spends most of its time
/// stepping over inodes that ext4 will not use again so soon. Elsewhere there is no such need.
fn spread(path: &Path) {
    let set = || {
        let directory = open_own_directory(path)?;
        let flags = ioctl_getflags(&directory)? | IFlags::TOPDIR;
        Ok::<_, io::Error>(ioctl_setflags(&directory, flags)?)
    };
    if let Err(error) = set() {
        tracing::debug!(path = %path.display(), %error, "directories are not spread");
    }
}

pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs_err::read(path)?)?)
}

/// Removes something in `incoming`, whatever it is.
pub(crate) fn erase(path: &Path) {
    let erased = match fs_err::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => erase_directory(path),
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

/// How many levels of a tree are removed by recursion. What lies deeper is brought up first: an
/// archive's links can make trees that neither the stack nor the table of descriptors would hold.
const LEVELS: usize = 128;

fn erase_directory(path: &Path) -> io::Result<()> {
    let mut waiting = vec![path.to_owned()];
    let mut brought_up = 0;
    while let Some(next) = waiting.pop() {
        let mut bring_up = |parent: BorrowedFd<'_>, name: &OsStr| {
            brought_up += 1;
            let mut aside = path.as_os_str().to_owned();
            aside.push(format!(".{brought_up}"));
            rustix::fs::renameat(parent, name, CWD, aside.as_os_str())?;
            waiting.push(aside.into());
            Ok(())
        };
        remove_tree(CWD, next.as_os_str(), LEVELS, &mut bring_up)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_any_depth_is_erased() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("deep");
        fs_err::create_dir(&root).unwrap();
        let mut at = open_own_directory(&root).unwrap();
        for _ in 0..5000 {
            for name in ["d", "e"] {
                rustix::fs::mkdirat(&at, name, rustix::fs::Mode::RWXU).unwrap();
            }
            at = crate::unpack::open_directory(&at, OsStr::new("d")).unwrap();
        }
        erase(&root);
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_layer_record_keeps_names_that_are_no_text() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(vec![b'a', 0xff, 0xc3, b'/', 0x80]));
        let invented = [PathBuf::new(), odd, PathBuf::from("tmp/ä")];
        let measured = Measured { usage: Usage { bytes: 7, inodes: 2 }, length: 5 };
        let noted = Noted { whiteouts_in: invented[1..].to_vec(), invented: invented.to_vec() };
        let record = LayerRecord::new(Digest::of(b"l"), &measured, &noted, "boot");
        let text = serde_json::to_string(&record).unwrap();
        let read: LayerRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(read.noted(), noted);
        assert_eq!(read.usage(), measured.usage);
    }

    #[test]
    fn a_layer_is_known_by_its_inodes_and_its_files_lengths() {
        let measured = |bytes, inodes, length| Measured { usage: Usage { bytes, inodes }, length };
        let record =
            LayerRecord::new(Digest::of(b"l"), &measured(8192, 3, 10), &Noted::default(), "boot");
        for (found, fits) in [
            (measured(8192, 3, 10), true),
            (measured(4096, 3, 10), true),
            (measured(8192, 2, 10), false),
            (measured(8192, 3, 9), false),
        ] {
            assert_eq!(record.fits(&found), fits, "{found:?}");
        }
        let older = LayerRecord { length: None, ..record };
        assert!(older.fits(&measured(0, 3, 7)) && !older.fits(&measured(0, 4, 10)));
    }
}
