//! The RPCs about containers.

mod create;
mod exec;
mod query;
mod remove;
mod start;
mod stop;
mod update;

pub(super) use create::create_container;
pub(super) use exec::exec_sync;
pub(super) use query::{container_status, has_labels, list_containers, stream_containers};
pub(super) use remove::remove_container;
pub(super) use start::start_container;
pub(super) use stop::stop_container;
pub(super) use update::{reopen_container_log, update_container_resources};

use std::sync::Arc;

use cria_proto::ContainerMetadata;

use super::span::record;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::Error;

/// The container of this id, or of this prefix of one.
pub(super) fn find(daemon: &Daemon, id: &str) -> Result<Arc<Container>, Error> {
    let container = daemon
        .containers
        .find(id)
        .ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })?;
    note(daemon, &container);
    Ok(container)
}

/// Tells the log which container an RPC is about.
fn note(daemon: &Daemon, container: &Container) {
    record("container", &container.id);
    if let Some(sandbox) = daemon.sandboxes.get(&container.sandbox) {
        record("pod", &format!("{}/{}", sandbox.config.namespace, sandbox.config.name));
    }
}

pub(super) fn metadata(container: &Container) -> ContainerMetadata {
    ContainerMetadata { name: container.config.name.clone(), attempt: container.config.attempt }
}
