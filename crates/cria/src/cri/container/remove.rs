//! RemoveContainer.

use cria_proto::{RemoveContainerRequest, RemoveContainerResponse};

use crate::daemon::Daemon;
use crate::error::Error;

/// Idempotent: a container that is gone counts as removed; one that runs is killed.
pub(in crate::cri) async fn remove_container(
    daemon: &Daemon,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Error> {
    if let Some(container) = daemon.containers.find(&request.container_id) {
        super::note(daemon, &container);
        daemon.remove_container(&container).await?;
    }
    Ok(RemoveContainerResponse {})
}
