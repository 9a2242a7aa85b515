//! StartContainer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use cria_monitor::protocol::{Reply, Request};
use fs_err::OpenOptions;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use tokio::task::spawn_blocking;

use super::Container;
use super::state::{Exited, State};
use crate::clock;
use crate::error::Error;
use crate::monitor::MonitorError;
use crate::node::Node;

/// As the monitor makes logs: what reads them runs as root or in a group of its own.
const LOG_MODE: u32 = 0o640;

impl Container {
    /// Runs the container's process. A failure leaves the container, exited, with code 128 and
    /// reason `StartError`. Runs to its end even if the caller goes away.
    pub(crate) async fn start(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Error> {
        let (container, node) = (Arc::clone(self), Arc::clone(node));
        tokio::spawn(async move {
            let _alone = container.lifecycle.lock().await;
            container.start_alone(&node).await
        })
        .await
        .map_err(|panic| Error::internal("start the container", panic))?
    }

    async fn start_alone(&self, node: &Node) -> Result<(), Error> {
        match self.state() {
            State::Created { broken: None } => {}
            State::Created { broken: Some(message) } => {
                self.with_log(make_empty).await?;
                return self.failed(node, message).await;
            }
            State::Running { .. } => return Err(self.wrong_state("running already")),
            State::Exited(_) => return Err(self.wrong_state("exited")),
        }
        self.with_log(make_directory).await?;
        let monitor = self.monitor_soon().await;
        let monitor = monitor.ok_or_else(|| self.wrong_state("without a monitor"))?;
        match monitor.ask(Request::Start, node.oci.patience()).await {
            Ok(Reply::Started { at_ns }) => self.note_started(at_ns).await,
            Ok(_) => {
                let message = "the monitor answered `start` with something else";
                self.failed(node, message.to_owned()).await
            }
            // Nobody knows how far it came: what runs of it goes.
            Err(MonitorError::Gone) => self.failed(node, "the monitor died".to_owned()).await,
            Err(error) => self.failed(node, crate::error::chain(&error)).await,
        }
    }

    /// Its end may have been taken in already: then it stays what it is.
    async fn note_started(&self, at_ns: i64) -> Result<(), Error> {
        let init_pid = self.record.get().init_pid;
        let noted = self.record.note(|record| {
            if let Ok(started) = record.state.clone().started(init_pid, at_ns) {
                record.state = started;
            }
        });
        if let Err(error) = noted.await {
            // The monitor knows that it runs, and tells a restarted daemon.
            tracing::warn!(container = %self.id, %error, "cannot write the record");
        }
        Ok(())
    }

    /// The container has ended without having begun; whatever is left of it goes.
    async fn failed(&self, node: &Node, message: String) -> Result<(), Error> {
        let exited = Exited::never_started(message.clone(), clock::now_ns());
        self.note_exited(exited).await;
        self.release().await;
        self.delete_what_is_left(node).await;
        Err(Error::Refused { action: "start", container: self.id.to_string(), message })
    }

    /// Does something for its log that blocks; nothing if it keeps none.
    async fn with_log(&self, make: fn(&Path) -> io::Result<()>) -> Result<(), Error> {
        let Some(path) = self.record.get().log_path.clone() else { return Ok(()) };
        spawn_blocking(move || make(&path))
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|error| Error::io(format!("make the log of {}", self.id), error))
    }

    pub(super) fn wrong_state(&self, state: &'static str) -> Error {
        Error::WrongState { kind: "container", id: self.id.to_string(), state }
    }
}

/// The kubelet makes the directory; crictl does not.
fn make_directory(log: &Path) -> io::Result<()> {
    log.parent().map_or(Ok(()), fs_err::create_dir_all)
}

/// What never ran has a log too, with nothing in it. (A monitor makes its own.)
fn make_empty(log: &Path) -> io::Result<()> {
    make_directory(log)?;
    OpenOptions::new().append(true).create(true).mode(LOG_MODE).open(log).map(drop)
}
