//! A blob that is no archive becomes a layer of one file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, fchmod, futimens, openat};

use super::root::{Root, split};
use super::{Limits, Unpacked, measure, open_own_directory};

const MODE: Mode = Mode::from_raw_mode(0o644);

/// The same for everybody who unpacks the blob: it comes without a time.
const MODIFIED: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Writes `content` to the file `path`, which has only plain components, below the existing empty
/// directory `into`.
pub(crate) fn write_file(
    content: &mut impl Read,
    path: &Path,
    into: &Path,
    limits: Limits,
) -> io::Result<Unpacked> {
    limits.check_path(path)?;
    let top = open_own_directory(into)?;
    let mut root = Root::new(top.try_clone()?, limits)?;
    let (parent, name) = split(path)?;
    let directory = root.directory(parent)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(&*directory, name, flags, MODE)?);
    io::copy(content, &mut file)?;
    // Past the umask.
    fchmod(&file, MODE)?;
    futimens(&file, &Timestamps { last_access: MODIFIED, last_modification: MODIFIED })?;
    drop(directory);
    let noted = root.finish()?;
    Ok(Unpacked { noted, measured: measure(top.as_fd(), &limits)? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_file_is_written_with_the_directories_that_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let written = write_file(
            &mut &b"weights"[..],
            Path::new("a/b/c"),
            directory.path(),
            Limits::default(),
        );
        let noted = written.unwrap().noted;
        assert_eq!(noted.invented, ["", "a", "a/b"].map(PathBuf::from));
        let file = directory.path().join("a/b/c");
        assert_eq!(fs_err::read(&file).unwrap(), b"weights");
        let metadata = fs_err::metadata(&file).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o644, 0));
    }

    #[test]
    fn a_file_that_is_too_deep_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let deep: PathBuf = (0..200).map(|_| "d").collect();
        let written = write_file(&mut &b""[..], &deep, directory.path(), Limits::default());
        assert!(super::super::TooLarge::within(&written.unwrap_err()).is_some());
    }
}
