//! A layer's archive becomes a directory that overlayfs can mount.
//!
//! The archive is foreign: the `tar` crate parses its headers and nothing more. Every place is found and
//! made here, beneath the layer's root (see [`root`]). Layers are unpacked each by itself: what
//! lower layers hold is not looked at.

mod archive;
mod attributes;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod limits;
mod name;
mod notes;
mod root;
mod single;
mod sparse;
mod usage;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, linkat, makedev, mknodat, open, openat, symlinkat,
};
use rustix::io::Errno;
use tar::EntryType;

use archive::{Member, Members};
use attributes::{Attributes, malformed};
use name::{Meaning, Outside};
use root::{Former, Place, Root, look, split};

pub use limits::Limits;
pub(crate) use limits::TooLarge;
pub(crate) use root::{Noted, is_whiteout, open_directory, remove_tree};
pub(crate) use single::write_file;
pub use usage::Usage;
pub(crate) use usage::{Measured, measure};

/// Files are copied in pieces of this size.
const PIECE: usize = 256 << 10;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("entry {0:?} points outside the layer")]
    Escapes(PathBuf),
    #[error("entry {entry:?}")]
    Entry { entry: PathBuf, source: io::Error },
    #[error("entry {entry:?}")]
    TooLarge { entry: PathBuf, source: TooLarge },
    #[error("archive")]
    Archive(#[source] io::Error),
    #[error("root directory")]
    Root(#[source] io::Error),
}

/// What is known of a layer once it is unpacked.
#[derive(Debug, PartialEq)]
pub(crate) struct Unpacked {
    pub(crate) noted: Noted,
    pub(crate) measured: Measured,
}

/// Unpacks `archive` (uncompressed) into the existing empty directory `into`. Reads to the
/// archive's end mark, not to the stream's end.
pub(crate) fn unpack(
    archive: impl Read,
    into: &Path,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(into, flags, Mode::empty()).map_err(|error| UnpackError::Root(error.into()))?;
    let top = fd.try_clone().map_err(UnpackError::Root)?;
    let mut unpacker = Unpacker {
        root: Root::new(fd, limits).map_err(UnpackError::Root)?,
        buffer: vec![0; PIECE],
        limits,
        entries: 0,
    };
    let mut members = Members::new(archive);
    while let Some(member) = members.next().map_err(UnpackError::Archive)? {
        unpacker.member(member, &mut members)?;
    }
    unpacker.finish(&top)
}

struct Unpacker {
    root: Root,
    buffer: Vec<u8>,
    limits: Limits,
    entries: u64,
}

impl Unpacker {
    fn member(&mut self, member: Member, data: &mut impl Read) -> Result<(), UnpackError> {
        let shown = || PathBuf::from(String::from_utf8_lossy(&member.name).into_owned());
        let path = name::clean(&member.name).map_err(|Outside| UnpackError::Escapes(shown()))?;
        self.entries += 1;
        let within = self.limits.check_path(&path).and(self.limits.check_entries(self.entries));
        within.map_err(|source| UnpackError::TooLarge { entry: path.clone(), source })?;
        let done = match name::meaning(&path) {
            Meaning::Entry => self.place(member, &path, data),
            Meaning::Whiteout(hidden) => {
                self.root.whiteout(&path.with_file_name(hidden)).map_err(Failure::Io)
            }
            Meaning::Opaque => {
                split(&path).and_then(|(parent, _)| self.root.opaque(parent)).map_err(Failure::Io)
            }
            Meaning::Ignored => Ok(()),
        };
        done.map_err(|failure| match failure {
            Failure::Outside => UnpackError::Escapes(path),
            Failure::Io(source) => match TooLarge::within(&source).cloned() {
                Some(source) => UnpackError::TooLarge { entry: path, source },
                None => UnpackError::Entry { entry: path, source },
            },
        })
    }

    fn place(&mut self, member: Member, path: &Path, data: &mut impl Read) -> Result<(), Failure> {
        match member.header.entry_type() {
            EntryType::Directory => self.directory(&member, path)?,
            // Archives of the oldest format have no other way to say it.
            EntryType::Regular if member.name.ends_with(b"/") => self.directory(&member, path)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(member, path, data)?;
            }
            EntryType::Link => self.link(&member, path)?,
            EntryType::Symlink => self.symlink(&member, path)?,
            EntryType::Char => self.node(&member, path, FileType::CharacterDevice)?,
            EntryType::Block => self.node(&member, path, FileType::BlockDevice)?,
            EntryType::Fifo => self.node(&member, path, FileType::Fifo)?,
            other => return Err(malformed(&format!("entry type {other:?}")).into()),
        }
        Ok(())
    }

    fn directory(&mut self, member: &Member, path: &Path) -> io::Result<()> {
        let attributes = Attributes::of(member)?;
        let directory = self.root.listed_directory(path, attributes.modified)?;
        attributes.apply(directory.as_fd())?;
        if attributes::is_overlay_opaque(member) {
            self.root.opaque(path)?;
        }
        Ok(())
    }

    fn file(&mut self, member: Member, path: &Path, data: &mut impl Read) -> io::Result<()> {
        let attributes = Attributes::of(&member)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (_, file) = self.make(path, |directory, name| {
            openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let file = File::from(file);
        match member.sparse {
            Some(sparse) => sparse.write(data, &file)?,
            None => self.copy(data, member.size, &file)?,
        }
        attributes.apply(file.as_fd())
    }

    fn copy(&mut self, data: &mut impl Read, size: u64, mut file: &File) -> io::Result<()> {
        let mut copied = 0;
        while copied < size {
            let length = fill(data, &mut self.buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&self.buffer[..length])?;
            copied += length as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, member: &Member, path: &Path) -> io::Result<()> {
        let attributes = Attributes::of(member)?;
        let target = member.link.as_slice();
        let (directory, ()) =
            self.make(path, |directory, name| symlinkat(target, directory, name))?;
        attributes.apply_at(directory.as_fd(), split(path)?.1)
    }

    fn node(&mut self, member: &Member, path: &Path, kind: FileType) -> io::Result<()> {
        let attributes = Attributes::of(member)?;
        let header = &member.header;
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(
                header.device_major()?.unwrap_or_default(),
                header.device_minor()?.unwrap_or_default(),
            ),
        };
        // What overlayfs itself hides things by: layers that are copies of its upper directories
        // have that in the place of `.wh.`.
        if kind.is_char_device() && device == 0 {
            return self.root.whiteout(path);
        }
        let (directory, ()) = self.make(path, |directory, name| {
            mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, device)
        })?;
        attributes.apply_at(directory.as_fd(), split(path)?.1)
    }

    fn link(&mut self, member: &Member, path: &Path) -> Result<(), Failure> {
        let target = name::clean(&member.link).map_err(|Outside| Failure::Outside)?;
        let (target_parent, target_name) = split(&target)?;
        // Not `directory`: what is not there shall not be made for it.
        let from = self.root.open(target_parent).map_err(io::Error::from)?;
        let (parent, name) = split(path)?;
        let existing = look(&*self.root.directory(parent)?, name)?;
        let linked = look(&from, target_name)?;
        // Overlayfs has one inode for many whiteouts, so tar sees links.
        if linked.as_ref().is_some_and(is_whiteout) {
            return Ok(self.root.whiteout(path)?);
        }
        if let (Some(existing), Some(linked)) = (existing, linked)
            && (existing.st_dev, existing.st_ino) == (linked.st_dev, linked.st_ino)
        {
            return Ok(());
        }
        if linked.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
            // The kernel says EPERM, as it does where the node forbids something.
            return Err(malformed("link to a directory").into());
        }
        // Without AT_SYMLINK_FOLLOW a link to a symlink is that symlink, as in the archive.
        self.make(path, |directory, name| {
            linkat(&from, target_name, directory, name, AtFlags::empty())
        })?;
        Ok(())
    }

    /// Makes something at `path`; what is there already makes way. Tells in which directory, for
    /// whatever else is to be done there: what made way may have been part of the path.
    fn make<T>(
        &mut self,
        path: &Path,
        make: impl Fn(&OwnedFd, &std::ffi::OsStr) -> Result<T, Errno>,
    ) -> io::Result<(Rc<Place>, T)> {
        let (parent, name) = split(path)?;
        let directory = self.root.directory(parent)?;
        let made = match make(&directory.fd, name) {
            Err(Errno::EXIST) => {
                let former = self.root.clear(&directory, name)?;
                debug_assert_ne!(former, Former::Nothing);
                make(&directory.fd, name)?
            }
            made => made?,
        };
        Ok((directory, made))
    }

    fn finish(self, top: &OwnedFd) -> Result<Unpacked, UnpackError> {
        let noted = self.root.finish().map_err(UnpackError::Root)?;
        // Links lead to deeper places than paths tell.
        let measured = measure(top.as_fd(), &self.limits).map_err(UnpackError::Root)?;
        Ok(Unpacked { noted, measured })
    }
}

enum Failure {
    Outside,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads until the buffer is full or the entry ends.
fn fill(entry: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match entry.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Opens the directory at an absolute path of the node's own.
pub(crate) fn open_own_directory(path: &Path) -> io::Result<OwnedFd> {
    open_directory(CWD, path.as_os_str())
}

#[cfg(test)]
mod tests;
