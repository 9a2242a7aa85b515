//! A monitor is killed, and another one takes its place.

use std::fs;
use std::time::Duration;

use cria_monitor::exit::Status;
use cria_monitor::protocol::{Adopt, Descriptors, Phase, Request, State};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::node::{Container, Monitor, Options, cpu_time, wait_for};

/// What a daemon holds of a container, should its monitor die.
fn held(state: State) -> (Descriptors, i32, i64) {
    (state.descriptors, state.init_pid, state.started_at_ns)
}

fn adopt(container: &Container, held: (Descriptors, i32, i64)) -> Monitor {
    let (descriptors, init_pid, started_at_ns) = held;
    let container = container.create.clone();
    Monitor::adopt(Adopt { container, init_pid, started_at_ns, killed_by_us: false, descriptors })
}

fn copy(descriptors: &Descriptors) -> Descriptors {
    let copy = |fd: &Option<std::os::fd::OwnedFd>| fd.as_ref().map(|fd| fd.try_clone().unwrap());
    Descriptors {
        init: copy(&descriptors.init),
        stdout: copy(&descriptors.stdout),
        stderr: copy(&descriptors.stderr),
        terminal: copy(&descriptors.terminal),
        stdin: copy(&descriptors.stdin),
    }
}

#[test]
fn a_kill_of_the_monitor_tears_no_line_and_costs_at_most_a_read() {
    set_child_subreaper(true).unwrap();
    let script = "seq 1 3000000; exit 9";
    let container = Container::new(script, Options::default());
    let mut monitor = Monitor::start(&container);
    let (descriptors, pid, started) = held(monitor.client.state());
    let mut kills = 0;
    let mut size = 0;
    while container.exit().is_none() && kills < 30 {
        // Somewhere in the middle of things.
        let now = wait_for("more of the log", || {
            let now = container.log().len();
            (now > size + 300_000 + kills * 1_111 || container.exit().is_some()).then_some(now)
        });
        size = now;
        if container.exit().is_some() {
            break;
        }
        monitor.kill();
        kills += 1;
        monitor = adopt(&container, (copy(&descriptors), pid, started));
    }
    assert!(kills >= 3, "killed only {kills} times");
    if container.exit().is_none() {
        let WaitStatus::Exited(_, code) = waitpid(Pid::from_raw(pid), None).unwrap() else {
            panic!("not exited");
        };
        let status = Status::Code(u8::try_from(code).unwrap());
        monitor.client.done(Request::InitEnded { status });
        assert_eq!(monitor.client.exited().status, Status::Code(9));
    }
    // Every record whole and in order; what is missing is missing in one piece per kill.
    let records = container.records();
    let numbers: Vec<Option<u64>> = records
        .iter()
        .map(|record| std::str::from_utf8(&record.text).unwrap().parse().ok())
        .collect();
    let (mut last, mut gaps, mut odd) = (0u64, 0, 0);
    for (at, number) in numbers.iter().enumerate() {
        match number {
            Some(number) if *number == last + 1 => last = *number,
            Some(number) if numbers.get(at + 1) == Some(&Some(number + 1)) => {
                assert!(*number > last, "{number} after {last}");
                assert!(number - last < 32 * 1024, "lost more than a read: {last} to {number}");
                (last, gaps) = (*number, gaps + 1);
            }
            // Two halves of different numbers, where a read was lost.
            Some(_) | None => odd += 1,
        }
    }
    assert!(gaps <= kills && odd <= kills, "{gaps} gaps, {odd} odd lines, {kills} kills");
    assert_eq!(last, 3_000_000);
    monitor.release();
}

#[test]
fn what_is_half_written_at_the_kill_is_completed() {
    set_child_subreaper(true).unwrap();
    let script = "echo whole; printf half; head -c 1 >/dev/null; echo -and-half; exit 2";
    let container = Container::new(script, Options { stdin: true, ..Options::default() });
    let mut monitor = Monitor::start(&container);
    let state = monitor.client.state();
    wait_for("first line", || (container.output("stdout") == b"whole\n").then_some(()));
    wait_for("half line", || {
        // What is held is in the shared file.
        let state = fs::read(container.create.run_dir.join("log.state")).unwrap();
        state.windows(4).any(|bytes| bytes == b"half").then_some(())
    });
    monitor.kill();
    // A record of which the dead monitor wrote only a part.
    let mut torn = container.log();
    torn.extend(b"2026-11-23T23:57:46.123456789Z stdout F to");
    fs::write(container.create.log.as_ref().unwrap(), torn).unwrap();
    let held = held(state);
    let pid = held.1;
    let mut monitor = adopt(&container, held);
    let state = monitor.client.state();
    assert_eq!((state.phase, state.stdin_open), (Phase::Running, true));
    monitor.client.done(Request::CloseStdin);
    drop(state);
    let status = waitpid(Pid::from_raw(pid), None).unwrap();
    assert_eq!(status, WaitStatus::Exited(Pid::from_raw(pid), 2));
    monitor.client.done(Request::InitEnded { status: Status::Code(2) });
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(2), 0));
    assert_eq!(container.output("stdout"), b"whole\nhalf-and-half\n");
    monitor.release();
}

fn kernel_tells() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
}

#[test]
fn an_adopted_init_s_status_comes_from_the_kernel_or_is_unknown() {
    set_child_subreaper(true).unwrap();
    for reaped in [true, false] {
        let container = Container::new("sleep 3; exit 8", Options::default());
        let mut monitor = Monitor::start(&container);
        let held = held(monitor.client.state());
        let pid = Pid::from_raw(held.1);
        monitor.kill();
        let mut monitor = adopt(&container, held);
        if reaped {
            waitpid(pid, None).unwrap();
        }
        let exit = monitor.client.exited();
        let time = cpu_time(monitor.process.id());
        assert!(time < Duration::from_millis(500), "{time:?} for waiting");
        // Kernel 6.15 and newer tell of a process that was reaped.
        let expected = if reaped && kernel_tells() { Status::Code(8) } else { Status::Unknown };
        assert_eq!(exit.status, expected);
        if !reaped {
            waitpid(pid, None).unwrap();
        }
        monitor.release();
    }
}

#[test]
fn a_created_container_is_adopted_and_started() {
    set_child_subreaper(true).unwrap();
    let container = Container::new("echo hello; sleep 1000", Options::default());
    let mut monitor = Monitor::create(&container);
    let held = held(monitor.client.state());
    let pid = held.1;
    monitor.kill();
    let mut monitor = adopt(&container, held);
    assert_eq!(monitor.client.state().phase, Phase::Created);
    monitor.client.start();
    wait_for("output", || (container.output("stdout") == b"hello\n").then_some(()));
    monitor.client.signal(libc::SIGKILL);
    let WaitStatus::Signaled(_, signal, _) = waitpid(Pid::from_raw(pid), None).unwrap() else {
        panic!("not killed");
    };
    let status = Status::Signal(u8::try_from(signal as i32).unwrap());
    monitor.client.done(Request::InitEnded { status });
    assert_eq!(monitor.client.exited().status, Status::Signal(9));
    monitor.release();
}

#[test]
fn an_exit_that_a_dead_monitor_recorded_stands() {
    let container = Container::new("exit 4", Options::default());
    let mut monitor = Monitor::start(&container);
    let exit = monitor.client.exited();
    monitor.kill();
    let descriptors = Descriptors::default();
    let mut monitor = adopt(&container, (descriptors, 1, exit.started_at_ns));
    let state = monitor.client.state();
    assert_eq!((state.phase, state.exit), (Phase::Exited, Some(exit)));
    monitor.release();
}
