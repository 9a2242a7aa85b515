//! An image as a volume (KEP-4639): its layers, or one directory in them, mounted read-only in the
//! container's run directory, where the OCI runtime finds it.
//!
//! ```text
//! layers ─▶ volumes/N, all of it ─▶ sub path, opened beneath ─▶ a copy of that ─▶ volumes/N
//! ```
//!
//! What is in the image is not trusted: its links are resolved by the kernel with the image as the
//! root, and what was found is handed on as a descriptor, never by its name again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use cria_images::Lease;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_bind, mount_remount, move_mount, open_tree,
};

use super::overlay::Overlay;
use crate::beneath;
use crate::mounts;

/// A remount takes away what it does not name, also what the store's file system is mounted with.
/// Programs may run: KEP-4639 asked for `noexec` once, and does not any more.
const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);

/// An image that a container is to see at one of its paths.
pub(crate) struct ImageVolume {
    /// As it was asked for.
    pub(crate) name: String,
    pub(crate) container_path: String,
    /// A directory in the image, instead of its root; empty is the root.
    pub(crate) sub_path: String,
    /// `repository@digest`; empty for an image without one.
    pub(crate) reference: String,
    /// Taken when the image was found, so that nobody removes its layers meanwhile.
    pub(crate) lease: Arc<Lease>,
}

/// Why an image cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageVolumeError {
    #[error("sub path {0:?} leads out of the image")]
    Outside(String),
    #[error("sub path {0:?} does not exist in the image")]
    Missing(String),
    /// KEP-4639 leaves single files out, and so do the other runtimes.
    #[error("sub path {0:?} is not a directory")]
    NotADirectory(String),
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
}

impl ImageVolumeError {
    fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { action, source: error.into() }
    }
}

impl ImageVolume {
    /// Mounts it on `target`, a new directory of the container's own. Blocking.
    pub(super) fn mount(&self, target: &Path) -> Result<(), ImageVolumeError> {
        mount(&self.lease.lower_directories(), &self.sub_path, target)
    }
}

fn mount(layers: &[PathBuf], sub_path: &str, target: &Path) -> Result<(), ImageVolumeError> {
    check_sub_path(sub_path)?;
    fs_err::create_dir_all(target).map_err(ImageVolumeError::io("make the mount point"))?;
    mount_layers(layers, target).map_err(ImageVolumeError::io("mount the layers"))?;
    if sub_path.is_empty() {
        return Ok(());
    }
    let directory = open_sub_path(target, sub_path)?;
    replace(target, &directory).map_err(ImageVolumeError::io("mount the sub path"))
}

/// The kubelet lets nothing else through. Links in the image are another matter: they may lead
/// anywhere, which is within the image.
fn check_sub_path(sub_path: &str) -> Result<(), ImageVolumeError> {
    let plain = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    match Path::new(sub_path).components().all(plain) {
        true => Ok(()),
        false => Err(ImageVolumeError::Outside(sub_path.to_owned())),
    }
}

/// Overlayfs takes no fewer than two layers where nothing is to be written. One layer alone needs it
/// only for the whiteouts at its root, which it does not show: the empty directory that is mounted on
/// is the second.
fn mount_layers(layers: &[PathBuf], target: &Path) -> io::Result<()> {
    match layers {
        [] => mount_bind(target, target)?,
        [layer] if has_whiteouts(layer)? => {
            let lower = &[layer.clone(), target.to_owned()];
            Overlay { lower, upper: None }.mount(target)?;
        }
        [layer] => mount_bind(layer, target)?,
        lower => Overlay { lower, upper: None }.mount(target)?,
    }
    Ok(mount_remount(target, MountFlags::BIND | FLAGS, "")?)
}

/// Whether there are any at the root of a layer. Those below are seen to where the layer is stored.
fn has_whiteouts(layer: &Path) -> io::Result<bool> {
    for entry in fs_err::read_dir(layer)? {
        let metadata = entry?.metadata()?;
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_sub_path(image: &Path, sub_path: &str) -> Result<OwnedFd, ImageVolumeError> {
    let failed = || ImageVolumeError::io("open the sub path");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(image, flags, Mode::empty()).map_err(failed())?;
    let found = match beneath::open(&root, sub_path, OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return Err(ImageVolumeError::Missing(sub_path.to_owned()));
        }
        found => found.map_err(failed())?,
    };
    let stat = fstat(&found).map_err(failed())?;
    match FileType::from_raw_mode(stat.st_mode).is_dir() {
        true => Ok(found),
        false => Err(ImageVolumeError::NotADirectory(sub_path.to_owned())),
    }
}

/// Puts a copy of the mount, as it is from `directory` on, in its place. Its flags are that one's.
fn replace(target: &Path, directory: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(directory, "", flags)?;
    mounts::detach(target)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(copy.as_fd(), "", CWD, target, flags)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::StatVfsMountFlags;

    use super::*;

    #[test]
    fn a_sub_path_stays_within_the_image() {
        for (sub_path, fine) in [
            ("", true),
            ("a", true),
            ("a/b/", true),
            ("./a", true),
            (".", true),
            ("a..b", true),
            ("/", false),
            ("/a", false),
            ("..", false),
            ("a/../b", false),
            ("a/..", false),
        ] {
            assert_eq!(check_sub_path(sub_path).is_ok(), fine, "{sub_path:?}");
        }
    }

    /// Two layers with links of every kind, one above the other.
    fn layers(root: &Path) -> [PathBuf; 2] {
        let [top, bottom] = ["top", "bottom"].map(|name| root.join(name));
        for directory in [top.join("a/b"), bottom.join("a/b"), bottom.join("etc")] {
            fs_err::create_dir_all(directory).unwrap();
        }
        fs_err::write(top.join("a/b/top"), "").unwrap();
        fs_err::write(bottom.join("a/b/bottom"), "").unwrap();
        fs_err::write(bottom.join("etc/of-image"), "").unwrap();
        for (link, to) in [
            ("absolute", "/etc"),
            ("up", "../../../../etc"),
            ("within", "a/b"),
            ("dangling", "/nowhere"),
            ("loop", "loop"),
            ("magic", "/proc/self/root"),
        ] {
            symlink(to, bottom.join(link)).unwrap();
        }
        [top, bottom]
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(directory).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_sub_path_is_what_the_image_has_there_wherever_its_links_lead() {
        let root = tempfile::tempdir().unwrap();
        let layers = layers(root.path());
        for (number, (sub_path, expected)) in [
            ("a/b", Ok(vec!["bottom", "top"])),
            ("./a//b/", Ok(vec!["bottom", "top"])),
            ("within", Ok(vec!["bottom", "top"])),
            ("absolute", Ok(vec!["of-image"])),
            ("up", Ok(vec!["of-image"])),
            ("a/missing", Err("does not exist")),
            ("a/b/top/x", Err("does not exist")),
            ("dangling", Err("does not exist")),
            ("magic", Err("does not exist")),
            ("loop", Err("open the sub path")),
            ("a/b/top", Err("is not a directory")),
            ("../bottom", Err("leads out")),
        ]
        .into_iter()
        .enumerate()
        {
            let target = root.path().join(number.to_string());
            let mounted = mount(&layers, sub_path, &target);
            let found = mounted.map(|()| names(&target)).map_err(|error| error.to_string());
            let written = fs_err::write(target.join("new"), "");
            assert!(found.is_err() || has_all_flags(&target), "{sub_path}");
            if target.exists() {
                mounts::detach(&target).unwrap();
                assert_eq!(names(&target), [""; 0], "{sub_path}: one mount at most is left");
            }
            match expected {
                Ok(names) => {
                    assert_eq!(found.unwrap(), names, "{sub_path}");
                    written.expect_err("it is read-only");
                }
                Err(part) => assert!(found.unwrap_err().contains(part), "{sub_path}"),
            }
        }
    }

    #[test]
    fn one_layer_alone_shows_no_whiteouts_either() {
        let root = tempfile::tempdir().unwrap();
        let [bottom, _] = layers(root.path());
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        rustix::fs::mknodat(CWD, bottom.join("gone"), kind, mode, 0).unwrap();
        for (number, (sub_path, expected)) in
            [("", &["a"][..]), ("a/b", &["top"])].into_iter().enumerate()
        {
            let target = root.path().join(number.to_string());
            mount(std::slice::from_ref(&bottom), sub_path, &target).unwrap();
            let found = names(&target);
            fs_err::write(target.join("new"), "").unwrap_err();
            assert!(has_all_flags(&target), "{sub_path:?}");
            mounts::detach(&target).unwrap();
            assert_eq!(found, expected, "{sub_path:?}");
            assert_eq!(names(&target), [""; 0], "{sub_path:?}: one mount at most is left");
        }
    }

    fn has_all_flags(target: &Path) -> bool {
        let flags = rustix::fs::statvfs(target).unwrap().f_flag;
        let wanted =
            StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        flags.contains(wanted) && !flags.contains(StatVfsMountFlags::NOEXEC)
    }

    #[test]
    fn any_number_of_layers_is_mounted_read_only_without_set_uid_and_devices() {
        let root = tempfile::tempdir().unwrap();
        let layers = layers(root.path());
        for (count, expected) in [(0, 0), (1, 1), (2, 8)] {
            let target = root.path().join(format!("target-{count}"));
            mount(&layers[..count], "", &target).unwrap();
            let found = names(&target);
            fs_err::write(target.join("new"), "").unwrap_err();
            assert!(has_all_flags(&target), "{count} layers");
            mounts::detach(&target).unwrap();
            assert_eq!(found.len(), expected, "{count} layers: {found:?}");
        }
    }
}
