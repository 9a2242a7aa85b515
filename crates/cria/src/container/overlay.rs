//! Layers, mounted over one another by overlayfs: with a directory that takes what is written, or
//! read-only.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

pub(super) struct Overlay<'a> {
    /// The topmost first: at least one with `upper`, at least two without.
    pub(super) lower: &'a [PathBuf],
    /// None: nothing can be written.
    pub(super) upper: Option<Upper>,
}

/// Where what is written goes: two directories of one file system. The mount is `volatile` (no
/// sync when it goes), so after a crash they cannot be mounted again.
pub(super) struct Upper {
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
}

impl Overlay<'_> {
    /// Mounts on the existing directory `target`. Blocking.
    pub(super) fn mount(&self, target: &Path) -> io::Result<()> {
        match self.mount_with_new_api(target) {
            // Before Linux 6.8 overlayfs does not take its layers one by one.
            Err(Errno::INVAL | Errno::NOSYS) => self.mount_with_options(target),
            result => Ok(result?),
        }
    }

    fn mount_with_new_api(&self, target: &Path) -> Result<(), Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in self.lower {
            fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
        }
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        if let Some(Upper { upper, work }) = &self.upper {
            fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
            fsconfig_set_string(context.as_fd(), "workdir", work)?;
            fsconfig_set_flag(context.as_fd(), "volatile")?;
            attributes = MountAttrFlags::empty();
        }
        fsconfig_create(context.as_fd())?;
        let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mounted.as_fd(), "", CWD, target, flags)
    }

    /// By mount(2), whose options end at one page: the layers' common parent becomes the working
    /// directory (of a thread of its own) and their names relative to it.
    fn mount_with_options(&self, target: &Path) -> io::Result<()> {
        let parent = common_parent(self.lower);
        let names: Vec<&OsStr> = self
            .lower
            .iter()
            .map(|layer| layer.strip_prefix(&parent).unwrap_or(layer).as_os_str())
            .collect();
        let options = options(&names, self.upper.as_ref())?;
        let flags = match self.upper {
            Some(_) => MountFlags::empty(),
            None => MountFlags::RDONLY,
        };
        let target = target.to_owned();
        let mounting = std::thread::Builder::new().spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            rustix::process::chdir(&parent)?;
            Ok(mount("overlay", target, "overlay", flags, options.as_c_str())?)
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

fn options(lower: &[&OsStr], upper: Option<&Upper>) -> io::Result<CString> {
    let mut options = b"lowerdir=".to_vec();
    for (position, layer) in lower.iter().enumerate() {
        if position > 0 {
            options.push(b':');
        }
        options.extend_from_slice(layer.as_bytes());
    }
    if let Some(Upper { upper, work }) = upper {
        options.extend_from_slice(b",volatile,upperdir=");
        options.extend_from_slice(upper.as_os_str().as_bytes());
        options.extend_from_slice(b",workdir=");
        options.extend_from_slice(work.as_os_str().as_bytes());
    }
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
        for (old, writable) in [(false, true), (true, true), (false, false), (true, false)] {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            for (layer, file) in [("a", "top"), ("b", "bottom")] {
                fs_err::create_dir(at(layer)).unwrap();
                fs_err::write(at(layer).join(file), layer).unwrap();
                fs_err::write(at(layer).join("both"), layer).unwrap();
            }
            let (lower, target) = ([at("a"), at("b")], at("root"));
            let upper = Upper { upper: at("upper"), work: at("work") };
            for made in [&target, &upper.upper, &upper.work] {
                fs_err::create_dir(made).unwrap();
            }
            let overlay = Overlay { lower: &lower, upper: writable.then_some(upper) };
            match old {
                true => overlay.mount_with_options(&target).unwrap(),
                // A kernel without the new way has the old one alone.
                false if crate::node::kernel_version() < (6, 8) => overlay.mount(&target).unwrap(),
                false => overlay.mount_with_new_api(&target).unwrap(),
            }
            let seen = fs_err::read_to_string(target.join("both")).unwrap();
            let bottom = fs_err::read_to_string(target.join("bottom")).unwrap();
            let written = fs_err::write(target.join("new"), "").is_ok();
            crate::mounts::detach(&target).unwrap();
            assert_eq!((seen.as_str(), bottom.as_str()), ("a", "b"), "old: {old}");
            assert_eq!(written, writable, "old: {old}");
        }
    }
}
