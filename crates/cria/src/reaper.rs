//! Zombies that nobody waits for.
//!
//! The daemon is a subreaper, so that it can learn how the children of a dead monitor end. Other
//! orphans come to it as well: what an OCI runtime or a CNI plugin leaves behind. Whoever started a
//! child waits for it at once; a zombie that has been here for two rounds is nobody's.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// Much longer than anybody needs to wait for a child that has ended.
const ROUND: Duration = Duration::from_secs(2);

pub(crate) async fn reap_strangers() {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    let mut seen = HashSet::new();
    loop {
        // Nothing to do before a child ends, or while one is still watched.
        if seen.is_empty() {
            children.recv().await;
        }
        sleep(ROUND).await;
        let zombies = zombies();
        for pid in zombies.intersection(&seen) {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
        }
        seen = zombies;
    }
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
