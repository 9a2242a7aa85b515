//! Naming a process for good: a pid is used again, a pid with its start time is not.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process itself, if it still is the one that began at `start_time`.
pub(crate) fn open(pid: i32, start_time: u64) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after the pidfd was had: what that names cannot change any more.
    (self::start_time(pid).ok()? == start_time).then_some(process)
}

/// Waits until `fd` can be read, or a process named by it has ended; false: not before `end`. A signal
/// to this thread (any may get SIGCHLD) does not end the wait: poll(2) is never restarted by itself.
pub(crate) fn await_readable(fd: impl AsFd, end: Instant) -> io::Result<bool> {
    let mut poll = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut poll, Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

pub(crate) fn is_alive(process: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)) == Ok(0)
}

/// In clock ticks since the boot.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    stat_field(pid, 22)
}

/// Whether the process is a child of ours: then only we can learn how it ends.
pub(crate) fn is_our_child(pid: i32) -> bool {
    stat_field(pid, 4).is_ok_and(|parent| parent == u64::from(std::process::id()))
}

/// A field of proc_pid_stat(5), counted as there, from one. The name, the second, may hold
/// anything, so the rest is counted from the last parenthesis.
fn stat_field(pid: i32, field: usize) -> io::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(field - 3))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no field {field}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_does_not_end_a_wait() {
        use nix::sys::pthread::{pthread_kill, pthread_self};
        use tokio::signal::unix::{SignalKind, signal};

        let _handler = signal(SignalKind::user_defined1()).unwrap();
        let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(pthread_self()).unwrap();
            let now = Instant::now();
            let early = await_readable(&socket, now + std::time::Duration::from_millis(200));
            (early.unwrap(), await_readable(&socket, now + std::time::Duration::from_secs(60)))
        });
        let thread = told.recv().unwrap();
        for _ in 0..50 {
            pthread_kill(thread, nix::sys::signal::Signal::SIGUSR1).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(other);
        let (early, late) = waiting.join().unwrap();
        assert!(!early && late.unwrap());
    }

    #[test]
    fn a_process_is_found_by_its_pid_and_its_start_time_only() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let began = start_time(pid).unwrap();
        assert!(open(pid, began).is_some());
        assert!(open(pid, began + 1).is_none());
        assert!(open(0, began).is_none());
    }

    #[test]
    fn a_child_of_ours_is_told_from_a_stranger() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(is_our_child(i32::try_from(child.id()).unwrap()));
        assert!(!is_our_child(1));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
