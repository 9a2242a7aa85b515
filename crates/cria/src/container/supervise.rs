//! Watches over a container: hears its monitor, takes in its end, and replaces a monitor that dies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cria_monitor::exit::{Exit, Status};
use cria_monitor::protocol::{Adopt, Descriptors, Event, Request};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Container;
use super::reconnect::SILENCE;
use super::remove::RELEASE_DEADLINE;
use super::state::{Exited, State};
use crate::clock;
use crate::error::chain;
use crate::monitor::{Monitor, MonitorError, News};
use crate::node::Node;
use crate::process;
use crate::sys;

/// Within this a monitor that lives answers, unless the node is very busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// A program that dies by itself each time is not tried for ever.
const MOST_ADOPTIONS: u32 = 5;

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
        match monitor.ask_state(Request::State, SILENCE).await {
            Ok(state) => self.note_phase(&state).await,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(container = %self.id, error, "cannot learn how the start went");
            }
        }
    }

    /// Notes the end, then lets the monitor go. If the disk refuses the note, the monitor's own
    /// exit record still holds it, and the monitor stays for as long as it is connected.
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
            Ok(held) => self.adopt(node, &held).await,
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

    /// Gives the container a new monitor. What has ended the former one may end this one before it has
    /// answered: then another is tried. One that lives and is only slow, or was not understood, stays.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        node: &Arc<Node>,
        descriptors: &Descriptors,
    ) -> Result<(), MonitorError> {
        let mut tries = 1;
        loop {
            let error = match self.adopt_once(node, duplicate(descriptors)?).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let was_heard = !matches!(error, MonitorError::Gone | MonitorError::Silent { .. });
            if was_heard || tries == MOST_ADOPTIONS {
                return Err(error);
            }
            if self.find_monitor(node).await {
                return Ok(());
            }
            tries += 1;
        }
    }

    async fn adopt_once(
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
    pub(super) async fn watch_alone(self: &Arc<Self>, init: Option<OwnedFd>) {
        if let Some(init) = init
            && let Ok(init) = sys::watch(init)
        {
            drop(init.readable().await);
            self.reap_init(init.get_ref());
        }
        self.note_unknown_exit("its monitor died and could not be replaced").await;
    }

    pub(super) async fn note_unknown_exit(&self, message: &str) {
        let started_at_ns = match self.state() {
            State::Running { started_at_ns, .. } => started_at_ns,
            State::Created { .. } | State::Exited(_) => 0,
        };
        self.note_exited(Exited::unknown(message, started_at_ns, clock::now_ns())).await;
    }
}

/// The record that a monitor left when its container ended.
pub(super) fn recorded_exit(run_dir: &Path) -> Option<Exit> {
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

pub(super) fn duplicate(descriptors: &Descriptors) -> io::Result<Descriptors> {
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
