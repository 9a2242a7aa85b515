//! Ends that something holds up: a log that is not written, a client that does not read, a disk that
//! stands still.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cria_monitor::exit::Status;
use cria_monitor::protocol::{Event, FailureKind, FromMonitor, Reply, Request};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{Container, Monitor, Options, PATIENCE, cpu_time, wait_for};

/// Waking up for as long as is watched costs far more than this, being asked a few things far less.
const IDLE: Duration = Duration::from_millis(300);

/// Two lines that a pipe holds, and the ring.
const TWO_LINES: &str = "head -c 16000 /dev/zero; echo; head -c 16000 /dev/zero; echo; exit 3";

/// Whether `fd` can be read within `patience`.
fn is_readable(fd: impl AsFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() == 1
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

/// A log whose file takes a page, and no more until somebody reads it.
fn narrow_log(path: &Path) -> File {
    mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
    let mut options = OpenOptions::new();
    let reader = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    fcntl(&reader, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    reader
}

/// Starts a container and waits for its init's end: a time just after it.
fn run_to_the_end(monitor: &mut Monitor) -> i64 {
    let init: OwnedFd = monitor.client.state().descriptors.init.unwrap();
    monitor.client.start();
    assert!(is_readable(&init, PATIENCE), "init does not end");
    now_ns()
}

/// What the monitor's processor time was for as long as its exit is not told.
fn time_while_silent(monitor: &Monitor, patience: Duration) -> Duration {
    let before = cpu_time(monitor.process.id());
    assert!(!is_readable(&monitor.client.socket, patience), "the exit is told already");
    cpu_time(monitor.process.id()) - before
}

#[test]
fn a_log_that_is_not_written_for_a_while_costs_no_time_and_changes_no_time() {
    let container = Container::new(TWO_LINES, Options::default());
    let mut log = narrow_log(container.create.log.as_ref().unwrap());
    let mut monitor = Monitor::create(&container);
    let ended = run_to_the_end(&mut monitor);
    let time = time_while_silent(&monitor, Duration::from_secs(3));
    assert!(time < IDLE, "{time:?} within three seconds");

    let mut left = 2 * (16_000 + 41);
    while left > 0 {
        assert!(is_readable(&log, PATIENCE), "{left} bytes do not come");
        left -= log.read(&mut [0; 4096]).unwrap();
    }
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), 0));
    let late = exit.finished_at_ns - ended;
    assert!(late < 2_000_000_000, "finished {late} ns after its end");
    monitor.release();
}

#[test]
fn a_client_that_does_not_read_costs_no_time_and_changes_no_time() {
    let container = Container::new(TWO_LINES, Options::default());
    let mut monitor = Monitor::create(&container);
    let (_client, socket) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    while send(socket.as_raw_fd(), &[0; 4096], MsgFlags::MSG_DONTWAIT).is_ok() {}
    let attach = Request::Attach { stdin: false, stdout: true, stderr: true, socket };
    monitor.client.done(attach);
    let begun = Instant::now();
    let ended = run_to_the_end(&mut monitor);
    // It may hold the output up for a second.
    let left = Duration::from_millis(700).saturating_sub(begun.elapsed());
    let time = time_while_silent(&monitor, left);
    assert!(time < IDLE, "{time:?} within {left:?}");
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), 0));
    let late = exit.finished_at_ns - ended;
    assert!(late < 500_000_000, "finished {late} ns after its end");
    monitor.release();
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// A disk of its own, unmounted whatever happens.
struct Disk(PathBuf);

impl Disk {
    fn mount(base: &Path) -> Self {
        let (image, at) = (base.join("disk.img"), base.join("disk"));
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        std::fs::create_dir(&at).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at)
    }

    /// From now on whoever writes waits, and no signal ends that, until the value is dropped.
    fn stand_still(&self) -> Standstill<'_> {
        run("fsfreeze", &["--freeze", self.0.to_str().unwrap()]);
        Standstill(self)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

struct Standstill<'a>(&'a Disk);

impl Drop for Standstill<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0.0.to_str().unwrap()]);
    }
}

#[test]
fn an_exit_is_told_though_the_log_s_disk_stands_still() {
    let base = tempfile::tempdir().unwrap();
    let disk = Disk::mount(base.path());
    let options = Options { stdin: true, log_dir: Some(disk.0.clone()), ..Options::default() };
    // More than the ring takes, and no more than it and the pipe together.
    let container = Container::new("echo before; read line; seq 1 12000; exit 3", options);
    let mut monitor = Monitor::create(&container);
    let init = monitor.client.state().descriptors.init.unwrap();
    monitor.client.start();
    wait_for("first line", || (container.output("stdout") == b"before\n").then_some(()));

    let standstill = disk.stand_still();
    monitor.client.done(Request::CloseStdin);
    assert!(is_readable(&init, PATIENCE), "init does not end");
    let (begun, ended) = (Instant::now(), now_ns());
    assert_eq!(monitor.client.event(), Event::StdinClosed);
    let Event::LogLost { bytes, error } = monitor.client.event() else { panic!("not lost") };
    assert!(bytes > 0 && error.contains("stands still"), "{bytes} {error}");
    let exit = monitor.client.exited();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let all: usize = (1..=12_000).map(|number| format!("{number}\n").len()).sum();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), all as u64));
    assert!(exit.finished_at_ns - ended < 5_000_000_000);
    assert_eq!(container.exit(), Some(exit));
    let time = cpu_time(monitor.process.id());
    assert!(time < Duration::from_millis(500), "{time:?} for waiting");

    // The thread that writes is still in its call; nobody waits for it.
    monitor.client.done(Request::Release);
    assert!(monitor.client.receive().is_none());
    drop(standstill);
    assert!(monitor.process.wait().unwrap().success());
    // What the call that could not be taken back wrote is whole, and nothing came after it.
    let records = container.records();
    assert_eq!(records[0].text, b"before");
    assert!(records.len() < 12_000);
}

#[test]
fn an_exit_is_told_though_the_log_does_not_open() {
    let container = Container::new("sleep 1000", Options::default());
    // Opening it takes a reader, and there is none.
    mkfifo(container.create.log.as_ref().unwrap(), Mode::from_bits_truncate(0o600)).unwrap();
    let mut monitor = Monitor::create(&container);
    let start = monitor.client.send(Request::Start);
    let release = monitor.client.send(Request::Release);
    match monitor.client.receive() {
        Some(FromMonitor::Reply(sequence, Reply::Failed(failure))) => {
            assert_eq!((sequence, failure.kind), (start, FailureKind::System));
            assert!(failure.message.contains("stands still"), "{}", failure.message);
        }
        other => panic!("{other:?}"),
    }
    match monitor.client.receive() {
        Some(FromMonitor::Event(Event::Exited(exit))) => {
            assert_eq!((exit.status, exit.log_bytes_lost), (Status::Signal(9), 0));
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(monitor.client.receive(), Some(FromMonitor::Reply(it, Reply::Done)) if it == release)
    );
    assert!(monitor.process.wait().unwrap().success());
}

#[test]
fn a_log_that_is_reopened_in_vain_is_answered_for_before_the_exit() {
    let script = TWO_LINES.replace("exit", "read line; exit");
    let container = Container::new(&script, Options { stdin: true, ..Options::default() });
    let log = narrow_log(container.create.log.as_ref().unwrap());
    let mut monitor = Monitor::start(&container);
    assert!(is_readable(&log, PATIENCE), "nothing is written");
    let reopen = monitor.client.send(Request::ReopenLog);
    monitor.client.done(Request::CloseStdin);
    match monitor.client.reply(reopen) {
        Reply::Failed(failure) => {
            assert!(failure.message.contains("stands still"), "{}", failure.message);
        }
        other => panic!("{other:?}"),
    }
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), 2 * 16_001));
    monitor.release();
}
