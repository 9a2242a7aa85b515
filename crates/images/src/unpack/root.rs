//! A layer's root directory, and places beneath it.
//!
//! Every path is resolved by the kernel with the layer's root as its root (`openat2` with
//! `RESOLVE_IN_ROOT`): whatever links an archive makes, they lead nowhere else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, chmodat, fsetxattr,
    mkdirat, mknodat, openat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

/// How overlayfs marks a directory that hides those of the layers below.
const OPAQUE: &str = "trusted.overlay.opaque";
/// The kernel follows as many links in one path.
const MOST_LINKS: u32 = 40;

pub(crate) const INVENTED_MODE: Mode = Mode::from_raw_mode(0o755);

/// What was in a place that a new entry takes.
#[derive(Debug, PartialEq)]
pub(crate) enum Former {
    Nothing,
    Whiteout,
    Other,
}

pub(crate) struct Root {
    fd: Rc<OwnedFd>,
    /// Archives list a directory's files one after the other: the last parent is kept open.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Directories that entries needed and the archive has not listed.
    invented: BTreeSet<PathBuf>,
    opaque: BTreeSet<PathBuf>,
    whiteouts: BTreeSet<PathBuf>,
}

impl Root {
    /// Begins with the empty directory `fd`, whose own attributes the archive may not list.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Rc::new(fd),
            last: None,
            invented: BTreeSet::from([PathBuf::new()]),
            opaque: BTreeSet::new(),
            whiteouts: BTreeSet::new(),
        }
    }

    /// The directory at `path`, made if need be, like its parents.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        self.directory_through(path, MOST_LINKS)
    }

    fn directory_through(&mut self, path: &Path, links: u32) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.fd));
        }
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open(path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.invent(path, links)?,
            Err(error) => return Err(error.into()),
        };
        self.last = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Opens the directory at `path` as a process with this root would.
    pub(crate) fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.fd, path, flags, Mode::empty(), resolve)
    }

    /// Makes a directory that an entry lies in, but that the archive has not listed (yet).
    fn invent(&mut self, path: &Path, links: u32) -> io::Result<Rc<OwnedFd>> {
        let (parent, name) = split(path)?;
        let directory = self.directory_through(parent, links)?;
        match look(&directory, name)? {
            None => {}
            Some(stat) if is_whiteout(&stat) => {
                unlinkat(&*directory, name, AtFlags::empty())?;
                self.whiteouts.remove(path);
                self.opaque.insert(path.to_owned());
            }
            // It leads to what is not there: what it leads to is made, as the path says.
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() && links > 0 => {
                let target = readlinkat(&*directory, name, Vec::new())?;
                let target = resolved(parent, target.as_bytes());
                return self.directory_through(&target, links - 1);
            }
            Some(_) => return Err(Errno::NOTDIR.into()),
        }
        mkdirat(&*directory, name, INVENTED_MODE)?;
        // Past the umask.
        chmodat(&*directory, name, INVENTED_MODE, AtFlags::empty())?;
        self.invented.insert(path.to_owned());
        let fd = open_directory(&*directory, name)?;
        if self.opaque.contains(path) {
            mark_opaque(fd.as_fd())?;
        }
        Ok(Rc::new(fd))
    }

    /// The directory that the archive lists at `path`: made, or found as made before.
    pub(crate) fn listed_directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            self.invented.remove(path);
            return Ok(Rc::clone(&self.fd));
        }
        let (parent, name) = split(path)?;
        let directory = self.directory(parent)?;
        let existing = look(&directory, name)?;
        let is_directory =
            existing.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
        if !is_directory {
            let former = self.clear(&directory, path)?;
            mkdirat(&*directory, name, Mode::RWXU)?;
            if former == Former::Whiteout {
                mark_opaque(open_directory(&*directory, name)?.as_fd())?;
                self.opaque.insert(path.to_owned());
            }
        }
        self.invented.remove(path);
        Ok(Rc::new(open_directory(&*directory, name)?))
    }

    /// Frees the place `path` in `directory` for a new entry: of two entries the later counts.
    pub(crate) fn clear(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<Former> {
        let name = path.file_name().unwrap_or_default();
        let Some(stat) = look(directory, name)? else { return Ok(Former::Nothing) };
        // What is open, or was noted, may be beneath or beyond what goes.
        self.last = None;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            remove_tree(directory.as_fd(), name)?;
            for noted in [&mut self.invented, &mut self.opaque, &mut self.whiteouts] {
                noted.retain(|noted| !noted.starts_with(path));
            }
            return Ok(Former::Other);
        }
        unlinkat(directory, name, AtFlags::empty())?;
        self.whiteouts.remove(path);
        Ok(if is_whiteout(&stat) { Former::Whiteout } else { Former::Other })
    }

    /// Hides the lower layers' `path`. What this layer itself has there stays: a whiteout speaks
    /// of lower layers alone, wherever in the archive it stands.
    pub(crate) fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let directory = self.directory(parent)?;
        match look(&directory, name)? {
            None => {
                mknodat(&*directory, name, FileType::CharacterDevice, Mode::empty(), 0)?;
                self.whiteouts.insert(path.to_owned());
            }
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                mark_opaque(open_directory(&*directory, name)?.as_fd())?;
                self.opaque.insert(path.to_owned());
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything that the lower layers have in the directory `path`.
    pub(crate) fn opaque(&mut self, path: &Path) -> io::Result<()> {
        let directory = self.directory(path)?;
        mark_opaque(directory.as_fd())?;
        self.opaque.insert(path.to_owned());
        Ok(())
    }

    /// Ends the layer. Whiteouts in opaque directories go: there is nothing left to hide, and
    /// overlayfs shows them when it need not merge. Returns the directories still invented.
    pub(crate) fn finish(self) -> io::Result<Vec<PathBuf>> {
        for whiteout in &self.whiteouts {
            let hidden_anyway = whiteout.ancestors().skip(1).any(|dir| self.opaque.contains(dir));
            if hidden_anyway {
                let (parent, name) = split(whiteout)?;
                unlinkat(self.open(parent)?, name, AtFlags::empty())?;
            }
        }
        Ok(self.invented.into_iter().collect())
    }
}

/// A path's parent and last component; the root has none.
pub(crate) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        (_, None) | (None, _) => Err(Errno::ISDIR.into()),
    }
}

/// What `target`, found in a link in `parent`, means beneath the root, where `..` ends.
fn resolved(parent: &Path, target: &[u8]) -> PathBuf {
    let mut path = if target.starts_with(b"/") { PathBuf::new() } else { parent.to_owned() };
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            component => path.push(OsStr::from_bytes(component)),
        }
    }
    path
}

/// What `name` in `directory` is, itself and not what it may point to.
pub(crate) fn look(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

pub(crate) fn open_directory(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

fn mark_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Removes the directory `name` and all in it, following nothing.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let directory = open_directory(parent, name)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = OsStr::from_bytes(entry.file_name().to_bytes());
        if child == "." || child == ".." {
            continue;
        }
        match unlinkat(&directory, child, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => remove_tree(directory.as_fd(), child)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
