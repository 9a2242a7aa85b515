//! The real monitor with the real OCI runtime, and a daemon's part played by the tests.

mod node;

use cria_monitor::exit::Status;
use cria_monitor::protocol::Phase;

use node::{Container, Monitor, Options};

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
}
