//! How much one layer may be: what no real layer comes near, and a bomb is made of.

use std::io;
use std::path::Path;

/// The kernel takes no longer path (PATH_MAX, less its end mark).
const LONGEST_PATH: u64 = 4095;

/// Bounds on one layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the archive, uncompressed.
    pub bytes: u64,
    pub entries: u64,
    /// Directories within directories. Each level of a tree that is walked holds a descriptor.
    pub depth: usize,
    /// Of paths that have to be remembered to the layer's end, directories' above all, and what
    /// remembering each takes.
    pub noted: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 100 << 30, entries: 10_000_000, depth: 128, noted: 64 << 20 }
    }
}

/// A layer is beyond a limit. Travels within an [`io::Error`] where readers find it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("it has more than {most} {unit}")]
pub(crate) struct TooLarge {
    most: u64,
    unit: &'static str,
}

impl TooLarge {
    /// Finds it in the error of a reader.
    pub(crate) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<TooLarge> for io::Error {
    fn from(error: TooLarge) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl Limits {
    pub(crate) fn check_bytes(&self, bytes: u64) -> Result<(), TooLarge> {
        within(bytes, self.bytes, "bytes")
    }

    pub(crate) fn check_entries(&self, entries: u64) -> Result<(), TooLarge> {
        within(entries, self.entries, "entries")
    }

    pub(crate) fn check_path(&self, path: &Path) -> Result<(), TooLarge> {
        within(path.as_os_str().len() as u64, LONGEST_PATH, "bytes in a path")?;
        self.check_depth(path.components().count())
    }

    pub(crate) fn check_depth(&self, depth: usize) -> Result<(), TooLarge> {
        within(depth as u64, self.depth as u64, "directories within each other")
    }

    pub(crate) fn check_noted(&self, bytes: u64) -> Result<(), TooLarge> {
        within(bytes, self.noted, "bytes of directories' and whiteouts' paths")
    }
}

fn within(actual: u64, most: u64, unit: &'static str) -> Result<(), TooLarge> {
    if actual > most { Err(TooLarge { most, unit }) } else { Ok(()) }
}
