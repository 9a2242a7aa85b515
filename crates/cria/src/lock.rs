//! One daemon per run directory.

use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "{path} is held by another cria (pid {holder}): give this one a run directory of its own"
    )]
    Held { path: PathBuf, holder: String },
    #[error("cannot lock {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Held as long as the daemon lives; the kernel lets go of it however that ends.
#[derive(Debug)]
pub(crate) struct RunLock(#[expect(dead_code, reason = "held, never read")] File);

impl RunLock {
    pub(crate) fn take(run: &Path) -> Result<Self, LockError> {
        let path = run.join("lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(LockError::Held { path, holder: holder.trim().to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let own = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        own(&mut file).map_err(failed)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_run_directory() {
        let run = tempfile::tempdir().unwrap();
        let first = RunLock::take(run.path()).unwrap();
        let error = RunLock::take(run.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        RunLock::take(run.path()).unwrap();
    }
}
