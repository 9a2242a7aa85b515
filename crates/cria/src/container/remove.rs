//! RemoveContainer, and the undoing of a CreateContainer that failed: the same, by id alone.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cria_monitor::protocol::{Phase, Request};
use tokio::task::spawn_blocking;

use super::Container;
use crate::cgroup::CgroupPath;
use crate::error::Error;
use crate::id::ContainerId;
use crate::monitor::{self, Monitor, MonitorError, News};
use crate::mounts;
use crate::node::Node;
use crate::tree;

/// Ending a container includes the OCI runtime's `delete`.
pub(super) const RELEASE_DEADLINE: Duration = Duration::from_secs(120);

/// What is left in a container's cgroup gets to end.
const CGROUP_DEADLINE: Duration = Duration::from_secs(10);

const STATE_DEADLINE: Duration = Duration::from_secs(10);

impl Container {
    /// Kills what runs, and leaves nothing. Not to be cut short: in a task of its own.
    pub(crate) async fn remove(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Error> {
        let _alone = self.lifecycle.lock().await;
        let cgroup = self.record.get().cgroup.clone();
        self.note_removing().await;
        self.stop(Duration::ZERO).await?;
        self.release().await;
        // Mostly there is none any more; one that we had lost touch with would stay for ever.
        dismiss(node, &self.id).await?;
        clean(node, &self.id, Some(cgroup)).await?;
        self.held().leases.clear();
        Ok(())
    }

    /// So that a restarted daemon continues. A full disk must not keep a container, though.
    async fn note_removing(&self) {
        if let Err(error) = self.record.note(|record| record.removing = true).await {
            tracing::warn!(container = %self.id, %error, "cannot write the record");
        }
    }
}

/// Ends and removes a container that is not listed: of it nothing need be known but the id.
pub(crate) async fn discard(
    node: &Arc<Node>,
    id: &ContainerId,
    cgroup: Option<CgroupPath>,
) -> Result<(), Error> {
    dismiss(node, id).await?;
    clean(node, id, cgroup).await
}

/// Has the monitor, if there is one, end the container and quit; one that hangs is killed. Returns when
/// it has gone.
pub(super) async fn dismiss(node: &Node, id: &ContainerId) -> Result<(), Error> {
    let run_dir = node.paths.container_run(id);
    let failed = |error| Error::internal(format!("end the monitor of container {id}"), error);
    let (monitor, mut news) = match Monitor::connect(&run_dir) {
        Ok(connected) => connected,
        Err(error) if error.nobody_listens() => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match monitor.tell(Request::Release, RELEASE_DEADLINE).await {
        Ok(()) | Err(MonitorError::Gone) => {}
        Err(MonitorError::Silent { .. }) => {
            tracing::warn!(container = %id, "killing a monitor that does not answer");
            let killed = monitor::kill(&run_dir).await;
            killed.map_err(|error| failed(MonitorError::Io(error)))?;
        }
        Err(error) => return Err(failed(error)),
    }
    while let Some(News::Event(_)) = news.recv().await {}
    Ok(())
}

/// Whether there is a monitor that does not say that its container has ended.
pub(crate) async fn is_alive(node: &Node, id: &ContainerId) -> bool {
    let (monitor, _news) = match Monitor::connect(&node.paths.container_run(id)) {
        Ok(connected) => connected,
        Err(error) => return !error.nobody_listens(),
    };
    match monitor.ask_state(Request::State, STATE_DEADLINE).await {
        Ok(state) => state.phase != Phase::Exited,
        Err(error) => !matches!(error, MonitorError::Gone),
    }
}

/// Removes whatever there is of a container: its OCI runtime state, cgroup, mounts and files, the
/// record last. Every step can be repeated; a failure leaves the record, so that it will be.
/// Without a cgroup's name all cgroups are searched for the container's.
async fn clean(
    node: &Arc<Node>,
    id: &ContainerId,
    cgroup: Option<CgroupPath>,
) -> Result<(), Error> {
    if node.oci.knows(id) {
        // Somebody else's `delete`, a former daemon's or the monitor's, may have been faster.
        if let Err(error) = node.oci.delete(id).await
            && node.oci.knows(id)
        {
            return Err(Error::internal(format!("delete container {id}"), error));
        }
    }
    let (node, id) = (Arc::clone(node), id.clone());
    let cleaned = spawn_blocking(move || {
        clean_files(&node, &id, cgroup.as_ref()).map_err(|error| (id, error))
    });
    match cleaned.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((id, error))) => Err(Error::io(format!("remove container {id}"), error)),
        Err(panic) => Err(Error::internal("remove a container's files", panic)),
    }
}

fn clean_files(node: &Node, id: &ContainerId, cgroup: Option<&CgroupPath>) -> io::Result<()> {
    match cgroup {
        Some(cgroup) => node.cgroups.remove(cgroup, CGROUP_DEADLINE),
        None => node.cgroups.remove_container_cgroups([id], CGROUP_DEADLINE).map(drop),
    }
    .map_err(io::Error::other)?;
    mounts::detach(&node.paths.rootfs(id))?;
    detach_all(&node.paths.image_volumes(id))?;
    tree::remove(&node.paths.container_run(id))?;
    tree::remove(&node.paths.container(id))
}

/// Takes away what is mounted on the entries of `directory`, which may be missing.
fn detach_all(directory: &Path) -> io::Result<()> {
    match fs_err::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        entries => entries?.try_for_each(|entry| mounts::detach(&entry?.path())),
    }
}
