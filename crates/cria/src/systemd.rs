//! What systemd is told: that the daemon serves, reloads, stops, lives, and how many pods it has.
//! Without systemd there is nobody to tell, and nothing is sent.

use std::env;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::warn;

use crate::daemon::Daemon;
use crate::sandbox::state::State;

/// How often the pods are counted for `systemctl status`; only what changed is sent.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// Where systemd listens, if it wants to hear of us.
const SOCKET: &str = "NOTIFY_SOCKET";

const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How many messages may wait for a systemd that is busy.
const UNSENT: usize = 16;

pub(crate) fn ready(daemon: &Daemon) {
    let status = Counts::of(daemon).to_string();
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Until the next `ready`. systemd wants to know since when.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot read the clock"),
    }
}

pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping; the containers live on")]);
}

/// Whether the whole system is on its way down. Asked at the daemon's end only: it takes a process
/// and a call over systemd's own socket.
pub(crate) async fn is_stopping() -> bool {
    let asked = Command::new("systemctl").arg("is-system-running").kill_on_drop(true).output();
    match timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(said)) => said.stdout.trim_ascii() == b"stopping",
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Tells the watchdog, if it wants to know, that tasks still get their turn.
pub(crate) async fn beat() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 2).await;
    }
}

/// Keeps the line that `systemctl status` shows.
pub(crate) async fn show_status(daemon: Arc<Daemon>) {
    if env::var_os(SOCKET).is_none() {
        return;
    }
    let mut shown = Counts::default();
    loop {
        let counts = Counts::of(&daemon);
        if counts != shown {
            notify(&[NotifyState::Status(&counts.to_string())]);
            shown = counts;
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
}

/// Hands the message to a thread that may wait: systemd's socket takes few messages unread, and a
/// systemd that is busy must not hold up those who serve.
fn notify(state: &[NotifyState<'_>]) {
    static TELLER: LazyLock<SyncSender<Vec<String>>> = LazyLock::new(|| {
        let (sender, messages) = sync_channel::<Vec<String>>(UNSENT);
        thread::spawn(move || messages.iter().for_each(|message| tell(&message)));
        sender
    });
    if env::var_os(SOCKET).is_some() {
        // What does not fit is old by the time it could be read.
        let _ = TELLER.try_send(state.iter().map(ToString::to_string).collect());
    }
}

fn tell(message: &[String]) {
    let message: Vec<_> = message.iter().map(|line| NotifyState::Custom(line)).collect();
    if let Err(error) = sd_notify::notify(&message) {
        warn!(%error, "cannot tell systemd");
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    pods: usize,
    ready: usize,
    containers: usize,
    running: usize,
}

impl Counts {
    fn of(daemon: &Daemon) -> Self {
        let (pods, containers) = (daemon.sandboxes.all(), daemon.containers.all());
        let is_ready = |pod: &&Arc<_>| is_ready(pod);
        let is_running = |container: &&Arc<_>| is_running(container);
        Self {
            pods: pods.len(),
            ready: pods.iter().filter(is_ready).count(),
            containers: containers.len(),
            running: containers.iter().filter(is_running).count(),
        }
    }
}

fn is_ready(pod: &crate::sandbox::Sandbox) -> bool {
    pod.record.get().state == State::Ready
}

fn is_running(container: &crate::container::Container) -> bool {
    matches!(container.state(), crate::container::state::State::Running { .. })
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pods, ready, containers, running } = self;
        write!(f, "{pods} pods, {ready} of them ready; {containers} containers, {running} running")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_counts_pods_and_containers() {
        let counts = Counts { pods: 3, ready: 2, containers: 5, running: 4 };
        assert_eq!(counts.to_string(), "3 pods, 2 of them ready; 5 containers, 4 running");
    }
}
