//! The container's root file system: an overlay of the image's layers under a directory of its own.
//!
//! Mounted once in the container's life: a `volatile` upper directory (no sync when it goes) may
//! not be mounted again after a crash, and need not be, because the process is gone then.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::overlay::{Overlay, Upper};

/// What is mounted, and where.
pub(super) struct Rootfs<'a> {
    /// The image's layers, the topmost first; never empty.
    pub(super) lower: &'a [PathBuf],
    /// Gets `upper` and `work`.
    pub(super) directory: &'a Path,
    pub(super) target: &'a Path,
}

impl Rootfs<'_> {
    /// Blocking.
    pub(super) fn mount(&self) -> io::Result<()> {
        fs_err::create_dir_all(self.target)?;
        fs_err::create_dir(self.work())?;
        self.make_upper()?;
        let upper = Upper { upper: self.upper(), work: self.work() };
        Overlay { lower: self.lower, upper: Some(upper) }.mount(self.target)
    }

    fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The upper directory's root is what the container sees as `/`: as the image has it.
    fn make_upper(&self) -> io::Result<()> {
        let upper = self.upper();
        fs_err::create_dir(&upper)?;
        if let Some(top) = self.lower.first() {
            let like = fs_err::metadata(top)?;
            std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))?;
            let mode = std::fs::Permissions::from_mode(like.permissions().mode() & 0o7777);
            fs_err::set_permissions(&upper, mode)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_as_the_topmost_layers() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["a", "b", "container"] {
            fs_err::create_dir(at(name)).unwrap();
        }
        fs_err::set_permissions(at("a"), std::fs::Permissions::from_mode(0o711)).unwrap();
        let (lower, container, target) = ([at("a"), at("b")], at("container"), at("root"));
        Rootfs { lower: &lower, directory: &container, target: &target }.mount().unwrap();
        let mode = fs_err::metadata(&target).unwrap().permissions().mode() & 0o777;
        crate::mounts::detach(&target).unwrap();
        assert_eq!(mode, 0o711);
    }
}
