//! A layer's archive becomes a directory that overlayfs can mount.
//!
//! The archive is foreign: the `tar` crate parses it and nothing more. Every place is found and
//! made here, beneath the layer's root (see [`root`]). Layers are unpacked each by itself: what
//! lower layers hold is not looked at.

mod attributes;
mod name;
mod root;
mod sparse;
mod usage;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, linkat, makedev, mknodat, open, openat,
    symlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use attributes::{Attributes, malformed};
use name::{Meaning, Outside};
use root::{Former, Root, look, split};
use sparse::{Sparse, names_directory};

pub(crate) use root::{is_whiteout, open_directory};
pub use usage::Usage;
pub(crate) use usage::measure;

/// Files are copied in pieces of this size.
const PIECE: usize = 256 << 10;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("entry {0:?} points outside the layer")]
    Escapes(PathBuf),
    #[error("entry {entry:?}")]
    Entry { entry: PathBuf, source: io::Error },
    #[error("archive")]
    Archive(#[source] io::Error),
    #[error("root directory")]
    Root(#[source] io::Error),
}

/// What is known of a layer once it is unpacked.
#[derive(Debug, PartialEq)]
pub(crate) struct Unpacked {
    /// Directories that the archive did not list, but that its entries needed, relative to the
    /// root and sorted; empty is the root itself. Their owner and mode are lower layers' business.
    pub(crate) invented: Vec<PathBuf>,
    pub(crate) usage: Usage,
}

/// Unpacks `archive` (uncompressed) into the existing empty directory `into`. Reads to the
/// archive's end mark, not to the stream's end.
pub(crate) fn unpack(archive: impl Read, into: &Path) -> Result<Unpacked, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(into, flags, Mode::empty()).map_err(|error| UnpackError::Root(error.into()))?;
    let top = fd.try_clone().map_err(UnpackError::Root)?;
    let mut unpacker =
        Unpacker { root: Root::new(fd), directories: Vec::new(), buffer: vec![0; PIECE] };
    let mut archive = Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(entry.map_err(UnpackError::Archive)?)?;
    }
    unpacker.finish(&top)
}

struct Unpacker {
    root: Root,
    /// Listed directories and their times, which what is put into them would change.
    directories: Vec<(PathBuf, Timespec)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let header_name = entry.path_bytes().into_owned();
        let failed = |source: io::Error, name: &[u8]| {
            let entry = PathBuf::from(String::from_utf8_lossy(name).into_owned());
            UnpackError::Entry { entry, source }
        };
        let sparse = Sparse::of(&mut entry).map_err(|error| failed(error, &header_name))?;
        let true_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let name = true_name.as_deref().unwrap_or(&header_name);
        let path = name::clean(name).map_err(|Outside| {
            UnpackError::Escapes(PathBuf::from(String::from_utf8_lossy(name).into_owned()))
        })?;
        match name::meaning(&path) {
            Meaning::Entry => {
                let place = Place { path: &path, is_directory_name: names_directory(name) };
                return match self.place(&mut entry, place, sparse) {
                    Ok(()) => Ok(()),
                    Err(Failure::Outside) => Err(UnpackError::Escapes(path)),
                    Err(Failure::Io(source)) => Err(UnpackError::Entry { entry: path, source }),
                };
            }
            Meaning::Whiteout(hidden) => self.root.whiteout(&path.with_file_name(hidden)),
            Meaning::Opaque => split(&path).and_then(|(parent, _)| self.root.opaque(parent)),
            Meaning::Ignored => Ok(()),
        }
        .map_err(|error| failed(error, name))
    }

    fn place(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        place: Place<'_>,
        sparse: Option<Sparse>,
    ) -> Result<(), Failure> {
        match entry.header().entry_type() {
            EntryType::Directory => Ok(self.directory(entry, place.path)?),
            // Archives of the oldest format have no other way to say it.
            EntryType::Regular if place.is_directory_name => Ok(self.directory(entry, place.path)?),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                Ok(self.file(entry, place.path, sparse)?)
            }
            EntryType::Link => self.link(entry, place.path),
            EntryType::Symlink => Ok(self.symlink(entry, place.path)?),
            EntryType::Char => Ok(self.node(entry, place.path, FileType::CharacterDevice)?),
            EntryType::Block => Ok(self.node(entry, place.path, FileType::BlockDevice)?),
            EntryType::Fifo => Ok(self.node(entry, place.path, FileType::Fifo)?),
            // Comments for the whole archive; what matters is repeated for each entry.
            EntryType::XGlobalHeader => Ok(()),
            other => Err(malformed(&format!("entry type {other:?}")).into()),
        }
    }

    fn directory(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let attributes = Attributes::of(entry)?;
        let directory = self.root.listed_directory(path)?;
        attributes.apply(directory.as_fd())?;
        self.directories.push((path.to_owned(), attributes.modified));
        Ok(())
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        sparse: Option<Sparse>,
    ) -> io::Result<()> {
        let attributes = Attributes::of(entry)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(path, |directory, name| {
            openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let file = File::from(file);
        match sparse {
            Some(sparse) => sparse.write(entry, &file)?,
            None => self.copy(entry, &file)?,
        }
        attributes.apply(file.as_fd())
    }

    fn copy(&mut self, entry: &mut Entry<'_, impl Read>, mut file: &File) -> io::Result<()> {
        let size = entry.size();
        let is_sparse = entry.header().entry_type().is_gnu_sparse();
        if is_sparse {
            file.set_len(size)?;
        }
        let mut copied = 0;
        while copied < size {
            let length = fill(entry, &mut self.buffer)?;
            let piece = &self.buffer[..length];
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // The parser fills holes with zeros; they become holes again.
            if is_sparse && piece.iter().all(|byte| *byte == 0) {
                io::Seek::seek(&mut file, io::SeekFrom::Current(length as i64))?;
            } else {
                file.write_all(piece)?;
            }
            copied += length as u64;
        }
        Ok(())
    }

    fn symlink(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let attributes = Attributes::of(entry)?;
        let target = entry.link_name_bytes().ok_or_else(|| malformed("link"))?.into_owned();
        self.make(path, |directory, name| symlinkat(target.as_slice(), directory, name))?;
        let (parent, name) = split(path)?;
        attributes.apply_at(self.root.directory(parent)?.as_fd(), name, true)
    }

    fn node(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        kind: FileType,
    ) -> io::Result<()> {
        let attributes = Attributes::of(entry)?;
        let header = entry.header();
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(
                header.device_major()?.unwrap_or_default(),
                header.device_minor()?.unwrap_or_default(),
            ),
        };
        self.make(path, |directory, name| {
            mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, device)
        })?;
        let (parent, name) = split(path)?;
        attributes.apply_at(self.root.directory(parent)?.as_fd(), name, false)
    }

    fn link(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), Failure> {
        let target = entry.link_name_bytes().ok_or_else(|| malformed("link"))?;
        let target = name::clean(&target).map_err(|Outside| Failure::Outside)?;
        let (target_parent, target_name) = split(&target)?;
        // Not `directory`: what is not there shall not be made for it.
        let from = match target_parent.as_os_str().is_empty() {
            true => self.root.directory(target_parent)?,
            false => self.root.open(target_parent).map_err(io::Error::from)?.into(),
        };
        let (parent, name) = split(path)?;
        let existing = look(&*self.root.directory(parent)?, name)?;
        if let (Some(existing), Some(linked)) = (existing, look(&from, target_name)?)
            && (existing.st_dev, existing.st_ino) == (linked.st_dev, linked.st_ino)
        {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW a link to a symlink is that symlink, as in the archive.
        Ok(self.make(path, |directory, name| {
            linkat(&*from, target_name, directory, name, AtFlags::empty())
        })?)
    }

    /// Makes something at `path`; what is there already makes way.
    fn make<T>(
        &mut self,
        path: &Path,
        make: impl Fn(&OwnedFd, &std::ffi::OsStr) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let (parent, name) = split(path)?;
        let directory = self.root.directory(parent)?;
        match make(&directory, name) {
            Err(Errno::EXIST) => {
                let former = self.root.clear(&directory, path)?;
                debug_assert_ne!(former, Former::Nothing);
                Ok(make(&directory, name)?)
            }
            made => Ok(made?),
        }
    }

    fn finish(self, top: &OwnedFd) -> Result<Unpacked, UnpackError> {
        for (path, modified) in &self.directories {
            let set = if path.as_os_str().is_empty() {
                attributes::set_modified(top, *modified)
            } else {
                match self.root.open(path) {
                    Ok(directory) => attributes::set_modified(directory, *modified),
                    // A later entry took its place.
                    Err(_) => Ok(()),
                }
            };
            set.map_err(|source| UnpackError::Entry { entry: path.clone(), source })?;
        }
        let invented = self.root.finish().map_err(UnpackError::Root)?;
        let usage = measure(top.as_fd()).map_err(UnpackError::Root)?;
        Ok(Unpacked { invented, usage })
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a Path,
    is_directory_name: bool,
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
