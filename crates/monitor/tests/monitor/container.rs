//! A container's life beside its monitor.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cria_monitor::exit::Status;
use cria_monitor::protocol::{
    Event, Exec, FailureKind, FromMonitor, Packet, Phase, Reply, Request,
};
use cria_monitor::protocol::{SignalScope, Target};
use cria_monitor::socket;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};

use crate::node::{Client, Container, Monitor, Options, wait_for};

fn init_signal(signal: i32) -> Request {
    Request::Signal { target: Target::Init, signal, scope: SignalScope::Process }
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

/// The host's pid of the process whose command line holds `mark`.
fn find_process(mark: &str) -> Option<i32> {
    let mut pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str().and_then(|name| name.parse::<i32>().ok())
    });
    pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        line.first().is_some_and(|name| name.ends_with(b"sleep"))
            && line.get(1) == Some(&mark.as_bytes())
    })
}

fn cgroup_is_gone(container: &Container) -> bool {
    !container.create.cgroup.processes.as_ref().unwrap().exists()
}

#[test]
fn a_container_s_life_is_logged_and_its_exit_recorded() {
    let container = Container::new("echo out; echo err >&2; exit 7", Options::default());
    let mut monitor = Monitor::create(&container);
    assert!(!container.create.log.as_ref().unwrap().exists(), "a log before the start");
    let state = monitor.client.state();
    assert_eq!((state.phase, state.started_at_ns), (Phase::Created, 0));
    assert!(state.init_pid > 0 && state.descriptors.init.is_some());

    let started = monitor.client.start();
    let exit = monitor.client.exited();
    assert_eq!(exit.status, Status::Code(7));
    assert!(!exit.oom_killed);
    assert_eq!(exit.started_at_ns, started);
    assert!(started > 0 && started <= exit.finished_at_ns);
    assert_eq!(container.exit(), Some(exit.clone()));
    assert_eq!(container.output("stdout"), b"out\n");
    assert_eq!(container.output("stderr"), b"err\n");

    let state = monitor.client.state();
    assert_eq!((state.phase, state.exit, state.init_pid), (Phase::Exited, Some(exit), 0));
    monitor.release();
    assert!(cgroup_is_gone(&container));
    let mut left: Vec<_> = fs::read_dir(&container.create.run_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["exit", "log.state"]);
}

#[test]
fn every_byte_of_every_stream_is_logged_as_it_is() {
    let script = r"printf 'a\0b\r\n\n'; printf 'e1\ne2' >&2; head -c 40000 /dev/zero; echo;
        head -c 16384 /dev/zero; echo; head -c 32768 /dev/zero";
    let container = Container::new(script, Options::default());
    let mut monitor = Monitor::start(&container);
    assert_eq!(monitor.client.exited().status, Status::Code(0));

    let zeroes = |count: usize| vec![0; count];
    let mut expected = b"a\0b\r\n\n".to_vec();
    expected.extend([zeroes(40_000), b"\n".to_vec(), zeroes(16_384), b"\n".to_vec()].concat());
    expected.extend(zeroes(32_768));
    // The last record is F, though no newline came.
    expected.push(b'\n');
    assert!(container.output("stdout") == expected);
    assert_eq!(container.output("stderr"), b"e1\ne2\n");
    let records = container.records();
    for record in &records {
        assert!(record.text.len() <= 16_384);
        assert!(record.full || record.text.len() == 16_384, "a P record before 16 KiB");
    }
    for stream in ["stdout", "stderr"] {
        assert!(records.iter().rfind(|record| record.stream == stream).unwrap().full);
    }
    monitor.release();
}

#[test]
fn a_status_is_what_the_kernel_said() {
    let shared = || Options { own_pid_namespace: false, ..Options::default() };
    for (script, options, signal, expected) in [
        ("exit 0", Options::default(), None, Status::Code(0)),
        ("exit 255", Options::default(), None, Status::Code(255)),
        ("kill -SEGV $$", shared(), None, Status::Signal(11)),
        ("kill -40 $$", shared(), None, Status::Signal(40)),
        ("sleep 1000", Options::default(), Some(libc::SIGKILL), Status::Signal(9)),
        (
            "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done",
            Options::default(),
            Some(libc::SIGTERM),
            Status::Code(3),
        ),
    ] {
        let container = Container::new(script, options);
        let mut monitor = Monitor::start(&container);
        if let Some(signal) = signal {
            if script.contains("echo up") {
                wait_for("first line", || (!container.log().is_empty()).then_some(()));
            }
            monitor.client.done(init_signal(signal));
        }
        let exit = monitor.client.exited();
        assert_eq!((exit.status, exit.oom_killed), (expected, false), "{script}");
        monitor.client.done(init_signal(libc::SIGKILL));
        monitor.release();
    }
}

#[test]
fn a_kill_for_memory_is_told_from_others() {
    for (script, expected) in
        [("exec tail /dev/zero", Status::Signal(9)), ("tail /dev/zero; exit $?", Status::Code(137))]
    {
        let options = Options { memory_limit: Some(20 << 20), ..Options::default() };
        let container = Container::new(script, options);
        let mut monitor = Monitor::start(&container);
        let exit = monitor.client.exited();
        assert_eq!((exit.status, exit.oom_killed), (expected, true), "{script}");
        monitor.release();
    }
    // A child dies for memory, then init for another reason.
    let options = Options { memory_limit: Some(20 << 20), ..Options::default() };
    let container = Container::new("tail /dev/zero; exit 3", options);
    let mut monitor = Monitor::start(&container);
    let exit = monitor.client.exited();
    assert_eq!((exit.status, exit.oom_killed), (Status::Code(3), false));
    monitor.release();
}

#[test]
fn execs_run_side_by_side_and_each_tells_its_code() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let client = &mut monitor.client;
    let sequences: Vec<u32> = (0..8)
        .map(|number| {
            let exec = client.exec(number, &format!("exit {number}"));
            client.send(Request::Exec(exec))
        })
        .collect();
    let (mut started, mut ended) = (vec![], vec![]);
    while ended.len() < 8 {
        match client.receive().unwrap() {
            FromMonitor::Reply(sequence, Reply::ExecStarted { .. }) => started.push(sequence),
            FromMonitor::Event(Event::ExecExited { exec, status, timed_out: false }) => {
                let number = u32::try_from(exec).unwrap();
                assert!(started.contains(&sequences[number as usize]), "ended before its start");
                assert_eq!(status, Status::Code(u8::try_from(number).unwrap()));
                ended.push(number);
            }
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2, 3, 4, 5, 6, 7]);
    monitor.release();
    assert!(cgroup_is_gone(&container));
}

#[test]
fn an_exec_s_pipes_reach_their_end_with_it() {
    let container = Container::new("sleep 1000", Options { stdin: true, ..Options::default() });
    let mut monitor = Monitor::start(&container);
    let (stdin, their_end) = {
        let (read, write) = pipe().unwrap();
        (write, read)
    };
    let (stdout, their_stdout) = pipe().unwrap();
    let (stderr, their_stderr) = pipe().unwrap();
    let mut exec = monitor.client.exec(1, "cat; echo err >&2; exit 4");
    exec.stdin = Some(their_end);
    exec.stdout = Some(their_stdout);
    exec.stderr = Some(their_stderr);
    monitor.client.exec_started(exec);
    File::from(stdin).write_all(b"in").unwrap();
    // Reading ends only if the monitor has closed its copies.
    let read = |end: OwnedFd| {
        let mut text = vec![];
        File::from(end).read_to_end(&mut text).unwrap();
        text
    };
    assert_eq!((read(stdout), read(stderr)), (b"in".to_vec(), b"err\n".to_vec()));
    let event = monitor.client.event();
    let expected = Event::ExecExited { exec: 1, status: Status::Code(4), timed_out: false };
    assert_eq!(event, expected);
    monitor.release();
}

#[test]
fn a_late_exec_is_killed_with_its_session() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let mark = |kind: &str| format!("{}.{kind}", 7_000_000 + std::process::id());
    let (child, other, main) = (mark("1"), mark("2"), mark("3"));
    let script = format!("(sleep {child} &); setsid sleep {other} & sleep {main}");
    let mut exec = monitor.client.exec(5, &script);
    exec.timeout = Some(Duration::from_secs(3));
    monitor.client.exec_started(exec);
    let pids = [&child, &other, &main].map(|mark| wait_for("process", || find_process(mark)));
    let event = monitor.client.event();
    assert_eq!(event, Event::ExecExited { exec: 5, status: Status::Signal(9), timed_out: true });
    for pid in [pids[0], pids[2]] {
        wait_for("end of the session", || (!is_alive(pid)).then_some(()));
    }
    assert!(is_alive(pids[1]), "a process of another session was killed");
    monitor.release();
    wait_for("end of the container", || (!is_alive(pids[1])).then_some(()));
}

#[test]
fn an_exec_that_begins_after_its_time_is_ended_all_the_same() {
    let base = tempfile::tempdir().unwrap();
    // The process runs a second before its pid is told.
    let late = "f=$(echo \"$*\" | sed 's/.*--pid-file \\([^ ]*\\).*/\\1/'); \
        runc $(echo \"$*\" | sed 's/\\(--pid-file [^ ]*\\)/\\1.early/') || exit; \
        sleep 1; mv $f.early $f; exit 0";
    let runtime = stand_in(base.path(), "exec", late);
    let container = Container::new("sleep 1000", Options { runtime, ..Options::default() });
    let mut monitor = Monitor::start(&container);
    let mark = format!("1{:06}", std::process::id());
    let mut exec = monitor.client.exec(1, &format!("exec sleep {mark}"));
    exec.timeout = Some(Duration::from_millis(300));
    let failure = monitor.client.failed(Request::Exec(exec));
    assert_eq!(failure.kind, FailureKind::TimedOut, "{}", failure.message);
    wait_for("start of the command", || find_process(&mark));
    wait_for("end of the command", || find_process(&mark).is_none().then_some(()));
    assert_eq!(monitor.client.state().phase, Phase::Running);
    monitor.release();
}

#[test]
fn an_exec_dies_with_the_connection_that_asked_for_it() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let mut other = Client::connect(&container).unwrap();
    let (mut dying, staying) = (other.exec(1, "sleep 1000"), other.exec(2, "sleep 1000"));
    dying.dies_with_connection = true;
    let (dying, _) = other.exec_started(dying);
    let (staying, _) = other.exec_started(staying);
    drop(other);
    wait_for("end of the exec", || (!is_alive(dying)).then_some(()));
    assert!(is_alive(staying));
    let request = Request::Signal {
        target: Target::Exec(2),
        signal: libc::SIGKILL,
        scope: SignalScope::Group,
    };
    monitor.client.done(request);
    wait_for("end of the exec", || (!is_alive(staying)).then_some(()));
    monitor.release();
}

#[test]
fn a_child_that_holds_the_pipe_does_not_hold_the_exit() {
    let mark = format!("{}.9", 8_000_000 + std::process::id());
    let options = Options { own_pid_namespace: false, ..Options::default() };
    let container = Container::new(&format!("sleep {mark} & echo hello; exit 0"), options);
    let mut monitor = Monitor::start(&container);
    assert_eq!(monitor.client.exited().status, Status::Code(0));
    assert_eq!(container.output("stdout"), b"hello\n");
    wait_for("end of the child", || find_process(&mark).is_none().then_some(()));
    monitor.release();
    assert!(cgroup_is_gone(&container));
}

#[test]
fn a_group_signal_reaches_everybody() {
    let mark = format!("{}.8", 9_000_000 + std::process::id());
    let options = Options { own_pid_namespace: false, ..Options::default() };
    let script = format!("trap 'exit 0' TERM; sleep {mark} & while :; do sleep 0.05; done");
    let container = Container::new(&script, options);
    let mut monitor = Monitor::start(&container);
    let pid = wait_for("child", || find_process(&mark));
    monitor.client.done(Request::Signal {
        target: Target::Init,
        signal: libc::SIGTERM,
        scope: SignalScope::Group,
    });
    wait_for("end of the child", || (!is_alive(pid)).then_some(()));
    assert_eq!(monitor.client.exited().status, Status::Code(0));
    monitor.release();
}

#[test]
fn an_exit_that_no_daemon_saw_waits_for_the_next_one() {
    let container = Container::new("sleep 0.2; exit 5", Options::default());
    let mut monitor = Monitor::start(&container);
    let mut next = Client::connect(&container).unwrap();
    monitor.client = Client::connect(&container).unwrap();
    let exit = wait_for("exit record", || container.exit());
    assert_eq!(exit.status, Status::Code(5));
    drop(std::mem::replace(&mut next, Client::connect(&container).unwrap()));
    let state = next.state();
    assert_eq!((state.phase, state.exit), (Phase::Exited, Some(exit)));
    monitor.client = next;
    monitor.release();
}

#[test]
fn a_monitor_that_is_told_to_end_stays_until_its_container_has_ended() {
    let options = Options { stdin: true, ..Options::default() };
    let container = Container::new("read line; exit 6", options);
    let mut monitor = Monitor::start(&container);
    let pid = Pid::from_raw(i32::try_from(monitor.process.id()).unwrap());
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGTERM] {
        kill(pid, signal).unwrap();
    }
    assert_eq!(monitor.client.state().phase, Phase::Running);
    monitor.client.done(Request::CloseStdin);
    assert_eq!(monitor.client.exited().status, Status::Code(6));
    assert!(monitor.process.wait().unwrap().success());
    assert_eq!(container.exit().unwrap().status, Status::Code(6));
    assert!(cgroup_is_gone(&container));
}

#[test]
fn a_rotation_loses_nothing_and_a_failed_one_leaves_no_file() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; cat";
    let container = Container::new(script, Options { stdin: true, ..Options::default() });
    let mut monitor = Monitor::start(&container);
    let log = container.create.log.clone().unwrap();
    let mut text = vec![];
    for number in 0..5 {
        let rotated = log.with_file_name(format!("rotated.{number}"));
        fs::rename(&log, &rotated).unwrap();
        monitor.client.done(Request::ReopenLog);
        assert!(log.exists(), "answered before the new file was there");
        text.extend(crate::node::output(
            &crate::node::records(&fs::read(&rotated).unwrap()),
            "stdout",
        ));
    }
    monitor.client.done(Request::CloseStdin);

    let moved = log.parent().unwrap().with_file_name("moved");
    fs::rename(log.parent().unwrap(), &moved).unwrap();
    let failure = monitor.client.failed(Request::ReopenLog);
    if failure.kind != FailureKind::WrongPhase {
        assert_eq!(failure.kind, FailureKind::System, "{failure:?}");
    }
    assert!(!log.exists());
    monitor.client.exited();
    fs::rename(&moved, log.parent().unwrap()).unwrap();
    text.extend(container.output("stdout"));
    let expected: String = (0..3000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), expected);

    fs::rename(&log, log.with_extension("old")).unwrap();
    let failure = monitor.client.failed(Request::ReopenLog);
    assert_eq!(failure.kind, FailureKind::WrongPhase);
    assert!(!log.exists(), "a file after the exit");
    monitor.release();
}

/// A file system of a few KiB, unmounted whatever happens.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Self(at)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

#[test]
fn a_full_disk_costs_log_lines_and_is_told() {
    let base = tempfile::tempdir().unwrap();
    let tiny = Tiny::mount(base.path().join("log"));
    let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 6";
    let options = Options { log_dir: Some(tiny.0.clone()), ..Options::default() };
    let container = Container::new(script, options);
    let mut monitor = Monitor::start(&container);
    let mut told = 0;
    let exit = loop {
        match monitor.client.event() {
            Event::LogLost { bytes, error } => {
                assert!(bytes > 0 && error.contains("space"), "{error}");
                told += 1;
            }
            Event::Exited(exit) => break exit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(exit.status, Status::Code(6));
    assert!(told > 0, "nothing was told before the exit");
    // Not one record is torn, and what is not there is counted to the byte.
    let all: usize = (0..5000).map(|number| format!("line {number}\n").len()).sum();
    let written = container.output("stdout").len();
    assert!(written > 0);
    assert_eq!(written as u64 + exit.log_bytes_lost, all as u64);
    monitor.release();
}

/// The OCI runtime, but for one verb.
fn stand_in(dir: &Path, verb: &str, does: &str) -> PathBuf {
    let path = dir.join("runtime");
    let script =
        format!("#!/bin/sh\ncase \" $* \" in *' {verb} '*) {does};; esac\nexec runc \"$@\"\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_runtime_that_hangs_is_killed_with_its_children() {
    let base = tempfile::tempdir().unwrap();
    let mark = format!("{}.7", 6_000_000 + std::process::id());
    for verb in ["create", "start", "exec"] {
        let options = Options {
            runtime: stand_in(base.path(), verb, &format!("sleep {mark}")),
            deadline: Duration::from_secs(3),
            ..Options::default()
        };
        let container = Container::new("sleep 1000", options);
        let mut monitor = Monitor::spawn();
        let before = Instant::now();
        let failure = if verb == "create" {
            monitor.client.failed(container.request())
        } else {
            monitor = Monitor::create(&container);
            if verb == "start" {
                let failure = monitor.client.failed(Request::Start);
                // An empty log is there, and the container can still be removed.
                assert_eq!(container.log(), b"");
                assert!(container.create.log.as_ref().unwrap().exists());
                assert_eq!(monitor.client.state().phase, Phase::Created);
                failure
            } else {
                monitor.client.start();
                let exec = monitor.client.exec(1, "exit 0");
                monitor.client.failed(Request::Exec(exec))
            }
        };
        assert_eq!(failure.kind, FailureKind::TimedOut, "{verb}: {}", failure.message);
        assert!(before.elapsed() < Duration::from_secs(60));
        wait_for("end of the runtime", || find_process(&mark).is_none().then_some(()));
        if verb == "create" {
            assert!(monitor.process.wait().unwrap().success());
        } else {
            monitor.release();
        }
        assert!(cgroup_is_gone(&container));
    }
}

#[test]
fn a_create_and_an_exec_run_the_program_that_comes_with_them() {
    let base = tempfile::tempdir().unwrap();
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find_map(|path| fs::read(path).ok());
    let runc = socket::sealed(c"runc", &runc.unwrap()).unwrap();
    // At its path is one that can do everything else.
    let runtime = stand_in(base.path(), "create' | *' exec", "exit 1");
    let container = Container::new("sleep 1000", Options { runtime, ..Options::default() });
    let mut monitor = Monitor::spawn();
    let create = Box::new(container.create.clone());
    let program = Some(runc.try_clone().unwrap());
    match monitor.client.ask(Request::Create { container: create, program }) {
        Reply::State(state) => assert_eq!(state.phase, Phase::Created),
        other => panic!("{other:?}"),
    }
    monitor.client.start();
    let exec = Exec { program: Some(runc), ..monitor.client.exec(1, "exit 5") };
    monitor.client.exec_started(exec);
    match monitor.client.receive().unwrap() {
        FromMonitor::Event(Event::ExecExited { status, .. }) => assert_eq!(status, Status::Code(5)),
        other => panic!("{other:?}"),
    }
    monitor.release();
    assert!(cgroup_is_gone(&container));
}

#[test]
fn a_create_that_is_refused_says_why_and_leaves_nothing() {
    let options = Options { args: Some(vec!["/bin/nope".into()]), ..Options::default() };
    let container = Container::new("", options);
    let mut monitor = Monitor::spawn();
    let failure = monitor.client.failed(container.request());
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("/bin/nope"), "{}", failure.message);
    assert!(monitor.client.receive().is_none());
    assert!(monitor.process.wait().unwrap().success());
    assert_eq!(fs::read_dir(&container.create.run_dir).unwrap().count(), 0);
    assert!(!container.create.log.as_ref().unwrap().exists());
    assert!(cgroup_is_gone(&container));

    let mut create = container.create.clone();
    create.runtime.path = "/no/such/runtime".into();
    let mut monitor = Monitor::spawn();
    let failure =
        monitor.client.failed(Request::Create { container: Box::new(create), program: None });
    assert_eq!(failure.kind, FailureKind::System);
}

#[test]
fn a_release_ends_whatever_there_is() {
    for started in [false, true] {
        let container = Container::new("trap '' TERM; sleep 1000", Options::default());
        let mut monitor = Monitor::create(&container);
        if started {
            monitor.client.start();
        }
        monitor.client.done(Request::Release);
        assert_eq!(monitor.client.exited().status, Status::Signal(9));
        assert!(monitor.process.wait().unwrap().success());
        assert!(cgroup_is_gone(&container));
        assert!(!container.create.run_dir.join("monitor.sock").exists());
    }
}

#[test]
fn a_terminal_is_logged_resized_and_written_to() {
    let script = "stty size; read line; echo got $line; stty size; [ -t 0 ] && echo terminal";
    let container = Container::new(script, Options { terminal: true, ..Options::default() });
    let mut monitor = Monitor::create(&container);
    let state = monitor.client.state();
    assert!(state.descriptors.stdout.is_none());
    let terminal = File::from(state.descriptors.terminal.unwrap());
    let resize = |rows: &str, columns: &str| {
        let mut stty = Command::new("stty");
        stty.args(["rows", rows, "columns", columns]).stdin(terminal.try_clone().unwrap());
        assert!(stty.status().unwrap().success());
    };
    resize("11", "33");
    monitor.client.start();
    wait_for("first size", || (container.output("stdout").starts_with(b"11 33\r\n")).then_some(()));
    resize("22", "44");
    (&terminal).write_all(b"words\n").unwrap();
    assert_eq!(monitor.client.exited().status, Status::Code(0));
    let text = String::from_utf8(container.output("stdout")).unwrap();
    assert_eq!(text, "11 33\r\nwords\r\ngot words\r\n22 44\r\nterminal\r\n");
    assert_eq!(container.output("stderr"), b"");
    monitor.release();
}

#[test]
fn an_exec_s_terminal_comes_with_the_answer() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let mut exec = monitor.client.exec(1, "read line; echo got $line");
    let process = r#"{"terminal":true,"user":{"uid":0,"gid":0},"args":["/bin/sh","-c","read line; echo got $line"],"env":["PATH=/bin"],"cwd":"/"}"#;
    exec.process = socket::sealed(c"process", process.as_bytes()).unwrap();
    exec.terminal = true;
    let (_, terminal) = monitor.client.exec_started(exec);
    let terminal = File::from(terminal.unwrap());
    (&terminal).write_all(b"words\n").unwrap();
    assert!(matches!(monitor.client.event(), Event::ExecExited { status: Status::Code(0), .. }));
    let mut text = vec![];
    // EIO, once nobody has the other side open.
    (&terminal).read_to_end(&mut text).unwrap_err();
    assert!(String::from_utf8_lossy(&text).contains("got words"));
    monitor.release();
}

#[test]
fn stdin_ends_when_it_is_closed() {
    let container = Container::new("cat; echo done", Options { stdin: true, ..Options::default() });
    let mut monitor = Monitor::start(&container);
    let state = monitor.client.state();
    assert!(state.stdin_open);
    let mut stdin = File::from(state.descriptors.stdin.unwrap());
    stdin.write_all(b"one\n").unwrap();
    wait_for("echo", || (container.output("stdout") == b"one\n").then_some(()));
    monitor.client.done(Request::CloseStdin);
    assert_eq!(monitor.client.event(), Event::StdinClosed);
    assert!(!monitor.client.state().stdin_open);
    drop(stdin);
    assert_eq!(monitor.client.exited().status, Status::Code(0));
    assert_eq!(container.output("stdout"), b"one\ndone\n");
    monitor.release();
}

#[test]
fn what_does_not_fit_the_phase_is_refused() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::create(&container);
    let exec = monitor.client.exec(1, "true");
    assert_eq!(monitor.client.failed(Request::Exec(exec)).kind, FailureKind::WrongPhase);
    assert_eq!(monitor.client.failed(Request::ReopenLog).kind, FailureKind::WrongPhase);
    assert!(!container.create.log.as_ref().unwrap().exists());
    monitor.client.start();
    assert_eq!(monitor.client.failed(Request::Start).kind, FailureKind::WrongPhase);
    let again = container.request();
    assert_eq!(monitor.client.failed(again).kind, FailureKind::WrongPhase);

    // A newer daemon's request.
    let unknown = Packet { bytes: vec![1, 0, 99, 0, 77, 0, 0, 0], fds: vec![] };
    socket::send(monitor.client.socket.as_fd(), &unknown).unwrap();
    match monitor.client.receive().unwrap() {
        FromMonitor::Reply(77, Reply::Failed(failure)) => {
            assert_eq!(failure.kind, FailureKind::Unsupported);
        }
        other => panic!("{other:?}"),
    }
    monitor.release();
}

#[test]
fn a_start_that_finds_no_log_directory_fails_and_can_be_tried_again() {
    let container = Container::new("echo hello", Options::default());
    let mut monitor = Monitor::create(&container);
    let dir = container.create.log.as_ref().unwrap().parent().unwrap();
    fs::remove_dir(dir).unwrap();
    assert_eq!(monitor.client.failed(Request::Start).kind, FailureKind::System);
    assert_eq!(monitor.client.state().phase, Phase::Created);
    fs::create_dir(dir).unwrap();
    monitor.client.start();
    monitor.client.exited();
    assert_eq!(container.output("stdout"), b"hello\n");
    monitor.release();
}

#[test]
fn a_monitor_ignores_every_signal_but_sigkill() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let pid = Pid::from_raw(i32::try_from(monitor.process.id()).unwrap());
    for signal in Signal::iterator() {
        use nix::sys::signal::Signal::{SIGABRT, SIGKILL, SIGSTOP};
        if ![SIGKILL, SIGSTOP, SIGABRT].contains(&signal) {
            kill(pid, signal).unwrap();
        }
    }
    assert_eq!(monitor.client.state().phase, Phase::Running);
    monitor.release();
}

#[test]
fn a_container_inherits_nothing_of_its_monitor() {
    let script = "cat /proc/self/status; echo umask $(umask); ls /proc/self/fd | cat;
        cat /proc/self/oom_score_adj";
    let script = script.replace("ls /proc/self/fd | cat", "echo fds /proc/self/fd/*");
    let container = Container::new(&script, Options::default());
    let mut monitor = Monitor::start(&container);
    monitor.client.exited();
    let text = String::from_utf8(container.output("stdout")).unwrap();
    assert!(text.contains("\nSigBlk:\t0000000000000000\n"), "{text}");
    assert!(text.contains("\nSigIgn:\t0000000000000000\n"), "{text}");
    assert!(text.contains("\numask 0022\n"), "{text}");
    // The fourth is the shell's own, for the directory.
    let fds = text.lines().find(|line| line.starts_with("fds ")).unwrap();
    assert!(fds.split(' ').count() <= 5, "{fds}");
    assert!(text.ends_with("\n100\n"), "{text}");
    monitor.release();
}
