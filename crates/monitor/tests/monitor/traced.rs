//! Processes that another one traces: the kernel tells their end to the tracer first.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use cria_monitor::exit::Status;
use cria_monitor::protocol::{Event, Request};
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::node::{Container, Monitor, Options, cpu_time, wait_for};

/// A debugger that stands still: it never looks what became of its process.
struct Tracer {
    leave: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tracer {
    fn seize(pid: i32) -> Self {
        let (leave, left) = channel();
        let (begun, begins) = channel();
        let thread = spawn(move || {
            ptrace::seize(Pid::from_raw(pid), ptrace::Options::empty()).unwrap();
            begun.send(()).unwrap();
            // A tracer is a thread: this one's end lets the process go.
            let _ = left.recv();
        });
        begins.recv().unwrap();
        Self { leave: Some(leave), thread: Some(thread) }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.leave = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

fn is_gone(pid: i32) -> Option<()> {
    (!PathBuf::from(format!("/proc/{pid}")).exists()).then_some(())
}

#[test]
fn a_traced_init_s_end_is_told_while_its_tracer_stands_still() {
    for (own_pid_namespace, expected) in
        [(true, Status::Signal(9)), (false, Status::Signal(9)), (true, Status::Code(5))]
    {
        let options = Options { stdin: true, own_pid_namespace, ..Options::default() };
        let container = Container::new("read line; exit 5", options);
        let mut monitor = Monitor::start(&container);
        let pid = monitor.client.state().init_pid;
        let tracer = Tracer::seize(pid);
        match expected {
            Status::Code(_) => monitor.client.done(Request::CloseStdin),
            Status::Signal(_) | Status::Unknown => monitor.client.signal(libc::SIGKILL),
        }
        assert_eq!(monitor.client.exited().status, expected);
        let time = cpu_time(monitor.process.id());
        assert!(time < Duration::from_millis(500), "{time:?} for waiting");
        assert!(is_gone(pid).is_none(), "its tracer let it go");
        drop(tracer);
        wait_for("end of the zombie", || is_gone(pid));
        monitor.release();
    }
}

#[test]
fn a_traced_init_holds_up_no_release() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let _tracer = Tracer::seize(monitor.client.state().init_pid);
    monitor.client.done(Request::Release);
    assert_eq!(monitor.client.exited().status, Status::Signal(9));
    assert!(monitor.process.wait().unwrap().success());
}

#[test]
fn a_traced_exec_s_end_is_told_while_its_tracer_stands_still() {
    let container = Container::new("sleep 1000", Options::default());
    let mut monitor = Monitor::start(&container);
    let mut exec = monitor.client.exec(1, "sleep 1000");
    exec.timeout = Some(Duration::from_secs(3));
    let (pid, _) = monitor.client.exec_started(exec);
    let tracer = Tracer::seize(pid);
    let event = monitor.client.event();
    assert_eq!(event, Event::ExecExited { exec: 1, status: Status::Signal(9), timed_out: true });
    assert!(is_gone(pid).is_none(), "its tracer let it go");
    drop(tracer);
    wait_for("end of the zombie", || is_gone(pid));
    monitor.release();
}
