//! Whether a thing is still the one that was put there, told without reading it: cheap enough to
//! be asked at every use.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::record::Places;
use crate::digest::Digest;

/// What changes when a file is replaced or written to, or when something comes to or goes from a
/// directory.
///
/// The time of the last change of attributes is not of it: relabelling a file system changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = fs_err::symlink_metadata(path)?;
        Ok(Self {
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// A layer's stamps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LayerStamp {
    record: Stamp,
    root: Stamp,
}

impl LayerStamp {
    pub(super) fn of(places: &Places, layer: Digest) -> io::Result<Self> {
        Self::of_directory(&places.layer(layer))
    }

    /// Of the layer in `directory`.
    pub(super) fn of_directory(directory: &Path) -> io::Result<Self> {
        let record = Stamp::of(&directory.join("layer.json"))?;
        Ok(Self { record, root: Stamp::of(&directory.join("fs"))? })
    }
}
