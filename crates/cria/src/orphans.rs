//! Programs that a dead daemon had started and that still run. They carry a mark in their
//! environment, so that the next daemon ends them, or awaits them before it undoes what they were
//! doing: an orphaned CNI ADD would otherwise finish after our DEL.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpgid, getpid, getuid, pidfd_open, pidfd_send_signal,
};

use crate::process::await_readable;

/// The environment variable that marks a program as started by an operation of ours.
pub(crate) const MARK: &str = "CRIA_OPERATION";

/// Kills every process of our user whose mark starts with `prefix`, and waits until they are gone.
/// Blocks. Answers how many there were; `TimedOut` if one did not die in time.
pub(crate) fn end_orphans(prefix: &str, deadline: Duration) -> io::Result<usize> {
    let end = Instant::now() + deadline;
    let mut ended = 0;
    loop {
        // Again until none is found: one may have forked while we looked.
        let orphans = marked(prefix)?;
        if orphans.is_empty() {
            return Ok(ended);
        }
        for Orphan { process, .. } in &orphans {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        for Orphan { process, .. } in &orphans {
            wait(process, end)?;
        }
        ended += orphans.len();
    }
}

/// A marked process.
#[derive(Debug)]
pub(crate) struct Orphan {
    /// Its mark, behind what was searched for.
    pub(crate) subject: String,
    /// Whether it is the program itself, and not something that the program started.
    pub(crate) leads: bool,
    pub(crate) process: OwnedFd,
}

/// Every process of our user whose mark starts with `prefix`. Blocks.
pub(crate) fn marked(prefix: &str) -> io::Result<Vec<Orphan>> {
    let ours = format!("{MARK}={prefix}");
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw).filter(|pid| *pid != getpid()) else {
            continue;
        };
        // The pidfd first: what is read after it is of this process, or it has ended.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if let Some(subject) = mark_after(&entry.path(), ours.as_bytes()) {
            // Each program is started as the leader of a process group.
            let leads = getpgid(Some(pid)) == Ok(pid);
            found.push(Orphan { subject, leads, process });
        }
    }
    Ok(found)
}

/// Another user's process, or one that ended, is not ours.
fn mark_after(process: &Path, prefix: &[u8]) -> Option<String> {
    use std::os::unix::fs::MetadataExt;

    if fs::metadata(process).ok()?.uid() != getuid().as_raw() {
        return None;
    }
    let environ = fs_err::read(process.join("environ")).ok()?;
    let mark =
        environ.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(prefix))?;
    Some(String::from_utf8_lossy(mark).into_owned())
}

fn wait(process: &OwnedFd, end: Instant) -> io::Result<()> {
    let ended = await_readable(process, end)?;
    if ended { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper(mark: Option<&str>) -> Ended {
        let mut command = Command::new("sleep");
        command.arg("60").envs(mark.map(|mark| (MARK, mark)));
        Ended(command.spawn().unwrap())
    }

    #[test]
    fn only_the_marked_are_ended_and_they_are_gone_when_it_answers() {
        let own = format!("test-{}-", std::process::id());
        let mut marked = [sleeper(Some(&format!("{own}a"))), sleeper(Some(&format!("{own}b/c")))];
        let mut others = [sleeper(None), sleeper(Some(&format!("other-{own}")))];

        assert_eq!(end_orphans(&own, Duration::from_secs(10)).unwrap(), 2);
        assert!(marked.iter_mut().all(|child| child.0.try_wait().unwrap().is_some()));
        assert!(others.iter_mut().all(|child| child.0.try_wait().unwrap().is_none()));
        assert_eq!(end_orphans(&own, Duration::from_secs(10)).unwrap(), 0);
    }
}
