//! The container's cgroup as its monitor sees it: who was killed for memory, who is in it, and
//! how to kill them all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cria_monitor::exit::Status;
use cria_monitor::protocol::ContainerCgroup;
use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SIGKILL_CODE: u8 = 128 + 9;
/// A fork bomb is faster than any loop; what is left after this many rounds is the OCI runtime's.
const KILL_ROUNDS: usize = 100;

/// Counts the processes of the container that the kernel killed for memory, from `create` on.
pub(super) struct OomWatch {
    counter: File,
    /// v1 tells by an eventfd that the limit was hit; v2's counter itself can be polled.
    event: Option<EventFd>,
    baseline: u64,
    last: u64,
    /// The count when cria itself first sent SIGKILL: what grew later says nothing.
    at_our_kill: Option<u64>,
}

impl OomWatch {
    /// The container must have been created and not started.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let counter = File::open(path)?;
        let event = match path.file_name().is_some_and(|name| name == "memory.oom_control") {
            true => Some(limit_event(path, &counter)?),
            false => None,
        };
        let baseline = oom_kills(&counter).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { counter, event, baseline, last: baseline, at_our_kill: None })
    }

    /// A watch that goes on where a dead monitor's ended: what was counted before is not known,
    /// and nothing else in a container's own cgroup counts.
    pub(super) fn adopt(path: &Path, killed_by_us: bool) -> io::Result<Self> {
        let mut watch = Self::new(path)?;
        watch.baseline = 0;
        watch.at_our_kill = killed_by_us.then_some(0);
        Ok(watch)
    }

    /// Readiness of the first for the second means: look again.
    pub(super) fn source(&self) -> (BorrowedFd<'_>, EpollFlags) {
        match &self.event {
            Some(event) => (event.as_fd(), EpollFlags::EPOLLIN),
            None => (self.counter.as_fd(), EpollFlags::EPOLLPRI),
        }
    }

    /// Reads the counter. False: the cgroup is gone, and the last count stays.
    pub(super) fn look(&mut self) -> bool {
        if let Some(event) = &self.event {
            // Only so that it is not readable any more.
            let _ = event.read();
        }
        match oom_kills(&self.counter) {
            Some(count) => self.last = self.last.max(count),
            None => return false,
        }
        true
    }

    pub(super) fn note_our_kill(&mut self) {
        self.look();
        self.at_our_kill.get_or_insert(self.last);
    }

    /// Was it memory that ended init?
    pub(super) fn verdict(&self, status: Status) -> bool {
        verdict(self.baseline, self.at_our_kill.unwrap_or(self.last), status)
    }
}

fn verdict(baseline: u64, last: u64, status: Status) -> bool {
    let killed = match status {
        Status::Code(code) => code == SIGKILL_CODE,
        Status::Signal(signal) => signal == 9,
        Status::Unknown => false,
    };
    killed && last > baseline
}

/// v1: an eventfd that the kernel signals when the cgroup's limit is hit, or the cgroup removed.
fn limit_event(path: &Path, counter: &File) -> io::Result<EventFd> {
    use std::os::fd::AsRawFd;

    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let line = format!("{} {}", event.as_raw_fd(), counter.as_raw_fd());
    let control = path.with_file_name("cgroup.event_control");
    OpenOptions::new().write(true).open(control)?.write_all(line.as_bytes())?;
    Ok(event)
}

/// The `oom_kill` line; both versions have it. Read at offset 0, which also arms v2's poll anew.
fn oom_kills(counter: &File) -> Option<u64> {
    let mut buffer = [0; 1024];
    let length = counter.read_at(&mut buffer, 0).ok()?;
    parse_oom_kills(std::str::from_utf8(&buffer[..length]).ok()?)
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.parse().ok())
}

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
    fn the_verdict_needs_growth_and_a_kill() {
        for (baseline, last, status, expected) in [
            (0, 1, Status::Signal(9), true),
            (0, 1, Status::Code(137), true),
            (3, 4, Status::Signal(9), true),
            (1, 1, Status::Signal(9), false),
            (0, 1, Status::Signal(15), false),
            (0, 1, Status::Code(1), false),
            (0, 1, Status::Code(9), false),
            (0, 1, Status::Unknown, false),
        ] {
            assert_eq!(verdict(baseline, last, status), expected, "{baseline} {last} {status:?}");
        }
    }

    #[test]
    fn the_counter_is_read_in_both_versions() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        let v2 = "low 0\nhigh 0\nmax 9\noom 2\noom_kill 7\noom_group_kill 1\n";
        assert_eq!(parse_oom_kills(v1), Some(7));
        assert_eq!(parse_oom_kills(v2), Some(7));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn a_session_is_found_behind_any_name() {
        assert_eq!(parse_session("12 (sh) S 1 12 34 0 -1"), Some(34));
        assert_eq!(parse_session("12 (a) b (c) S 1 12 34 0 -1"), Some(34));
        assert_eq!(parse_session("12 (sh"), None);
    }
}
