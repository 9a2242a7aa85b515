//! One daemon per run directory.

use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs_err::{File, OpenOptions};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What a daemon was starting when it was killed has its open files for a moment more, until it runs
/// its program.
const LAST_BREATH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

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
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let mut holder = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut holder)).map_err(failed)?;
            let holder = holder.trim().to_owned();
            if lives(&holder) || begun.elapsed() > LAST_BREATH {
                return Err(LockError::Held { path, holder });
            }
            pause();
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

#[expect(clippy::disallowed_methods, reason = "nobody tells when a lock is free but by taking it")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Whether there is a process of this number, and not only what its parent has not waited for.
fn lives(pid: &str) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
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
        // What other tests of this process are starting may have it for a moment more.
        let mut tries = (0..1000).map(|_| {
            pause();
            RunLock::take(run.path())
        });
        assert!(tries.any(|lock| lock.is_ok()));
    }

    #[test]
    fn what_a_killed_daemon_was_starting_lets_go_soon() {
        let run = tempfile::tempdir().unwrap();
        let first = RunLock::take(run.path()).unwrap();
        let mut killed = std::process::Command::new("true").spawn().unwrap();
        killed.wait().unwrap();
        fs_err::write(run.path().join("lock"), killed.id().to_string()).unwrap();
        let letting_go = std::thread::spawn(move || {
            (0..20).for_each(|_| pause());
            drop(first);
        });
        RunLock::take(run.path()).unwrap();
        letting_go.join().unwrap();
    }
}
