//! What a directory tree takes of the disk.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, fstat, statat};

use super::root::open_directory;

/// Bytes and inodes in use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Allocated bytes, not the files' lengths: holes are free.
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Bytes that `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCK: u64 = 512;

/// Walks the tree beneath `directory`, itself included; a file with several links counts once.
pub(crate) fn measure(directory: BorrowedFd<'_>) -> io::Result<Usage> {
    let own = fstat(directory)?;
    let mut usage = Usage { bytes: own.st_blocks.cast_unsigned() * BLOCK, inodes: 1 };
    walk(directory, &mut HashSet::new(), &mut usage)?;
    Ok(usage)
}

fn walk(directory: BorrowedFd<'_>, linked: &mut HashSet<u64>, usage: &mut Usage) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        if is_directory || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
            *usage += Usage { bytes: stat.st_blocks.cast_unsigned() * BLOCK, inodes: 1 };
        }
        if is_directory {
            walk(open_directory(directory, name)?.as_fd(), linked, usage)?;
        }
    }
    Ok(())
}
