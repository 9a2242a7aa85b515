//! What a monitor costs. Numbers mean something only for the packaged build on a quiet machine:
//! `CRIA_MONITOR=target/.../cria-monitor cargo test -p cria-monitor cost -- --ignored --nocapture`

use std::fs;
use std::time::Instant;

use cria_monitor::exit::Status;

use crate::node::{Container, Monitor, Options, wait_for};

/// Proportional set size of a process, in KiB.
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "a measurement"]
fn thirty_monitors_stay_within_their_budget() {
    const SCRIPT: &str = "echo ready; seq 1 200; sleep 1000";
    let containers: Vec<_> = (0..30).map(|_| Container::new(SCRIPT, Options::default())).collect();
    let monitors: Vec<_> = containers.iter().map(Monitor::start).collect();
    for container in &containers {
        wait_for("output", || container.log().ends_with(b" 200\n").then_some(()));
    }
    let total: u64 = monitors.iter().map(|monitor| pss(monitor.process.id())).sum();
    let pid = monitors[0].process.id();
    println!("{}", fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap());
    println!("{} KiB per monitor", total / 30);
    for monitor in monitors {
        monitor.release();
    }
    assert!(total / 30 <= 200);
}

#[test]
#[ignore = "a measurement"]
fn a_fast_container_is_logged_at_its_speed() {
    const LINES: usize = 4 << 20;
    let options =
        Options { log_dir: std::env::var_os("CRIA_LOG_DIR").map(Into::into), ..Options::default() };
    let container = Container::new("cat /big", options);
    let line = format!("{}\n", "x".repeat(99));
    fs::write(container.create.bundle.join("rootfs/big"), line.repeat(LINES)).unwrap();
    let mut monitor = Monitor::create(&container);
    let before = Instant::now();
    monitor.client.start();
    let exit = monitor.client.exited();
    let seconds = before.elapsed().as_secs_f64();
    assert_eq!((exit.status, exit.log_bytes_lost), (Status::Code(0), 0));
    let rate = (LINES * 100) as f64 / f64::from(1 << 20) / seconds;
    println!("{rate:.0} MiB/s, {} KiB", pss(monitor.process.id()));
    println!("{}", fs::read_to_string(format!("/proc/{}/status", monitor.process.id())).unwrap());
    monitor.release();
    let log = container.log();
    assert_eq!(log.len(), LINES * 140);
    let _ = fs::remove_file(container.create.log.as_ref().unwrap());
    assert!(rate >= 200.0);
}
