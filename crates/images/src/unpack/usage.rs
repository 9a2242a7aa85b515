//! What a directory tree takes of the disk.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, statat};

use super::limits::Limits;
use super::root::open_directory;

/// Bytes and inodes in use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Allocated bytes, not the files' lengths: holes are free.
    pub bytes: u64,
    pub inodes: u64,
}

/// A tree as it was found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Measured {
    pub(crate) usage: Usage,
    /// Of all regular files together. Unlike the allocated bytes, it is the same whenever and
    /// wherever it is looked at.
    pub(crate) length: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Bytes that `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCK: u64 = 512;

/// Walks the tree beneath `directory`, itself included; a file with several links counts once. A
/// tree that is too deep is an error.
pub(crate) fn measure(directory: BorrowedFd<'_>, limits: &Limits) -> io::Result<Measured> {
    let mut walk = Walk { limits, linked: HashSet::new(), found: Measured::default() };
    walk.count(&fstat(directory)?);
    walk.directory(directory, 1)?;
    Ok(walk.found)
}

struct Walk<'a> {
    limits: &'a Limits,
    linked: HashSet<u64>,
    found: Measured,
}

impl Walk<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        // The stream is closed before going deeper: one descriptor per level is enough.
        for name in self.entries(directory)? {
            self.limits.check_depth(depth)?;
            self.directory(open_directory(directory, &name)?.as_fd(), depth + 1)?;
        }
        Ok(())
    }

    /// Counts what is in `directory`, and tells the directories among it.
    fn entries(&mut self, directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
        let mut directories = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if is_directory || stat.st_nlink == 1 || self.linked.insert(stat.st_ino) {
                self.count(&stat);
            }
            if is_directory {
                directories.push(name.to_owned());
            }
        }
        Ok(directories)
    }

    fn count(&mut self, stat: &Stat) {
        let bytes = stat.st_blocks.cast_unsigned() * BLOCK;
        self.found.usage += Usage { bytes, inodes: 1 };
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            // The archive's to choose, in files of holes.
            let length = self.found.length.saturating_add(stat.st_size.cast_unsigned());
            self.found.length = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three files of holes are enough where the file system has no limit of its own.
    #[test]
    fn lengths_beyond_what_can_be_counted_are_the_most_that_can() {
        let limits = Limits::default();
        let mut walk = Walk { limits: &limits, linked: HashSet::new(), found: Measured::default() };
        let mut stat = fstat(tempfile::tempfile().unwrap()).unwrap();
        stat.st_size = i64::MAX;
        for length in [u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            walk.count(&stat);
            assert_eq!(walk.found.length, length);
        }
    }
}
