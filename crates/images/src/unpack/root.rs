//! A layer's root directory, and places beneath it.
//!
//! The kernel resolves paths with the layer's root as their root (`openat2` with `RESOLVE_IN_ROOT`):
//! whatever links an archive makes, they lead nowhere else. Where something may have to be made on
//! the way, a path with links is walked here, a directory at a time, and means what it means to the
//! kernel. What is noted of places is noted under paths without links.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, XattrFlags, fchmod,
    fsetxattr, mkdirat, mknodat, openat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::set_modified;
use super::limits::Limits;
use super::notes::Notes;

/// How overlayfs marks a directory that hides those of the layers below.
const OPAQUE: &str = "trusted.overlay.opaque";
/// The kernel follows as many links in one path.
const MOST_LINKS: u32 = 40;

/// The kernel answers EAGAIN if anything on the node is renamed or mounted while it resolves a `..`.
const TRIES: usize = 100;

pub(crate) const INVENTED_MODE: Mode = Mode::from_raw_mode(0o755);

/// What was in a place that a new entry takes.
#[derive(Debug, PartialEq)]
pub(crate) enum Former {
    Nothing,
    Whiteout,
    Other,
}

/// What has to be known of a layer beside what is in it; relative to its root and sorted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Noted {
    /// Directories that the archive did not list, but that its entries needed; empty is the root
    /// itself. Their owner and mode are lower layers' business.
    pub(crate) invented: Vec<PathBuf>,
    /// Directories that hold whiteouts.
    pub(crate) whiteouts_in: Vec<PathBuf>,
}

/// A directory beneath the root.
pub(crate) struct Place {
    pub(crate) fd: OwnedFd,
    /// No component of it is a link.
    path: PathBuf,
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) struct Root {
    top: Rc<Place>,
    limits: Limits,
    /// Archives list a directory's files one after the other: the last parent is kept open.
    last: Option<(PathBuf, Rc<Place>)>,
    notes: Notes,
}

impl Root {
    /// Begins with the empty directory `fd`, whose own attributes the archive may not list.
    pub(crate) fn new(fd: OwnedFd, limits: Limits) -> io::Result<Self> {
        let mut notes = Notes::new(limits);
        notes.at(Path::new(""))?.invented = true;
        let top = Rc::new(Place { fd, path: PathBuf::new() });
        Ok(Self { top, limits, last: None, notes })
    }

    /// The directory at `path`, made if need be, like its parents and what links lead to.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<Rc<Place>> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.top));
        }
        if let Some((last, place)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(place));
        }
        let place = match self.open_with(path, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Rc::new(Place { fd, path: path.to_owned() }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path)?,
            Err(error) => return Err(error.into()),
        };
        self.last = Some((path.to_owned(), Rc::clone(&place)));
        Ok(place)
    }

    /// Opens the directory at `path` as a process with this root would.
    pub(crate) fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_with(path, ResolveFlags::empty())
    }

    fn open_with(&self, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || openat2(&self.top, path, flags, Mode::empty(), resolve);
        let mut tries = iter::repeat_with(open).take(TRIES);
        tries.find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    }

    /// Goes to the directory at `path` as the kernel would, and makes what is missing on the way.
    fn walk(&mut self, path: &Path) -> io::Result<Rc<Place>> {
        let mut rest = components(path.as_os_str().as_bytes());
        // The directories from the root to here. None is a link, so `..` is the one before.
        let mut way: Vec<Rc<Place>> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                way.pop();
                continue;
            }
            let here = Rc::clone(way.last().unwrap_or(&self.top));
            match self.step(&here, &name)? {
                Step::Into(place) => way.push(place.into()),
                Step::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        way.clear();
                    }
                    rest.extend(components(&target));
                    self.limits.check_depth(rest.len())?;
                }
            }
        }
        Ok(way.pop().unwrap_or_else(|| Rc::clone(&self.top)))
    }

    /// Looks for `name` in the directory `here`, and makes a directory of it if nothing is there.
    fn step(&mut self, here: &Place, name: &OsStr) -> io::Result<Step> {
        let path = here.path.join(name);
        self.limits.check_path(&path)?;
        let fd = match look(here, name)? {
            None => self.invent(here, name, &path)?,
            Some(stat) if is_whiteout(&stat) => {
                unlinkat(here, name, AtFlags::empty())?;
                self.notes.forget(&path);
                let fd = self.invent(here, name, &path)?;
                self.make_opaque(fd.as_fd(), &path)?;
                fd
            }
            Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => open_directory(here, name)?,
                FileType::Symlink => {
                    return Ok(Step::Link(readlinkat(here, name, Vec::new())?.into_bytes()));
                }
                _ => return Err(Errno::NOTDIR.into()),
            },
        };
        Ok(Step::Into(Place { fd, path }))
    }

    /// Makes a directory that an entry lies in, but that the archive has not listed (yet).
    fn invent(&mut self, here: &Place, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
        // Before it is made: there is no directory that is not noted.
        self.notes.at(path)?.invented = true;
        mkdirat(here, name, INVENTED_MODE)?;
        let fd = open_directory(here, name)?;
        // Past the umask.
        fchmod(&fd, INVENTED_MODE)?;
        Ok(fd)
    }

    /// The directory that the archive lists at `path`: made, or found as made before. It gets the
    /// time `modified` at the end.
    pub(crate) fn listed_directory(
        &mut self,
        path: &Path,
        modified: Timespec,
    ) -> io::Result<Rc<Place>> {
        let place = match path.as_os_str().is_empty() {
            true => Rc::clone(&self.top),
            false => self.listed_below(path)?.into(),
        };
        let note = self.notes.at(&place.path)?;
        (note.listed, note.invented) = (Some(modified), false);
        Ok(place)
    }

    fn listed_below(&mut self, path: &Path) -> io::Result<Place> {
        let (parent, name) = split(path)?;
        let directory = self.directory(parent)?;
        let path = directory.path.join(name);
        let existing = look(&*directory, name)?;
        let is_directory =
            existing.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
        if is_directory {
            return Ok(Place { fd: open_directory(&*directory, name)?, path });
        }
        let former = self.clear(&directory, name)?;
        mkdirat(&*directory, name, Mode::RWXU)?;
        let fd = open_directory(&*directory, name)?;
        if former == Former::Whiteout {
            self.make_opaque(fd.as_fd(), &path)?;
        }
        Ok(Place { fd, path })
    }

    /// Frees the place `name` in `directory` for a new entry: of two entries the later counts.
    pub(crate) fn clear(&mut self, directory: &Place, name: &OsStr) -> io::Result<Former> {
        let Some(stat) = look(directory, name)? else { return Ok(Former::Nothing) };
        let path = directory.path.join(name);
        // What is open, or was noted, may be beneath or beyond what goes.
        self.last = None;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let limits = Limits::default();
            let mut refuse = |_: BorrowedFd<'_>, _: &OsStr| {
                Ok(limits.check_depth(limits.depth.saturating_add(1))?)
            };
            remove_tree(directory.as_fd(), name, limits.depth, &mut refuse)?;
            self.notes.forget(&path);
            return Ok(Former::Other);
        }
        unlinkat(directory, name, AtFlags::empty())?;
        self.notes.forget(&path);
        Ok(if is_whiteout(&stat) { Former::Whiteout } else { Former::Other })
    }

    /// Hides the lower layers' `path`. What this layer itself has there stays: a whiteout speaks
    /// of lower layers alone, wherever in the archive it stands.
    pub(crate) fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let directory = self.directory(parent)?;
        let path = directory.path.join(name);
        match look(&*directory, name)? {
            None => {
                self.notes.at(&path)?.whiteout = true;
                mknodat(&*directory, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                self.make_opaque(open_directory(&*directory, name)?.as_fd(), &path)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything that the lower layers have in the directory `path`.
    pub(crate) fn opaque(&mut self, path: &Path) -> io::Result<()> {
        let directory = self.directory(path)?;
        self.make_opaque(directory.as_fd(), &directory.path)
    }

    fn make_opaque(&mut self, directory: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?;
        self.notes.at(path)?.opaque = true;
        Ok(())
    }

    /// Ends the layer. Whiteouts in opaque directories go: there is nothing left to hide, and
    /// overlayfs shows them when it need not merge. Then nothing more changes in directories, and
    /// they get their times.
    pub(crate) fn finish(self) -> io::Result<Noted> {
        let mut whiteouts_in = BTreeSet::new();
        for whiteout in self.notes.those(|note| note.whiteout) {
            let (parent, name) = split(&whiteout)?;
            let is_opaque = |dir| self.notes.get(dir).is_some_and(|note| note.opaque);
            if parent.ancestors().any(is_opaque) {
                let directory = self.open_with(parent, ResolveFlags::NO_SYMLINKS)?;
                unlinkat(directory, name, AtFlags::empty())?;
            } else {
                whiteouts_in.insert(parent.to_owned());
            }
        }
        for (path, note) in self.notes.iter() {
            if let Some(modified) = note.listed {
                set_modified(self.open_with(path, ResolveFlags::NO_SYMLINKS)?, modified)?;
            }
        }
        let invented = self.notes.those(|note| note.invented);
        Ok(Noted { invented, whiteouts_in: whiteouts_in.into_iter().collect() })
    }
}

/// What there is on the way to a directory.
enum Step {
    Into(Place),
    Link(Vec<u8>),
}

/// The components of a path or a link's target, the last first.
fn components(path: &[u8]) -> Vec<OsString> {
    let components = path.rsplit(|byte| *byte == b'/');
    let components = components.filter(|component| !matches!(*component, b"" | b"."));
    components.map(|component| OsStr::from_bytes(component).to_owned()).collect()
}

/// A path's parent and last component; the root has none.
pub(crate) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        (_, None) | (None, _) => Err(Errno::ISDIR.into()),
    }
}

/// What `name` in `directory` is, itself and not what it may point to.
pub(crate) fn look(directory: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
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

/// Removes the directory `name` and all in it, following nothing. Directories that lie deeper than
/// `levels` are left to `deep`, which takes them away or refuses.
pub(crate) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    levels: usize,
    deep: &mut dyn FnMut(BorrowedFd<'_>, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    if levels == 0 {
        return deep(parent, name);
    }
    let directory = open_directory(parent, name)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = OsStr::from_bytes(entry.file_name().to_bytes());
        if child == "." || child == ".." {
            continue;
        }
        match unlinkat(&directory, child, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => remove_tree(directory.as_fd(), child, levels - 1, deep)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn directories_are_found_while_others_are_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two, top] = ["one", "two", "top"].map(|name| directory.path().join(name));
        fs_err::create_dir(&one).unwrap();
        fs_err::create_dir_all(top.join("d")).unwrap();
        std::os::unix::fs::symlink("d/..".to_owned() + &"/d/..".repeat(3), top.join("l")).unwrap();
        let root =
            Root::new(open_directory(rustix::fs::CWD, top.as_os_str()).unwrap(), Limits::default());
        let root = root.unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    fs_err::rename(&one, &two).unwrap();
                    fs_err::rename(&two, &one).unwrap();
                }
            });
            let failed = (0..20000).find_map(|_| root.open(Path::new("l")).err());
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
