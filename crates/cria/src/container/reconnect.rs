//! Comes to a container's monitor again: when a connection has ended, and in a daemon that has just
//! been started, where monitors may have died too.

use std::sync::Arc;
use std::time::Duration;

use cria_monitor::protocol::{Descriptors, Event, Phase, Request, State as MonitorState};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::state::State;
use super::supervise::{DEADLINE, duplicate, recorded_exit};
use super::{Container, Record};
use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::error::chain;
use crate::monitor::{self, Monitor, MonitorError, News};
use crate::node::Node;

/// A monitor waits for nobody, so that it answers late on a busy node, but it does. One that is silent
/// for so long hangs: it is killed, and with it goes what only it knows.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// Between attempts to connect to a monitor that lives.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// An OCI runtime's `start` takes some ten milliseconds. One that hangs delays the daemon's start
/// by no more than this.
const START_PATIENCE: Duration = Duration::from_millis(500);

/// A container whose record a new daemon has read: its true state, from whoever knows it.
pub(crate) async fn recover(node: &Arc<Node>, record: Checkpoint<Record>) -> Arc<Container> {
    let container = Arc::new(Container::of(node, record));
    let other_boot = container.record.get().boot_id != node.boot_id;
    if container.state().is_exited() || other_boot {
        // Its resources went with the boot; the record did not.
        if other_boot {
            container.note_unknown_exit("the node was restarted").await;
        }
        container.release_former(node).await;
        return container;
    }
    if matches!(container.state(), State::Created { broken: Some(_) }) {
        return container;
    }
    // So that it can be stopped whatever its monitor does.
    container.held().descriptors.init = container.record.get().init();
    let regained = {
        let (container, node) = (Arc::clone(&container), Arc::clone(node));
        tokio::spawn(async move { container.regain_monitor(&node).await })
    };
    if timeout(DEADLINE, regained).await.is_err() {
        tracing::warn!(container = %container.id, "its monitor does not answer yet");
    }
    if let Some(at_ns) = container.record.get().stop_deadline_ns {
        let stopping = Arc::clone(&container);
        tokio::spawn(async move { stopping.stop(clock::until(at_ns)).await });
    }
    container
}

impl Container {
    async fn regain_monitor(self: &Arc<Self>, node: &Arc<Node>) {
        if !self.find_monitor(node).await {
            tracing::warn!(container = %self.id, "no monitor answers");
            self.recover_without_monitor(node).await;
        }
    }

    /// Connects to the monitor. False if there is none: as long as somebody holds its socket there
    /// must be no second one, which would write into the same log and the same exit record.
    pub(super) async fn find_monitor(self: &Arc<Self>, node: &Arc<Node>) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.reconnect(node).await {
                Ok(()) => return true,
                Err(error) if error.nobody_listens() => return false,
                Err(error) => self.end_if_silent(node, &error).await,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One that hangs is of no use to its container, and in the way of another.
    async fn end_if_silent(&self, node: &Node, error: &MonitorError) {
        tracing::warn!(container = %self.id, error = chain(error), "cannot connect to the monitor");
        if !matches!(error, MonitorError::Silent { .. }) {
            return;
        }
        match monitor::kill(&node.paths.container_run(&self.id)).await {
            Ok(()) => tracing::warn!(container = %self.id, "killed a monitor that does not answer"),
            Err(error) => tracing::warn!(container = %self.id, %error, "cannot kill the monitor"),
        }
    }

    async fn reconnect(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), MonitorError> {
        let (monitor, mut news) = Monitor::connect(&node.paths.container_run(&self.id))?;
        let monitor = Arc::new(monitor);
        let state = settled_state(&monitor, &mut news).await?;
        self.attend(node, monitor, news);
        self.note_state(state).await;
        Ok(())
    }

    async fn note_state(self: &Arc<Self>, mut state: MonitorState) {
        self.held().descriptors = std::mem::take(&mut state.descriptors);
        self.note_phase(&state).await;
    }

    /// The monitor knows better than the record what has happened meanwhile.
    pub(super) async fn note_phase(self: &Arc<Self>, state: &MonitorState) {
        match (state.phase, &state.exit) {
            (_, Some(exit)) => self.take_in(exit).await,
            (Phase::Running, None) => {
                let (pid, at_ns) = (state.init_pid, state.started_at_ns);
                let noted = self.record.note(|record| {
                    if let Ok(started) = record.state.clone().started(pid, at_ns) {
                        record.state = started;
                    }
                });
                if let Err(error) = noted.await {
                    tracing::warn!(container = %self.id, %error, "cannot write the record");
                }
            }
            (Phase::Created | Phase::Exited, None) => {}
        }
    }

    /// An ended container's monitor may still wait to be released.
    async fn release_former(self: &Arc<Self>, node: &Arc<Node>) {
        if let Ok((monitor, news)) = Monitor::connect(&node.paths.container_run(&self.id)) {
            self.attend(node, Arc::new(monitor), news);
            let container = Arc::clone(self);
            tokio::spawn(async move { container.release().await });
        }
    }

    /// Monitor and daemon died. The exit record, if there is one, is the truth; a process that
    /// still runs gets a monitor again; otherwise nobody knows.
    async fn recover_without_monitor(self: &Arc<Self>, node: &Arc<Node>) {
        if let Some(exit) = recorded_exit(&node.paths.container_run(&self.id)) {
            self.take_in(&exit).await;
            return self.delete_in_background(node);
        }
        let init = self.record.get().init();
        let Some(init) = init else {
            self.note_unknown_exit("its monitor and the daemon died").await;
            return self.delete_in_background(node);
        };
        let watched = init.try_clone().ok();
        let descriptors = Descriptors { init: Some(init), ..Descriptors::default() };
        match duplicate(&descriptors) {
            Ok(held) => self.held().descriptors = held,
            Err(error) => {
                tracing::warn!(container = %self.id, %error, "cannot keep hold of the process");
            }
        }
        if let Err(error) = self.adopt(node, &descriptors).await {
            tracing::error!(container = %self.id, error = chain(&error), "no monitor");
            let (container, node) = (Arc::clone(self), Arc::clone(node));
            tokio::spawn(async move {
                container.watch_alone(watched).await;
                container.delete_what_is_left(&node).await;
            });
        }
    }

    /// At the start, where nobody waits for the OCI runtime.
    fn delete_in_background(self: &Arc<Self>, node: &Arc<Node>) {
        let (container, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move { container.delete_what_is_left(&node).await });
    }
}

/// A former daemon's StartContainer may be under way: what is shown as created until it is done
/// would be taken for one that never ran, and be created a second time. What the events say that
/// come meanwhile, the state says too.
async fn settled_state(
    monitor: &Monitor,
    news: &mut mpsc::Receiver<News>,
) -> Result<MonitorState, MonitorError> {
    let state = monitor.ask_state(Request::State, SILENCE).await?;
    if !state.settling {
        return Ok(state);
    }
    let settled = async {
        while let Some(News::Event(event)) = news.recv().await {
            if matches!(event, Event::Settled | Event::Exited(_)) {
                return;
            }
        }
    };
    if timeout(START_PATIENCE, settled).await.is_err() {
        tracing::warn!("a start that a former daemon asked for does not end");
    }
    monitor.ask_state(Request::State, SILENCE).await
}
