//! Paths within a directory that somebody else filled: an image's, a container's. They are resolved
//! by the kernel with that directory as their root, so that no link leads out of it, whoever
//! changes what meanwhile.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

/// Opens `path` beneath `root`. An absolute path or link begins at `root`, and `..` ends there.
pub(crate) fn open(
    root: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    /// The kernel answers EAGAIN if anything on the node is renamed or mounted while it resolves a
    /// `..`.
    const TRIES: usize = 100;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        opened = openat2(&root, path, flags, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
    }
    opened
}
