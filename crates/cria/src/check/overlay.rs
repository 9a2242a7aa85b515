//! Whether overlayfs can be mounted with its upper directory in cria's root directory: tried, on
//! a directory of its own that goes away again.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// How overlay mounts can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverlayMount {
    /// fsopen(2) with one `lowerdir+` for each layer.
    LayerByLayer,
    /// mount(2), where all layers share one page of options.
    OnePage,
}

/// The directories of an overlay mount, removed on drop.
struct Directories(PathBuf);

pub(super) fn try_overlay(root: &Path) -> io::Result<OverlayMount> {
    let directories = Directories::new(root)?;
    match directories.mount_by_layers() {
        Ok(()) => Ok(OverlayMount::LayerByLayer),
        Err(_) => directories.mount_by_page().map(|()| OverlayMount::OnePage),
    }
}

impl Directories {
    fn new(root: &Path) -> io::Result<Self> {
        let directories = Self(root.join(format!(".cria-check-{}", std::process::id())));
        for name in ["lower", "upper", "work", "merged"] {
            fs_err::create_dir_all(directories.path(name))?;
        }
        Ok(directories)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The mount stays detached, so nobody sees it; it is gone when its descriptor is closed.
    fn mount_by_layers(&self) -> io::Result<()> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&overlay, "lowerdir+", self.path("lower"))?;
        fsconfig_set_string(&overlay, "upperdir", self.path("upper"))?;
        fsconfig_set_string(&overlay, "workdir", self.path("work"))?;
        fsconfig_set_flag(&overlay, "volatile")?;
        fsconfig_create(&overlay)?;
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(())
    }

    /// In a mount namespace of a thread that ends at once, and the mount with it. Directories of
    /// its own: a `volatile` upper cannot be mounted twice.
    fn mount_by_page(&self) -> io::Result<()> {
        for name in ["upper-2", "work-2"] {
            fs_err::create_dir_all(self.path(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            self.path("lower").display(),
            self.path("upper-2").display(),
            self.path("work-2").display(),
        );
        let target = self.path("merged");
        let mounted = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            let none = MsFlags::empty();
            mount(Some("overlay"), &target, Some("overlay"), none, Some(options.as_str()))
        });
        let mounted = mounted.join().expect("the thread does not panic");
        mounted.map_err(io::Error::from)
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        // There is nothing to be done about a directory that stays.
        fs_err::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn overlay_can_be_mounted_both_ways_and_leaves_nothing() {
        let root = TempDir::new().unwrap();
        let expected = match crate::node::kernel_version() {
            (6, 8..) | (7.., _) => OverlayMount::LayerByLayer,
            _ => OverlayMount::OnePage,
        };
        assert_eq!(try_overlay(root.path()).unwrap(), expected);
        let directories = Directories::new(root.path()).unwrap();
        directories.mount_by_page().unwrap();
        drop(directories);
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0);
        let mounts = fs_err::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(root.path().to_str().unwrap()));
    }

    #[test]
    fn a_directory_that_cannot_hold_an_overlay_is_refused() {
        assert!(try_overlay(Path::new("/proc")).is_err());
    }
}
