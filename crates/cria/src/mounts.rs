//! Mount points of ours: made, seen and taken away. All of it blocks.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

/// Takes everything away that is mounted on `path`, also if it is in use. What is not there, or is
/// no mount point, is no error.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether something is mounted exactly there.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let found = statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    Ok(found.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// Makes `directory` a private mount of itself, once: what is mounted below it stays out of every
/// other mount namespace's sight, and nobody's propagation slows it down.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    if !is_mount_point(directory)? {
        mount_bind(directory, directory)?;
    }
    Ok(mount_change(directory, MountPropagationFlags::PRIVATE)?)
}

/// A tmpfs of at most `size_bytes`, for anybody to write in: the pod's `/dev/shm`.
pub(crate) fn shm(directory: &Path, size_bytes: u64) -> io::Result<()> {
    fs_err::create_dir_all(directory)?;
    let options = std::ffi::CString::new(format!("mode=1777,size={size_bytes}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("shm", directory, "tmpfs", flags, options.as_c_str())?)
}
