//! Zombies that nobody waits for.
//!
//! The daemon is a subreaper, so that it can learn how the children of a dead monitor end. Other
//! orphans come to it as well: what an OCI runtime or a CNI plugin leaves behind. Whoever started a
//! child waits for it at once; a zombie that has been here for two rounds is nobody's, unless it is
//! the init of a container whose end is still to be learnt.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::daemon::Daemon;

/// Much longer than anybody needs to wait for a child that has ended.
const ROUND: Duration = Duration::from_secs(2);

pub(crate) async fn reap_strangers(daemon: Arc<Daemon>) {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    let mut seen = HashSet::new();
    loop {
        // Nothing to do before a child ends, or while one is still watched.
        if seen.is_empty() {
            children.recv().await;
        }
        sleep(ROUND).await;
        let mut zombies = zombies();
        if !zombies.is_empty() {
            let awaited = awaited(&daemon);
            zombies.retain(|pid| !awaited.contains(pid));
        }
        for pid in zombies.intersection(&seen) {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
        }
        seen = zombies;
    }
}

/// Whose end somebody waits for, however long a busy node takes to replace its monitor.
fn awaited(daemon: &Daemon) -> HashSet<i32> {
    let containers = daemon.containers.all();
    let records = containers.iter().map(|container| container.record.get());
    records.filter(|record| !record.state.is_exited()).map(|record| record.init_pid).collect()
}

/// Our children that have ended.
fn zombies() -> HashSet<i32> {
    let Ok(tasks) = fs_err::read_dir("/proc/self/task") else { return HashSet::new() };
    tasks
        .flatten()
        .filter_map(|task| fs_err::read_to_string(task.path().join("children")).ok())
        .flat_map(|pids| {
            pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .filter(|pid| is_zombie(*pid))
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
