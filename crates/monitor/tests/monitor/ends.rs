//! Ends that something holds up: a log that is not written, a client that does not read.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cria_monitor::exit::Status;
use cria_monitor::protocol::Request;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{Container, Monitor, Options, PATIENCE, cpu_time};

/// Waking up for a second costs far more than this, being asked a few things far less.
const IDLE: Duration = Duration::from_millis(100);

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
    let time = time_while_silent(&monitor, Duration::from_secs(1));
    assert!(time < IDLE, "{time:?} within a second");

    let mut left = 2 * (16_000 + 41);
    while left > 0 {
        assert!(is_readable(&log, PATIENCE), "{left} bytes do not come");
        left -= log.read(&mut [0; 4096]).unwrap();
    }
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), 0));
    let late = exit.finished_at_ns - ended;
    assert!(late < 500_000_000, "finished {late} ns after its end");
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
    let ended = run_to_the_end(&mut monitor);
    // It may hold the output up for a second.
    let time = time_while_silent(&monitor, Duration::from_millis(700));
    assert!(time < IDLE, "{time:?} within 700 ms");
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(3), 0));
    let late = exit.finished_at_ns - ended;
    assert!(late < 500_000_000, "finished {late} ns after its end");
    monitor.release();
}
