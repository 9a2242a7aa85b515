//! A program as a file: which build of it this is, and a copy of it in memory.
//!
//! runc and crun enter a container with their own program open, which the container could write to
//! (CVE-2019-5736). So at each `create` and `exec` they first copy themselves into memory that
//! nobody can change, and start anew from there: with runc's 10 MB that is a fifth of an exec. One
//! that is started from such memory sees that it need not.
//!
//! Theirs lives for one call, ours for all. A container that opens `/proc/self/exe` at the right moment
//! may not write to it, but could take away everybody's right to execute it: so the copy is immutable
//! too, which is for a process with CAP_LINUX_IMMUTABLE to undo. Before Linux 6.0 memory cannot be.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{IFlags, MemfdFlags, SealFlags, fcntl_add_seals, ioctl_setflags, memfd_create};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Tells one build of a program from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Build {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// Of its content, which a package may date as it likes, and of anything about it.
    changed_ns: [i64; 2],
}

impl Build {
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let found = fs_err::metadata(path)?;
        let nanoseconds = |seconds: i64, rest: i64| seconds * 1_000_000_000 + rest;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            changed_ns: [
                nanoseconds(found.mtime(), found.mtime_nsec()),
                nanoseconds(found.ctime(), found.ctime_nsec()),
            ],
        })
    }
}

/// A program in memory, as long as the file at its path is the same. Another build is run from its file
/// until a start of the daemon has tried it.
#[derive(Clone, Debug)]
pub(crate) struct SealedProgram(Arc<Sealed>);

#[derive(Debug)]
struct Sealed {
    build: Build,
    memory: OwnedFd,
    replaced: AtomicBool,
}

impl SealedProgram {
    /// Blocking.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (build, memory) = (Build::at(path)?, copy(path)?);
        Ok(Self(Arc::new(Sealed { build, memory, replaced: AtomicBool::new(false) })))
    }

    /// What is to be run now. None: the file.
    pub(crate) fn now(&self) -> Option<OwnedFd> {
        let Sealed { build, memory, replaced } = &*self.0;
        let same = Build::at(&build.path).is_ok_and(|found| found == *build);
        if !same && !replaced.swap(true, Ordering::Relaxed) {
            let path = build.path.display();
            tracing::info!(%path, "the OCI runtime was replaced: it is run from its file from now on");
        }
        // No descriptors left: the file serves as well.
        memory.try_clone().ok().filter(|_| !replaced.load(Ordering::Relaxed))
    }
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let mut file = fs_err::File::open(path)?;
    let mut memory = std::fs::File::from(executable_memory()?);
    io::copy(&mut file, &mut memory)?;
    // The very seals that runc and crun look for.
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&memory, seals)?;
    ioctl_setflags(&memory, IFlags::IMMUTABLE)?;
    Ok(memory.into())
}

fn executable_memory() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(c"oci-runtime", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 nothing had to be said.
        Err(Errno::INVAL) => Ok(memfd_create(c"oci-runtime", flags)?),
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    use rustix::fs::{Mode, fchmod, ftruncate};

    use super::*;

    fn says(program: &OwnedFd) -> String {
        // Inherited: a shell script is read by its interpreter.
        let program = rustix::io::dup(program).unwrap();
        let output = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    #[test]
    fn a_program_runs_from_memory_until_its_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runtime");
        fs_err::write(&path, "#!/bin/sh\necho old").unwrap();
        let program = SealedProgram::of(&path).unwrap();
        assert_eq!(says(&program.now().unwrap()), "old\n");

        // As long, and from the same second of the same release, as some systems date files.
        let (other, old) = (folder.path().join("other"), std::fs::metadata(&path).unwrap());
        fs_err::write(&other, "#!/bin/sh\necho new").unwrap();
        let file = std::fs::File::options().write(true).open(&other).unwrap();
        file.set_modified(old.modified().unwrap()).unwrap();
        fs_err::rename(&other, &path).unwrap();
        assert!(program.now().is_none(), "its copy is another build");

        fs_err::remove_file(&path).unwrap();
        assert!(program.now().is_none(), "whoever runs the file is told that it is gone");
    }

    #[test]
    fn nobody_can_change_the_copy_nor_who_may_run_it() {
        let memory = copy(Path::new("/bin/sh")).unwrap();
        assert_eq!(rustix::io::pwrite(&memory, b"x", 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&memory, 0), Err(Errno::PERM));
        assert_eq!(fchmod(&memory, Mode::empty()), Err(Errno::PERM));
    }
}
