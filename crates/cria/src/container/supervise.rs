//! Watches over a container: hears its monitor, takes in its end, and replaces a monitor that dies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cria_monitor::exit::{Exit, Status};
use cria_monitor::protocol::{Adopt, Descriptors, Event, Phase, Request, State as MonitorState};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::remove::RELEASE_DEADLINE;
use super::state::{Exited, State};
use super::{Container, Record};
use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::error::chain;
use crate::monitor::{self, Monitor, MonitorError, News};
use crate::node::Node;
use crate::process;
use crate::sys;

/// Within this a monitor that lives answers.
const DEADLINE: Duration = Duration::from_secs(10);

/// A monitor waits for nobody, so that it answers late on a busy node, but it does. One that is silent
/// for so long hangs: it is killed, and with it goes what only it knows.
const SILENCE: Duration = Duration::from_secs(60);

/// Between attempts to connect to a monitor that lives.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// An OCI runtime's `start` takes some ten milliseconds. One that hangs delays the daemon's start
/// by no more than this.
const START_PATIENCE: Duration = Duration::from_millis(500);

impl Container {
    /// Keeps the connection, and starts the task that listens to it.
    pub(super) fn attend(
        self: &Arc<Self>,
        node: &Arc<Node>,
        monitor: Arc<Monitor>,
        news: mpsc::Receiver<News>,
    ) {
        self.monitor.send_replace(Some(monitor));
        let (container, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move { container.listen(&node, news).await });
    }

    async fn listen(self: Arc<Self>, node: &Arc<Node>, mut news: mpsc::Receiver<News>) {
        while let Some(news) = news.recv().await {
            match news {
                News::Event(event) => self.hear(event).await,
                News::Gone => break,
            }
        }
        self.execs.forsake();
        if self.state().is_exited() {
            // It has been released and has quit, unless the connection alone has ended.
            if let Err(error) = super::remove::dismiss(node, &self.id).await {
                tracing::warn!(container = %self.id, error = chain(&error), "the monitor stays");
            }
            self.monitor.send_replace(None);
        } else {
            self.monitor.send_replace(None);
            self.replace_monitor(node).await;
        }
    }

    async fn hear(self: &Arc<Self>, event: Event) {
        match event {
            Event::Exited(exit) => self.take_in(&exit).await,
            Event::ExecExited { exec, status, timed_out } => {
                self.execs.ended(exec, status, timed_out);
            }
            Event::StdinClosed => self.held().descriptors.stdin = None,
            Event::Settled => {
                // A task of its own: the reply comes through the loop that called us.
                let container = Arc::clone(self);
                tokio::spawn(async move { container.note_settled().await });
            }
            Event::LogLost { bytes, error } => {
                tracing::warn!(container = %self.id, bytes, error, "output could not be logged");
            }
        }
    }

    /// A start that a former daemon asked for, and that outlasted our own, has succeeded or failed.
    /// (Who asks this daemon for one has its answer.)
    async fn note_settled(self: &Arc<Self>) {
        let Some(monitor) = self.monitor() else { return };
        match monitor.ask_state(Request::State, DEADLINE).await {
            Ok(state) => self.note_phase(&state).await,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(container = %self.id, error, "cannot learn how the start went");
            }
        }
    }

    /// Notes the end, then lets the monitor go. If the disk refuses the note, the monitor's own
    /// exit record still holds it, and the monitor stays until the container is removed.
    pub(super) async fn take_in(self: &Arc<Self>, exit: &Exit) {
        let noted = self.note_exited(Exited::from_record(exit, self.created_at_ns)).await;
        self.held().descriptors = Descriptors::default();
        if noted {
            // A task of its own: the reply comes through the loop that called us.
            let container = Arc::clone(self);
            tokio::spawn(async move { container.release().await });
        }
    }

    /// Returns when the end of a container whose init is dead has been taken in; at once if it
    /// lives, or nobody can tell.
    pub(crate) async fn settle(&self) {
        let dead = |init: &OwnedFd| !process::is_alive(init);
        if self.held().descriptors.init.as_ref().is_some_and(dead) {
            let mut record = self.record.subscribe();
            drop(record.wait_for(|record| record.state.is_exited()).await);
        }
    }

    /// True if it stands on disk. Memory has it in any case.
    pub(super) async fn note_exited(&self, exited: Exited) -> bool {
        let noted = self.record.note(|record| {
            record.state = record.state.clone().exited(exited);
            record.stop_deadline_ns = None;
        });
        noted
            .await
            .inspect_err(|error| {
                tracing::warn!(container = %self.id, %error, "cannot write the exit into the record");
            })
            .is_ok()
    }

    /// Has the monitor remove what is left of the container, and quit. Returns when it has gone.
    pub(super) async fn release(&self) {
        let mut monitors = self.monitor.subscribe();
        let Some(monitor) = self.monitor() else { return };
        match monitor.tell(Request::Release, RELEASE_DEADLINE).await {
            Ok(()) | Err(MonitorError::Gone) => {}
            Err(error) => {
                tracing::warn!(container = %self.id, error = chain(&error), "the monitor stays");
                return;
            }
        }
        let gone = monitors.wait_for(Option::is_none);
        if timeout(DEADLINE, gone).await.is_err() {
            tracing::warn!(container = %self.id, "the monitor does not end");
        }
    }

    /// The connection has ended, its container has not. A monitor that lives is connected to again;
    /// otherwise another one goes on where it stopped.
    async fn replace_monitor(self: &Arc<Self>, node: &Arc<Node>) {
        if self.find_monitor(node).await || self.state().is_exited() {
            return;
        }
        if let Some(exit) = recorded_exit(&node.paths.container_run(&self.id)) {
            self.take_in(&exit).await;
            self.delete_what_is_left(node).await;
            return;
        }
        tracing::warn!(container = %self.id, "the monitor died; starting another");
        let held = duplicate(&self.held().descriptors);
        let init = held.as_ref().ok().and_then(|held| held.init.as_ref()?.try_clone().ok());
        // A monitor of an earlier daemon leaves its children to PID 1.
        let orphan_is_ours =
            process::is_our_child(self.record.get().init_pid) || self.held().init_status.is_some();
        let adopted = match held {
            Ok(held) => self.adopt(node, held).await,
            Err(error) => Err(MonitorError::Io(error)),
        };
        match (adopted, init) {
            (Ok(()), Some(init)) if orphan_is_ours => self.await_orphan(init).await,
            (Ok(()), _) => {}
            (Err(error), init) => {
                tracing::error!(
                    container = %self.id, error = chain(&error),
                    "no monitor for a running container: its output and exit code are lost",
                );
                self.watch_alone(init).await;
                self.delete_what_is_left(node).await;
            }
        }
    }

    /// What a monitor would have done after the end: nothing of an exited container runs, and no
    /// cgroup of it stays.
    pub(super) async fn delete_what_is_left(&self, node: &Node) {
        if !node.oci.knows(&self.id) {
            return;
        }
        self.held().killed = true;
        if let Err(error) = node.oci.delete(&self.id).await
            && node.oci.knows(&self.id)
        {
            tracing::warn!(container = %self.id, error = chain(&error), "cannot be deleted");
        }
    }

    async fn adopt(
        self: &Arc<Self>,
        node: &Arc<Node>,
        descriptors: Descriptors,
    ) -> Result<(), MonitorError> {
        let adopt = {
            let record = self.record.get();
            Adopt {
                container: super::create::order(node, &record)?,
                init_pid: record.init_pid,
                started_at_ns: match record.state {
                    State::Running { started_at_ns, .. } => started_at_ns,
                    State::Created { .. } | State::Exited(_) => 0,
                },
                killed_by_us: self.held().killed,
                descriptors,
            }
        };
        let (monitor, news) = Monitor::start(&node.spawner, self.id.as_str()).await?;
        let monitor = Arc::new(monitor);
        let state = monitor.ask_state(Request::Adopt(Box::new(adopt)), DEADLINE).await?;
        self.attend(node, monitor, news);
        if let Some(exit) = state.exit {
            self.take_in(&exit).await;
        }
        Ok(())
    }

    /// A monitor's child comes to the daemon that started the monitor when the monitor dies: only
    /// we can learn how it ends. Where several monitors have died, several tasks wait here, each
    /// for the monitor that it started.
    async fn await_orphan(self: &Arc<Self>, init: OwnedFd) {
        let Ok(init) = sys::watch(init) else { return };
        if init.readable().await.is_err() {
            return;
        }
        // Otherwise it was not ours to wait for: the monitor asks the kernel.
        let Some(status) = self.reap_init(init.get_ref()) else { return };
        if let Some(monitor) = self.monitor_soon().await
            && let Err(error) = monitor.tell(Request::InitEnded { status }, DEADLINE).await
        {
            tracing::warn!(container = %self.id, error = chain(&error), "cannot tell the monitor");
        }
    }

    /// How init, which has ended, did so: the kernel says it once.
    fn reap_init(&self, init: &OwnedFd) -> Option<Status> {
        let mut held = self.held();
        if held.init_status.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let ended = waitid(WaitId::PidFd(init.as_fd()), options).ok().flatten();
            held.init_status = ended.as_ref().map(status_of);
        }
        held.init_status
    }

    /// Without a monitor the end is seen, but nothing else.
    async fn watch_alone(self: &Arc<Self>, init: Option<OwnedFd>) {
        if let Some(init) = init
            && let Ok(init) = sys::watch(init)
        {
            drop(init.readable().await);
            self.reap_init(init.get_ref());
        }
        self.note_unknown_exit("its monitor died and could not be replaced").await;
    }

    async fn note_unknown_exit(&self, message: &str) {
        let started_at_ns = match self.state() {
            State::Running { started_at_ns, .. } => started_at_ns,
            State::Created { .. } | State::Exited(_) => 0,
        };
        self.note_exited(Exited::unknown(message, started_at_ns, clock::now_ns())).await;
    }
}

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
    async fn find_monitor(self: &Arc<Self>, node: &Arc<Node>) -> bool {
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
    async fn note_phase(self: &Arc<Self>, state: &MonitorState) {
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
        if let Err(error) = self.adopt(node, descriptors).await {
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

/// The record that a monitor left when its container ended.
fn recorded_exit(run_dir: &Path) -> Option<Exit> {
    Exit::read(run_dir)
        .inspect_err(|error| {
            tracing::warn!(path = %run_dir.display(), %error, "exit record is damaged");
        })
        .ok()
        .flatten()
}

fn status_of(status: &rustix::process::WaitIdStatus) -> Status {
    let code = status.exit_status().and_then(|code| u8::try_from(code).ok()).map(Status::Code);
    let signal = || status.terminating_signal().and_then(|signal| u8::try_from(signal).ok());
    code.or_else(|| signal().map(Status::Signal)).unwrap_or(Status::Unknown)
}

fn duplicate(descriptors: &Descriptors) -> io::Result<Descriptors> {
    let again =
        |descriptor: &Option<OwnedFd>| descriptor.as_ref().map(OwnedFd::try_clone).transpose();
    Ok(Descriptors {
        init: again(&descriptors.init)?,
        stdout: again(&descriptors.stdout)?,
        stderr: again(&descriptors.stderr)?,
        terminal: again(&descriptors.terminal)?,
        stdin: again(&descriptors.stdin)?,
    })
}
