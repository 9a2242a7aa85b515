//! Whether it was memory that ended the container.
//!
//! The cgroup counts whom the kernel killed. With systemd the cgroup may be gone before its count is
//! read: systemd removes a scope as soon as it is empty. Then its pod's count, which holds that of
//! all its containers for good, tells: it has grown since both were last seen, by more than the
//! other containers' counts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cria_monitor::exit::Status;
use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

const SIGKILL_CODE: u8 = 128 + 9;

/// Counts the processes of the container that the kernel killed for memory, from `create` on.
pub(super) struct OomWatch {
    counter: File,
    /// v1 tells by an eventfd that the limit was hit; v2's counter itself can be polled.
    event: Option<EventFd>,
    /// v2 only: nobody removes a cgroup of v1 before we do.
    pod: Option<PodWatch>,
    baseline: u64,
    last: u64,
    /// The count when cria itself first sent SIGKILL: what grew later says nothing.
    at_our_kill: Option<u64>,
}

impl OomWatch {
    /// The container must have been created and not started.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let counter = File::open(path)?;
        let is_v1 = path.file_name().is_some_and(|name| name == "memory.oom_control");
        let (event, pod) = match is_v1 {
            true => (Some(limit_event(path, &counter)?), None),
            false => (None, PodWatch::above(path)),
        };
        let baseline = oom_kills(&counter).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { counter, event, pod, baseline, last: baseline, at_our_kill: None })
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

    /// The same, of the pod's count.
    pub(super) fn pod_source(&self) -> Option<(BorrowedFd<'_>, EpollFlags)> {
        self.pod.as_ref().map(|pod| (pod.counter.as_fd(), EpollFlags::EPOLLPRI))
    }

    /// Reads the counters. False: the cgroup is gone, and the last count stays.
    pub(super) fn look(&mut self) -> bool {
        if let Some(event) = &self.event {
            // Only so that it is not readable any more.
            let _ = event.read();
        }
        let own = oom_kills(&self.counter);
        if let Some(pod) = &mut self.pod {
            pod.look(own.is_some());
        }
        match own {
            Some(count) => self.last = self.last.max(count),
            None => return false,
        }
        true
    }

    pub(super) fn note_our_kill(&mut self) {
        self.look();
        self.at_our_kill.get_or_insert(self.count());
    }

    /// Was it memory that ended init?
    pub(super) fn verdict(&self, status: Status) -> bool {
        verdict(self.baseline, self.at_our_kill.unwrap_or_else(|| self.count()), status)
    }

    /// With what only the pod's count has told.
    fn count(&self) -> u64 {
        self.last + self.pod.as_ref().map_or(0, |pod| pod.unexplained)
    }
}

/// The counts of the pod, and of its other containers.
struct PodWatch {
    counter: File,
    /// Of the pod.
    directory: PathBuf,
    /// The container's own, among the others.
    own: PathBuf,
    /// When the container's own count was last read.
    then: PodCounts,
    /// What was counted since then and was none of the others.
    unexplained: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PodCounts {
    pod: u64,
    others: u64,
}

impl PodWatch {
    /// None if there is no pod's cgroup above the container's, or it does not count.
    fn above(counter: &Path) -> Option<Self> {
        let own = counter.parent()?;
        let directory = own.parent()?;
        let counter = File::open(directory.join(counter.file_name()?)).ok()?;
        let pod = oom_kills(&counter)?;
        let (directory, own) = (directory.to_owned(), own.to_owned());
        let then = PodCounts { pod, others: others(&directory, &own) };
        Some(Self { counter, directory, own, then, unexplained: 0 })
    }

    /// The directory of the others is only read where the pod's count has changed.
    fn look(&mut self, own_is_known: bool) {
        let Some(pod) = oom_kills(&self.counter).filter(|pod| *pod != self.then.pod) else {
            return;
        };
        let now = PodCounts { pod, others: others(&self.directory, &self.own) };
        if own_is_known {
            (self.then, self.unexplained) = (now, 0);
        } else {
            self.unexplained = unexplained(self.then, now);
        }
    }
}

fn unexplained(then: PodCounts, now: PodCounts) -> u64 {
    // A container that has gone took its count along.
    let by_others = now.others.saturating_sub(then.others);
    now.pod.saturating_sub(then.pod).saturating_sub(by_others)
}

fn others(pod: &Path, own: &Path) -> u64 {
    let entries = fs::read_dir(pod).into_iter().flatten().flatten();
    let others = entries.map(|entry| entry.path()).filter(|path| path != own);
    others.filter_map(|path| oom_kills(&File::open(path.join("memory.events")).ok()?)).sum()
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

    /// A pod with containers as v2 has them, in plain files; removed cgroups read as nothing.
    struct Pod(tempfile::TempDir);

    impl Pod {
        fn count(&self, of: &str, kills: u64) {
            let directory = self.0.path().join(of);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("memory.events"), format!("oom 1\noom_kill {kills}\n"))
                .unwrap();
        }

        fn vanish(&self, of: &str) {
            fs::write(self.0.path().join(of).join("memory.events"), "").unwrap();
        }
    }

    #[test]
    fn a_cgroup_that_was_gone_too_soon_is_told_by_its_pod() {
        let killed = Status::Signal(9);
        for (other, expected) in [(0, true), (1, true), (2, false)] {
            let pod = Pod(tempfile::tempdir().unwrap());
            for (of, kills) in [("", 3), ("own", 0), ("other", 3)] {
                pod.count(of, kills);
            }
            let mut watch = OomWatch::new(&pod.0.path().join("own/memory.events")).unwrap();
            // Another container's, while ours is there: no matter.
            pod.count("", 4);
            pod.count("other", 4);
            assert!(watch.look() && !watch.verdict(killed));

            pod.vanish("own");
            pod.count("", 6);
            pod.count("other", 4 + other);
            assert!(!watch.look(), "gone");
            assert_eq!(watch.verdict(killed), expected, "{other} of 2 were another's");
            assert!(!watch.verdict(Status::Code(1)));
        }
    }

    #[test]
    fn what_the_pod_counted_after_our_kill_says_nothing() {
        let pod = Pod(tempfile::tempdir().unwrap());
        pod.count("", 0);
        pod.count("own", 0);
        let mut watch = OomWatch::new(&pod.0.path().join("own/memory.events")).unwrap();
        watch.note_our_kill();
        pod.vanish("own");
        pod.count("", 1);
        watch.look();
        assert!(!watch.verdict(Status::Signal(9)));
    }
}
