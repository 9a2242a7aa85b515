//! The small top layer that gives directories their true owner and mode.
//!
//! A layer may put `tmp/x` into its archive without `tmp`. Unpacked by itself it needs some `tmp`,
//! which overlayfs would show instead of the lower layers' 1777. So what a layer had to invent is
//! noted, and an image where that would show gets one more layer, on top, of nothing but
//! directories with the attributes that unpacking one layer over the other would have given.
//!
//! The same layer has the directories with whiteouts that no other layer has: overlayfs lists the
//! whiteouts of a directory (as names that are not there) unless it merges it with another.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, statat,
};
use rustix::io::Errno;

use crate::unpack::{Noted, is_whiteout, open_directory, open_own_directory};

const OPAQUE: &str = "trusted.overlay.opaque";
/// The kernel's limits on the list of names and on one value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const LARGEST_XATTR: usize = 64 << 10;

/// A layer as it is stacked.
pub(crate) struct Stacked {
    root: OwnedFd,
    invented: BTreeSet<PathBuf>,
    whiteouts_in: Vec<PathBuf>,
}

impl Stacked {
    pub(crate) fn open(root: &Path, noted: Noted) -> io::Result<Self> {
        let Noted { invented, whiteouts_in } = noted;
        let invented = invented.into_iter().collect();
        Ok(Self { root: open_own_directory(root)?, invented, whiteouts_in })
    }
}

/// The directories to be made, parents first, each with one to take the attributes from. Empty
/// if the stack (top first) shows the right ones already.
pub(crate) fn plan(stack: &[Stacked]) -> io::Result<BTreeMap<PathBuf, OwnedFd>> {
    let invented: BTreeSet<_> = stack.iter().flat_map(|layer| &layer.invented).collect();
    let mut plan = BTreeMap::new();
    for path in invented {
        if let Shown { directory: Some(directory), covered: true } = shown(stack, path)? {
            add(&mut plan, stack, path, directory)?;
        }
    }
    // The root is always merged: with the container's own, or by whoever mounts a volume.
    let holding = stack.iter().flat_map(|layer| &layer.whiteouts_in);
    for path in holding.filter(|path| !path.as_os_str().is_empty()) {
        if let (Some(directory), 1) = (shown(stack, path)?.directory, merged(stack, path)?) {
            add(&mut plan, stack, path, directory)?;
        }
    }
    Ok(plan)
}

/// Plans `path`, like `directory`, and its parents.
fn add(
    plan: &mut BTreeMap<PathBuf, OwnedFd>,
    stack: &[Stacked],
    path: &Path,
    directory: OwnedFd,
) -> io::Result<()> {
    for parent in path.ancestors().skip(1) {
        if let Some(directory) = shown(stack, parent)?.directory {
            plan.entry(parent.to_owned()).or_insert(directory);
        }
    }
    plan.insert(path.to_owned(), directory);
    Ok(())
}

/// How many layers' directories are shown as one at `path`.
fn merged(stack: &[Stacked], path: &Path) -> io::Result<usize> {
    let mut directories = 0;
    for layer in stack {
        let found = find(layer.root.as_fd(), path)?;
        directories += usize::from(found.directory.is_some());
        if found.hides_lower {
            break;
        }
    }
    Ok(directories)
}

/// Makes the planned directories in `into`.
pub(crate) fn build(plan: &BTreeMap<PathBuf, OwnedFd>, into: &Path) -> io::Result<()> {
    for path in plan.keys().filter(|path| !path.as_os_str().is_empty()) {
        fs_err::create_dir(into.join(path))?;
    }
    // From the inside out: what is made in a directory changes its time.
    for (path, like) in plan.iter().rev() {
        let directory = File::open(into.join(path))?;
        copy_attributes(like.as_fd(), directory.as_fd())?;
    }
    Ok(())
}

/// What a container sees at a path, if it is a directory.
struct Shown {
    /// The one whose attributes should show: the topmost listed one, else an invented one.
    directory: Option<OwnedFd>,
    /// An invented directory above it shows instead.
    covered: bool,
}

fn shown(stack: &[Stacked], path: &Path) -> io::Result<Shown> {
    let mut invented = None;
    for layer in stack {
        let found = find(layer.root.as_fd(), path)?;
        if let Some(directory) = found.directory {
            if !layer.invented.contains(path) {
                return Ok(Shown { directory: Some(directory), covered: invented.is_some() });
            }
            invented = Some(directory);
        }
        if found.hides_lower {
            break;
        }
    }
    Ok(Shown { directory: invented, covered: false })
}

struct Found {
    directory: Option<OwnedFd>,
    /// What layers below have at this path does not show.
    hides_lower: bool,
}

/// Looks for a directory in one layer. Links are not followed: overlayfs merges by name.
fn find(root: BorrowedFd<'_>, path: &Path) -> io::Result<Found> {
    let mut directory = root.try_clone_to_owned()?;
    let mut hides_lower = is_opaque(directory.as_fd())?;
    for name in path.iter() {
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                directory = open_directory(&directory, name)?;
                hides_lower |= is_opaque(directory.as_fd())?;
            }
            // A whiteout, or something that is no directory.
            Ok(stat) => {
                debug_assert!(is_whiteout(&stat) || !name.is_empty());
                return Ok(Found { directory: None, hides_lower: true });
            }
            Err(Errno::NOENT) => return Ok(Found { directory: None, hides_lower }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Found { directory: Some(directory), hides_lower })
}

fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0; 2];
    match fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_xattrs(from, to)?;
    let modified = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or_default(),
    };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Ok(futimens(to, &Timestamps { last_access, last_modification: modified })?)
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; LARGEST_XATTR];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; LARGEST_XATTR];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Overlayfs' own: this directory hides nothing.
        if name.starts_with(b"trusted.") {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Makes a layer: `path` is a listed directory, `?path` an invented one, `-path` a whiteout,
    /// `=path` a file, `!path` an opaque directory. Listed ones are 1777.
    fn layer(root: &Path, name: &str, content: &[&str]) -> Stacked {
        let root = root.join(name);
        fs_err::create_dir(&root).unwrap();
        let mut invented = vec![];
        for path in content {
            let (kind, path) = path.split_at(usize::from(!path.starts_with(char::is_alphabetic)));
            let place = root.join(path);
            match kind {
                "-" => {
                    let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
                    rustix::fs::mknodat(rustix::fs::CWD, &place, kind, mode, 0).unwrap();
                }
                "=" => fs_err::write(&place, "").unwrap(),
                _ => {
                    if !path.is_empty() {
                        fs_err::create_dir(&place).unwrap();
                    }
                    let mode = if kind == "?" { 0o755 } else { 0o1777 };
                    let mode = std::fs::Permissions::from_mode(mode);
                    fs_err::set_permissions(&place, mode).unwrap();
                    if kind == "?" {
                        invented.push(PathBuf::from(path));
                    }
                    if kind == "!" {
                        let directory = File::open(&place).unwrap();
                        fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty()).unwrap();
                    }
                }
            }
        }
        let whiteouts = content.iter().filter_map(|path| path.strip_prefix('-'));
        let whiteouts_in = whiteouts.map(|path| Path::new(path).parent().unwrap().to_owned());
        let noted = Noted { invented, whiteouts_in: whiteouts_in.collect() };
        Stacked::open(&root, noted).unwrap()
    }

    #[test]
    fn only_directories_that_would_show_wrongly_are_made() {
        // Layers top first; what is planned.
        for (layers, expected) in [
            (&[&["?tmp"][..], &["tmp"]][..], &["", "tmp"][..]),
            (&[&["tmp"], &["?tmp"], &["tmp"]], &[]),
            (&[&["?tmp"], &[], &["tmp"]], &["", "tmp"]),
            (&[&["?tmp"], &["-tmp"], &["tmp"]], &[]),
            (&[&["?tmp"], &["=tmp"], &["tmp"]], &[]),
            (&[&["-tmp"], &["?tmp"], &["tmp"]], &[]),
            (&[&["?a", "?a/b"], &["a", "!a/b"], &["a", "a/b"]], &["", "a", "a/b"]),
            (&[&["?a", "?a/b"], &["!a"], &["a", "a/b"]], &["", "a"]),
            (&[&["?a", "?a/b"], &["?a", "a/b"]], &["", "a", "a/b"]),
            (&[&["?a"]], &[]),
            (&[&["?"], &["x"]], &[""]),
            (&[&[], &["?"]], &[]),
            (&[&["a", "-a/x"], &[]], &["", "a"]),
            (&[&["a", "-a/x"], &["a"]], &[]),
            (&[&["a"], &["a", "-a/x"]], &[]),
            (&[&["-a"], &["a", "-a/x"]], &[]),
            (&[&["-x"], &[]], &[]),
        ] {
            let root = tempfile::tempdir().unwrap();
            let stack: Vec<_> = layers
                .iter()
                .enumerate()
                .map(|(number, content)| layer(root.path(), &number.to_string(), content))
                .collect();
            let plan = plan(&stack).unwrap();
            let paths: Vec<_> = plan.keys().map(|path| path.to_str().unwrap()).collect();
            assert_eq!(paths, expected, "{layers:?}");

            let into = root.path().join("made");
            fs_err::create_dir(&into).unwrap();
            build(&plan, &into).unwrap();
            for path in expected.iter().filter(|path| ["tmp", "a/b"].contains(*path)) {
                let mode = fs_err::metadata(into.join(path)).unwrap().permissions().mode();
                assert_eq!(mode & 0o7777, 0o1777, "{layers:?} {path}");
            }
        }
    }
}
