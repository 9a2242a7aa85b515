//! StopContainer.

use std::time::Duration;

use cria_proto::{StopContainerRequest, StopContainerResponse};

use crate::daemon::Daemon;
use crate::error::Error;

/// Idempotent, as the CRI demands: a container that is gone or has exited counts as stopped.
pub(in crate::cri) async fn stop_container(
    daemon: &Daemon,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Error> {
    // Zero, the protocol's default, means "kill at once"; so does anything below it.
    let grace = Duration::from_secs(request.timeout.try_into().unwrap_or(0));
    if let Some(container) = daemon.containers.find(&request.container_id) {
        super::note(daemon, &container);
        container.stop(grace).await?;
    }
    Ok(StopContainerResponse {})
}
