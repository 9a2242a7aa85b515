//! The container's cgroup as its monitor sees it: who is in it, and how to kill them all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use cria_monitor::protocol::ContainerCgroup;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A fork bomb is faster than any loop; what is left after this many rounds is the OCI runtime's.
const KILL_ROUNDS: usize = 100;

/// Joins the cgroup of a `cgroup.procs` file.
pub(super) fn join(procs: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

/// Sends `signal` to every process of the cgroup; SIGKILL until none new appears.
pub(super) fn signal_all(cgroup: &ContainerCgroup, signal: i32) -> io::Result<()> {
    if signal != libc::SIGKILL {
        return signal_once(cgroup, signal).map(drop);
    }
    if let Some(path) = &cgroup.kill
        && overwrite(path, "1").is_ok()
    {
        return Ok(());
    }
    thaw(cgroup);
    let mut killed = vec![];
    for _ in 0..KILL_ROUNDS {
        let pids = processes(cgroup)?;
        let new: Vec<i32> = pids.into_iter().filter(|pid| !killed.contains(pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            send(pid, signal);
            killed.push(pid);
        }
    }
    Ok(())
}

/// A frozen process does not die before it is thawed (v1).
pub(super) fn thaw(cgroup: &ContainerCgroup) {
    if let Some(path) = &cgroup.freezer {
        // Where there is no such cgroup there is nothing frozen.
        let _ = overwrite(path, "THAWED");
    }
}

/// Kills the session `leader`. Those who left it live on.
pub(super) fn kill_session(cgroup: &ContainerCgroup, leader: i32) {
    signal_session(cgroup, leader, libc::SIGKILL);
}

pub(super) fn signal_session(cgroup: &ContainerCgroup, leader: i32, signal: i32) {
    let mut signalled = vec![];
    for _ in 0..KILL_ROUNDS {
        let pids = processes(cgroup).unwrap_or_default();
        let of_session = |pid: &i32| session(*pid) == Some(leader) && !signalled.contains(pid);
        let new: Vec<i32> = pids.into_iter().filter(of_session).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            send(pid, signal);
            signalled.push(pid);
        }
    }
}

fn signal_once(cgroup: &ContainerCgroup, signal: i32) -> io::Result<()> {
    for pid in processes(cgroup)? {
        send(pid, signal);
    }
    Ok(())
}

/// A process that ended meanwhile needs no signal.
fn send(pid: i32, signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Who is in the cgroup; nobody, if there is none.
fn processes(cgroup: &ContainerCgroup) -> io::Result<Vec<i32>> {
    let Some(path) = &cgroup.processes else { return Ok(vec![]) };
    match fs::read_to_string(path) {
        // 0 is how a process of another PID namespace is listed: not ours to signal.
        Ok(text) => {
            Ok(text.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect())
        }
        Err(error) if gone(&error) => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The session that an exec is killed with. runc makes one for it; crun leaves it in its own,
/// which `sys::as_oci_runtime` has made.
pub(super) fn session_of_exec(pid: i32) -> i32 {
    session(pid).unwrap_or(pid)
}

/// The session of a process, as the process table of our PID namespace has it.
fn session(pid: i32) -> Option<i32> {
    parse_session(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name may hold anything, blanks and parentheses too: count from its end.
fn parse_session(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(3)?.parse().ok()
}

fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_behind_any_name() {
        assert_eq!(parse_session("12 (sh) S 1 12 34 0 -1"), Some(34));
        assert_eq!(parse_session("12 (a) b (c) S 1 12 34 0 -1"), Some(34));
        assert_eq!(parse_session("12 (sh"), None);
    }
}
