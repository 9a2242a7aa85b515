//! Adds up a directory tree: what it takes of the disk, with hard links counted once. It follows
//! no symbolic link and leaves no file system; the tree may change under it at any time, also by
//! somebody who wants to mislead.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

/// What is deeper is not counted: each level above holds a descriptor.
const DEEPEST: usize = 512;

/// The unit of `st_blocks`, whatever the file system's block is (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

struct Walk {
    device: u64,
    usage: Usage,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    /// Directories still to be read, each by its parent and its name.
    pending: Vec<Pending>,
}

struct Pending {
    parent: Rc<OwnedFd>,
    name: CString,
    depth: usize,
}

/// Of the tree below `dir`, itself included. Blocks for as long as that takes.
pub(super) fn usage(dir: &Path) -> io::Result<Usage> {
    let root = open_dir(CWD, dir)?;
    let facts = fstat(&root)?;
    let mut walk = Walk {
        device: facts.st_dev,
        usage: Usage::default(),
        linked: HashSet::new(),
        pending: vec![],
    };
    walk.count(&facts);
    walk.read(root, 0)?;
    while let Some(Pending { parent, name, depth }) = walk.pending.pop() {
        match open_dir(parent.as_fd(), &*name) {
            Ok(dir) => walk.read(dir, depth)?,
            Err(error) if is_change(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(walk.usage)
}

impl Walk {
    fn read(&mut self, dir: OwnedFd, depth: usize) -> Result<(), Errno> {
        let entries = Dir::read_from(&dir)?;
        let parent = Rc::new(dir);
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_change(error) => return Ok(()),
                Err(error) => return Err(error),
            };
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            match statat(&parent, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(facts) => self.entry(&parent, entry.file_name().to_owned(), depth, &facts),
                Err(error) if is_change(error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: &Rc<OwnedFd>, name: CString, depth: usize, facts: &Stat) {
        if facts.st_dev != self.device {
            return;
        }
        self.count(facts);
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory && depth < DEEPEST {
            self.pending.push(Pending { parent: Rc::clone(parent), name, depth: depth + 1 });
        }
    }

    fn count(&mut self, facts: &Stat) {
        let directory = FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
        if !directory && facts.st_nlink > 1 && !self.linked.insert(facts.st_ino) {
            return;
        }
        self.usage.inodes += 1;
        // Never negative; the kernel's type is signed for history's sake.
        self.usage.bytes += u64::try_from(facts.st_blocks).unwrap_or(0) * BLOCK_BYTES;
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// It was removed, or became something else, while we looked.
fn is_change(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_tree_takes_what_du_says_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs_err::create_dir_all(root.join("a/b/c")).unwrap();
        fs_err::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs_err::write(root.join("a/b/small"), "x").unwrap();
        fs_err::hard_link(root.join("a/file"), root.join("a/b/linked")).unwrap();
        symlink("/usr", root.join("a/usr")).unwrap();
        symlink("..", root.join("a/b/loop")).unwrap();
        fs_err::File::create(root.join("sparse")).unwrap().set_len(1 << 30).unwrap();

        let found = usage(root).unwrap();
        let du = |flag: &str| -> u64 {
            let output = Command::new("du").args(["-sx", flag]).arg(root).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert_eq!(found, Usage { bytes: du("-B1"), inodes: du("--inodes") });
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn a_tree_deeper_than_we_hold_descriptors_for_is_counted_as_far_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open_dir(CWD, dir.path()).unwrap();
        for _ in 0..DEEPEST + 10 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_dir(at.as_fd(), "d").unwrap();
        }
        assert_eq!(usage(dir.path()).unwrap().inodes, DEEPEST as u64 + 2);
    }

    #[test]
    fn a_tree_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(usage(&dir.path().join("absent")).is_err());
    }
}
