//! The container's root file system: an overlay of the image's layers under a directory of its own.
//!
//! Mounted once in the container's life: a `volatile` upper directory (no sync when it goes) may
//! not be mounted again after a crash, and need not be, because the process is gone then.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

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
        match self.mount_with_new_api() {
            // Before Linux 6.5 overlayfs does not take its layers one by one.
            Err(Errno::INVAL | Errno::NOSYS) => self.mount_with_options(),
            result => Ok(result?),
        }
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

    fn mount_with_new_api(&self) -> Result<(), Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in self.lower {
            fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
        }
        fsconfig_set_string(context.as_fd(), "upperdir", self.upper())?;
        fsconfig_set_string(context.as_fd(), "workdir", self.work())?;
        fsconfig_set_flag(context.as_fd(), "volatile")?;
        fsconfig_create(context.as_fd())?;
        let mounted =
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mounted.as_fd(), "", CWD, self.target, flags)
    }

    /// By mount(2), whose options end at one page: the layers' common parent becomes the working
    /// directory (of a thread of its own) and their names relative to it.
    fn mount_with_options(&self) -> io::Result<()> {
        let parent = common_parent(self.lower);
        let names: Vec<&OsStr> = self
            .lower
            .iter()
            .map(|layer| layer.strip_prefix(&parent).unwrap_or(layer).as_os_str())
            .collect();
        let options = options(&names, &self.upper(), &self.work())?;
        let target = self.target.to_owned();
        let mounting = std::thread::Builder::new().spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            rustix::process::chdir(&parent)?;
            Ok(mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())?)
        })?;
        mounting.join().expect("mounting does not panic")
    }
}

/// The longest directory that all of `paths` are below.
fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/"));
    while !paths.iter().all(|path| path.starts_with(parent)) {
        parent = parent.parent().unwrap_or(Path::new("/"));
    }
    parent.to_owned()
}

fn options(lower: &[&OsStr], upper: &Path, work: &Path) -> io::Result<CString> {
    let mut options = b"volatile,lowerdir=".to_vec();
    for (position, layer) in lower.iter().enumerate() {
        if position > 0 {
            options.push(b':');
        }
        options.extend_from_slice(layer.as_bytes());
    }
    options.extend_from_slice(b",upperdir=");
    options.extend_from_slice(upper.as_os_str().as_bytes());
    options.extend_from_slice(b",workdir=");
    options.extend_from_slice(work.as_os_str().as_bytes());
    Ok(CString::new(options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_the_directory_that_all_of_them_are_below() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let cases = [
            (paths(&["/s/layers/a/fs", "/s/layers/b/fs"]), "/s/layers"),
            (paths(&["/s/images/x/top", "/s/layers/b/fs"]), "/s"),
            (paths(&["/s/layers/a/fs"]), "/s/layers/a"),
        ];
        for (layers, expected) in cases {
            assert_eq!(common_parent(&layers), Path::new(expected));
        }
    }

    #[test]
    fn both_ways_to_mount_give_the_same_root() {
        for old in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            for (layer, file) in [("a", "top"), ("b", "bottom")] {
                fs_err::create_dir(at(layer)).unwrap();
                fs_err::write(at(layer).join(file), layer).unwrap();
                fs_err::write(at(layer).join("both"), layer).unwrap();
            }
            fs_err::set_permissions(at("a"), std::fs::Permissions::from_mode(0o711)).unwrap();
            fs_err::create_dir(at("container")).unwrap();
            let (lower, container, target) = ([at("a"), at("b")], at("container"), at("root"));
            let rootfs = Rootfs { lower: &lower, directory: &container, target: &target };
            if old {
                fs_err::create_dir_all(&target).unwrap();
                fs_err::create_dir(rootfs.work()).unwrap();
                rootfs.make_upper().unwrap();
                rootfs.mount_with_options().unwrap();
            } else {
                rootfs.mount().unwrap();
            }
            let seen = fs_err::read_to_string(target.join("both")).unwrap();
            let bottom = fs_err::read_to_string(target.join("bottom")).unwrap();
            let mode = fs_err::metadata(&target).unwrap().permissions().mode() & 0o777;
            crate::mounts::detach(&target).unwrap();
            assert_eq!((seen.as_str(), bottom.as_str(), mode), ("a", "b", 0o711), "old: {old}");
        }
    }
}
